"""Every cell of the slides' table: three recipes composed, parsed and built by the command, without weights and hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import pytest
import timm
import torch
import yaml
from conftest import quick_first, quick_where
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningCLI

from nc_finetune.callbacks import AverageEpochs, BestEpoch, LayerwiseNC1, PrefixCache
from nc_finetune.cli import main
from nc_finetune.cli.recipes import find_recipe, list_recipes
from nc_finetune.heads import CosineHead
from nc_finetune.methods import AUTO
from nc_finetune.selection import ChooseKeyLayer

# By id on the hub: columns of labels with their numbers of classes, the column of images, the splits.
HUB = {
    "uoft-cs/cifar10": ({"label": 10}, "img", ("train", "test")),
    "uoft-cs/cifar100": ({"fine_label": 100, "coarse_label": 20}, "img", ("train", "test")),
    "HuggingFaceM4/FGVC-Aircraft": (
        {"family": 70, "manufacturer": 30, "variant": 100},
        "image",
        ("train", "validation", "test"),
    ),
    "tanganke/dtd": ({"label": 47}, "image", ("train", "test")),
    "timm/oxford-iiit-pet": ({"label": 37, "label_cat_dog": 2}, "image", ("train", "test")),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "aircraft": 100, "dtd": 47, "pets": 37}
FEW = ("aircraft", "dtd", "pets")
COLUMNS = {"resnet50": tuple(CLASSES), "vit_b32": FEW, "clip_vit_b32": FEW}
# Parameters of the backbone, of its key block, and width of its feature.
SIZES = {
    "resnet50": (23_508_032, 1_512_448, 2048),
    "vit_b32": (87_455_232, 7_087_872, 768),
    "clip_vit_b32": (87_849_216, 7_087_872, 768),
}
KEY_BLOCKS = {"resnet50": "layer3.0", "vit_b32": "blocks.5", "clip_vit_b32": "transformer.resblocks.5"}
METHODS = ("linear_probe", "layer_ft", "scl_ft", "full_ft")
CELLS = [(backbone, dataset, method) for backbone, row in COLUMNS.items() for dataset in row for method in METHODS]


def load_tiny(source: str) -> datasets.DatasetDict:
    """Return two images a class under the columns and splits that a data set of the hub has."""
    labels, image, splits = HUB[source]
    number = 2 * max(labels.values())
    names = {column: [f"{column} {k}" for k in range(classes)] for column, classes in labels.items()}
    features = {column: datasets.ClassLabel(names=known) for column, known in names.items()}
    columns: dict[str, Any] = {column: [row % k for row in range(number)] for column, k in labels.items()}
    columns[image] = [np.full((8, 8, 3), row % 256, dtype=np.uint8) for row in range(number)]
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features({image: datasets.Image(), **features}))
    return datasets.DatasetDict(dict.fromkeys(splits, rows))


@pytest.fixture(scope="module", autouse=True)
def _tiny_hub() -> Iterator[None]:
    tiny = {source: load_tiny(source) for source in HUB}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", tiny.__getitem__)
        yield


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[LightningCLI]:
    """Let the command build everything, on the meta device, and run nothing; collect what it built."""
    built: list[LightningCLI] = []
    instantiate = LightningCLI.instantiate_classes

    def on_meta(cli: LightningCLI) -> None:
        with torch.device("meta"):
            instantiate(cli)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LightningCLI, "instantiate_classes", on_meta)
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda cli, _: built.append(cli))
    return built


def fit(*recipes: str) -> int:
    return main(["fit", *recipes, "--model.weights", "null"])


def read_recipe(name: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    return recipe


def is_quick(cell: tuple[str, str, str]) -> bool:
    """Tell whether a cell belongs to the few that have every part of a recipe between them."""
    backbone, dataset, method = cell
    if backbone == "resnet50":
        return "dtd" in cell or method == "scl_ft"
    return dataset == "dtd" and method in ("scl_ft", "full_ft")


@pytest.mark.parametrize(("backbone", "dataset", "method"), quick_where(is_quick, CELLS))
def test_every_cell_builds_and_tunes_what_it_should(
    backbone: str, dataset: str, method: str, built: list[LightningCLI]
) -> None:
    assert fit(f"backbones/{backbone}", f"datasets/{dataset}", f"methods/{method}") == 0
    model, data = built[0].model, built[0].datamodule
    body, block, width = SIZES[backbone]
    head = CLASSES[dataset] * (width + 1)
    tuned = {"linear_probe": 0, "layer_ft": block, "scl_ft": block, "full_ft": body}[method]
    assert data.num_classes == model.num_classes == CLASSES[dataset]
    assert (model.method.name, model.total_parameters) == (method, body + head)
    # Of CLIP's full FT the projection stands aside: nothing that the classifier sees comes from it.
    aside = 768 * 512 if (backbone, method) == ("clip_vit_b32", "full_ft") else 0
    assert model.tuned_parameters == tuned + head - aside


@pytest.mark.parametrize("dataset", quick_first(1, FEW))
def test_the_zero_shot_cells_of_clip_build(dataset: str, built: list[LightningCLI]) -> None:
    parts = ("backbones/clip_vit_b32_projected", f"datasets/{dataset}", "methods/zero_shot")
    assert main(["test", *parts, "--model.backbone.init_args.weights", "null"]) == 0
    model = built[0].model
    assert (model.method.name, model.tuned_parameters) == ("zero_shot", 0)
    assert model.head.weight.shape == (CLASSES[dataset], 512)


@pytest.mark.parametrize("backbone", COLUMNS)
def test_layer_ft_takes_the_middle_block(backbone: str, built: list[LightningCLI]) -> None:
    fit(f"backbones/{backbone}", "datasets/dtd", "methods/layer_ft")
    model = built[0].model
    trained = [name for name, p in model.backbone.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith(f"{KEY_BLOCKS[backbone]}.") for name in trained)


@pytest.mark.parametrize("backbone", COLUMNS)
def test_the_weights_exist_and_get_images_as_they_want_them(backbone: str) -> None:
    recipe = read_recipe(f"backbones/{backbone}")
    library, _, name = recipe["model"]["backbone"].rpartition(":")
    tag = recipe["model"]["weights"]
    if library == "open_clip":
        assert tag in open_clip.list_pretrained_tags_by_model(name)
        size, interpolation = open_clip.get_model_config(name)["vision_cfg"]["image_size"], "bicubic"
    else:
        assert f"{name}.{tag}" in timm.list_pretrained(name + ".*")
        wanted = timm.get_pretrained_cfg(f"{name}.{tag}")
        size, interpolation = wanted.input_size[-1], wanted.interpolation
    assert recipe["data"] == {"image_size": size, "interpolation": interpolation}


def test_both_clip_parts_are_of_one_network() -> None:
    plain, projected = (read_recipe(f"backbones/{name}") for name in ("clip_vit_b32", "clip_vit_b32_projected"))
    named = projected["model"]["backbone"]["init_args"]
    assert (plain["model"]["backbone"], plain["model"]["weights"]) == (f"open_clip:{named['name']}", named["weights"])
    assert plain["data"] == projected["data"]


def test_every_part_belongs_to_a_cell() -> None:
    parts = {name for name in list_recipes() if name.split("/")[0] in ("datasets", "methods")}
    assert parts == {
        *(f"datasets/{name}" for name in CLASSES),
        *(f"methods/{name}" for name in (*METHODS, "readout", "scl_ft_auto", "side_ft", "zero_shot")),
    }


@pytest.mark.parametrize("part", ["scl_ft_auto", "side_ft"])
def test_a_part_that_chooses_its_block_brings_what_chooses(part: str, built: list[LightningCLI]) -> None:
    parts = ("backbones/resnet50", "datasets/dtd", f"methods/{part}")
    assert main(["fit", *parts, "--model.weights", "null", "--data.image_size", "64"]) == 0
    callbacks = [type(callback) for callback in built[0].trainer.callbacks]
    assert built[0].model.method.key_layer == AUTO
    assert isinstance(built[0].model.head, CosineHead)
    assert callbacks.index(ChooseKeyLayer) < callbacks.index(PrefixCache)


def test_epochs_parts_add_their_callbacks_to_those_of_the_method(built: list[LightningCLI]) -> None:
    parts = ("epochs/best", "epochs/early_stopping", "epochs/averaged")
    assert fit("backbones/resnet50", "datasets/dtd", "methods/scl_ft_auto", *parts, "--data.image_size", "64") == 0
    callbacks = [type(callback) for callback in built[0].trainer.callbacks]
    assert {ChooseKeyLayer, PrefixCache, LayerwiseNC1, BestEpoch, EarlyStopping, AverageEpochs} <= set(callbacks)
    (best,) = (callback for callback in built[0].trainer.callbacks if isinstance(callback, BestEpoch))
    assert (best.monitor, best.mode) == ("val/loss", "min")
    assert built[0].trainer.checkpoint_callback is best


@pytest.mark.slow
def test_a_recipe_with_epochs_parts_writes_what_it_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = ("digits/efficientnet_lite0_scl_ft", "epochs/best", "epochs/early_stopping", "epochs/averaged")
    small = {"data.image_size": "32", "data.samples_per_class": "2", "data.val_size": "40", "data.test_size": "40"}
    quick = {"model.backbone": "test_resnet", "model.weights": "null", "model.method.key_layer": "layer2.0"}
    options = [word for key, value in (small | quick).items() for word in (f"--{key}", value)]
    added = ["--run.folder", "run", "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    for _ in range(2):  # the second time all is done
        assert main(["fit", *parts, *options, *added]) == 0
    assert "Going on from" in capsys.readouterr().err
    (delta,) = tmp_path.rglob("*.safetensors")
    assert main(["test", *parts, *options, "--ckpt_path", str(delta)]) == 0


@pytest.mark.parametrize("backbone", quick_first(1, COLUMNS))
def test_the_readout_part_trains_the_head_alone(backbone: str, built: list[LightningCLI]) -> None:
    fit(f"backbones/{backbone}", "datasets/dtd", "methods/readout")
    model = built[0].model
    assert (model.method.name, model.method.layers) == ("readout", AUTO)
    assert model.tuned_parameters == 47 * (model.method.num_features(model.backbone) + 1)


def test_a_later_recipe_wins_and_an_option_wins_over_all(built: list[LightningCLI]) -> None:
    parts = ("backbones/resnet50", "datasets/dtd", "methods/scl_ft")
    assert main(["fit", *parts, "methods/linear_probe", "--model.weights", "null", "--data.image_size", "64"]) == 0
    assert built[0].model.method.name == "linear_probe"
    assert built[0].datamodule.image_size == 64
    assert any(isinstance(callback, LayerwiseNC1) for callback in built[0].trainer.callbacks)


def test_an_unknown_part_is_named(built: list[LightningCLI], capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("backbones/resnet50", "datasets/dtdd", "methods/scl_ft") == 2
    assert "unknown recipe 'datasets/dtdd'; did you mean 'datasets/dtd'" in capsys.readouterr().err
    assert built == []


@pytest.mark.parametrize(
    ("method", "val_size"), [("scl_ft", "37"), pytest.param("readout", "0.2", marks=pytest.mark.slow)]
)
def test_a_composed_recipe_trains(method: str, val_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = ("backbones/resnet50", "datasets/pets", f"methods/{method}")
    small = {"data.image_size": "32", "data.batch_size": "4", "data.val_size": val_size, "trainer.fast_dev_run": "true"}
    quiet = {"trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false"}
    options = [word for key, value in (small | quiet).items() for word in (f"--{key}", value)]
    assert main(["fit", *parts, "--model.weights", "null", *options]) == 0
