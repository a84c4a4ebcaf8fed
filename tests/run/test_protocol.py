"""What makes a grid fair: options chosen as carefully as rates, augmentation, controls, the cost of the whole job."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nc_finetune.report._tables.labels import variant_labels
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report._tables.tables import group_table
from nc_finetune.results.result import Result
from nc_finetune.run._cell.outcome import planned_result
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run._cell.work import counted_work
from nc_finetune.run.cell import Cell, Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec
from nc_finetune.run.specs import AugmentationSpec

LORA = MethodSpec(method="AdapterTuning", learning_rates=[1e-3, 3e-3], candidates={"rank": [2, 4]})


def make_grid(*methods: MethodSpec, **changes: Any) -> Grid:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_vit", weights=None, model_options={"img_size": 32})],
        "datasets": [DatasetSpec(source="sklearn:digits", name="digits", image_size=32, test_size=60)],
        "methods": list(methods),
        "samples_per_class": [4],
        "settings": Settings(epochs=1),
        "choice": "folds",
        "folds": 2,
        "extend_rates": False,
    }
    return Grid(**{**parts, **changes})


def run(method: MethodSpec, **changes: Any) -> Result:
    (cell,) = make_grid(method, **changes).cells()
    result = run_cell(cell)
    assert result.error is None
    return result


def test_folds_choose_options_and_the_result_says_what_was_tried() -> None:
    found = run(LORA)
    assert {*found.choice["by_options"]["rank"]} == {"2", "4"}
    best = found.choice["options"]["rank"]
    assert best in (2, 4)
    tried = found.choice["by_options"]["rank"]
    assert tried[str(best)] == max(tried.values())
    assert found.choice["edges"] == ["rank"]  # of two numbers one is always at the edge
    assert found.bracketed is False
    assert found.options["rank"] == "chosen"  # whatever was chosen: seeds are of one row


def test_candidates_are_part_of_the_name_and_the_first_is_the_option() -> None:
    (cell,), (other,) = (make_grid(replace(LORA, candidates=given)).cells() for given in ({"rank": [2, 4]}, None))
    assert cell.run_id != other.run_id
    assert cell.build_method().rank == 2  # type: ignore[attr-defined]
    assert cell.with_options({"rank": 4}).build_method().rank == 4  # type: ignore[attr-defined]


@pytest.mark.slow
def test_folds_choose_a_span_whatever_else_chooses_the_key_layers_of_others() -> None:
    spans = [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"]]
    span = MethodSpec(method="SkipConnectionFinetuning", learning_rates=[1e-3, 3e-3], candidates={"key_layer": spans})
    backbone = replace(make_grid(LORA).backbones[0], key_layer="auto")
    found = run(span, backbones=[backbone])
    assert found.selection == {}  # no trials: folds choose
    assert found.key_layer == "+".join(found.choice["options"]["key_layer"])
    assert found.key_layer in {"blocks.0+blocks.1", "blocks.2+blocks.3"}
    options = {name: value for name, value in found.options.items() if name != "key_layer"}
    other = replace(found, run_id="other", options=options, selection={"block": "blocks.1"}, key_layer="blocks.1")
    assert sorted(variant_labels([found, other]).values()) == [
        "SCL-FT, key layer chosen",
        "SCL-FT, on a chosen span",
    ]


def test_data_sets_may_have_training_sizes_of_their_own() -> None:
    digits = make_grid(LORA).datasets[0]
    own = replace(digits, name="more", samples_per_class=[5, 6])
    cells = make_grid(PROBE, datasets=[digits, own]).cells()
    assert [(cell.dataset_name, cell.samples_per_class) for cell in cells] == [("digits", 4), ("more", 5), ("more", 6)]
    asked = make_grid(PROBE, datasets=[replace(digits, name="more")], samples_per_class=[5, 6]).cells()
    assert [cell.run_id for cell in asked] == [cell.run_id for cell in cells[1:]]
    for wrong, message in (([], "samples_per_class of more must not be empty"), ([0], "got 0")):
        with pytest.raises(ValueError, match=message):
            make_grid(PROBE, datasets=[replace(own, samples_per_class=wrong)])


def test_augmented_runs_see_other_images_than_plain_ones_and_are_told_apart() -> None:
    digits = make_grid(LORA).datasets[0]
    dataset = replace(digits, augmentation=AugmentationSpec(flip=0.0))
    plain = MethodSpec(method="LinearProbe", learning_rates=[1e-2])
    runs = [run(method, datasets=[dataset]) for method in (plain, replace(plain, augment=True))]
    assert runs[0].learning_curve["train_loss"] != runs[1].learning_curve["train_loss"]
    assert sorted(variant_labels(runs).values()) == ["linear probe", "linear probe, augmented"]
    assert runs[0].run_id == run_name(plain)  # what the data allow changes nothing for those that do not augment


def run_name(method: MethodSpec) -> str:
    (cell,) = make_grid(method).cells()
    return cell.run_id


def test_a_control_begins_with_random_weights_in_the_group_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    build = BackboneSpec.build

    def watched(self: BackboneSpec, weights: str | None) -> Any:
        asked.append(weights)
        return build(self, None)

    monkeypatch.setattr(BackboneSpec, "build", watched)
    backbone = BackboneSpec(name="test_resnet", weights="package")
    methods = (PROBE, replace(PROBE, pretrained=False))
    cells = [Cell(backbone=backbone, **of_cell(method) | {"seed": seed}) for method in methods for seed in (0, 1)]
    results = [run_cell(cell) for cell in cells]
    assert {"package", None} == {*asked}
    assert {result.weights for result in results} == {"package"}
    rows = summarize([replace(run, provenance={**run.provenance, **known(run)}) for run in results])
    assert sorted((row.label, row.seeds) for row in rows) == [("linear probe", 2), ("linear probe, random weights", 2)]
    assert len({row.group for row in rows}) == 1


def known(run: Result) -> dict[str, str]:
    """Say of pre-trained weights that they are one file, as they would be."""
    return {} if run.options.get("random_weights") else {"weights_hash": "w" * 64}


PROBE = MethodSpec(method="LinearProbe", options={"solver": "lbfgs"})


def of_cell(method: MethodSpec) -> dict[str, Any]:
    (cell,) = make_grid(method).cells()
    parts = ("dataset", "method", "head", "samples_per_class", "seed", "settings", "choice")
    return {name: getattr(cell, name) for name in parts}


def test_a_solved_probe_needs_neither_rates_nor_folds_and_says_its_penalty() -> None:
    found = run(PROBE)
    assert found.method == "linear_probe"
    assert {*found.readout} == {"l2", "folds_accuracy"}
    assert found.bracketed == (1e-7 < found.readout["l2"] < 100)
    assert found.learning_rates == {}
    assert found.tempered_calibration_error is not None


@pytest.mark.parametrize("kind", ["mean_color", "class_priors"])
def test_what_cannot_be_measured_of_a_control_is_no_warning(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    found = run(MethodSpec(method="Control", options={"kind": kind}))
    assert not [str(one.message) for one in recwarn if "could not measure" in str(one.message)]
    assert found.nc1_layers.keys() >= {"stem", "penultimate"}


def test_the_cost_of_the_whole_job_is_told() -> None:
    found = run(PROBE)
    assert found.processor_seconds is not None
    assert 0 < found.processor_seconds < 600
    assert found.flops is None


def test_arithmetic_is_counted_where_asked_and_changes_nothing_else() -> None:
    known, found = (run(PROBE, settings=Settings(epochs=1, count_flops=counted)) for counted in (False, True))
    assert found.processor_seconds is None  # counting takes time
    assert found.run_id == known.run_id
    assert found.config == known.config
    assert found.accuracy == known.accuracy
    images = sum(found.split_sizes.values())
    backbone = BackboneSpec(name="test_vit", weights=None, model_options={"img_size": 32}).build(None)
    with counted_work(flops=True) as once_through, torch.no_grad():
        backbone(torch.zeros(1, 3, 32, 32))
    once = once_through.flops or 0
    assert found.flops is not None
    assert images * once <= found.flops <= 4 * images * once  # each image at least once, and none of them trained on


def test_what_earlier_runs_left_is_counted_again() -> None:
    changes: dict[str, Any] = {"settings": Settings(epochs=1, count_flops=True), "choice": "validation", "folds": 5}
    probes = [MethodSpec(method="LinearProbe", learning_rates=[rate]) for rate in (1e-3, 2e-3)]
    first, second = (run(probe, **changes) for probe in probes)
    assert first.flops == second.flops


def test_attention_counts_on_a_cpu_and_its_backward_pass_too() -> None:
    tokens = torch.randn(1, 2, 16, 8)
    products = 2 * 2 * 2 * 16 * 16 * 8  # queries by keys and weights by values, of two heads
    for trained, least in ((False, products), (True, 3 * products)):
        inputs = tokens.clone().requires_grad_(trained)
        with counted_work(flops=True) as work:
            found = F.scaled_dot_product_attention(inputs, inputs, inputs).sum()
            if trained:
                found.backward()
        assert work.flops is not None
        assert work.flops >= least if trained else work.flops == least


def test_arithmetic_of_whole_runs_is_a_column_where_it_was_counted() -> None:
    counted = replace(run(PROBE), flops=3_210_000_000_000, processor_seconds=None)
    table = group_table(summarize([counted]))
    assert table.rows[0][table.columns.index("TFLOP")].text == "3.21"
    assert "processor s" not in table.columns


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (replace(PROBE, augment=True), {}, "LinearProbe is solved from the images as they are"),
        (
            MethodSpec(
                method="ProbeFirst",
                learning_rates=[1e-3],
                options={"method": {"method": "AdapterTuning", "candidates": {"rank": [2, 4]}}},
            ),
            {},
            "candidates of AdapterTuning inside ProbeFirst would be left out",
        ),
        (replace(LORA, augment=True), {}, "augment: true needs what the images of digits allow"),
        (LORA, {"choice": "validation", "folds": 5}, "candidates of AdapterTuning are chosen by folds"),
        (replace(LORA, candidates={"rank": [2]}), {}, "must have two values at least, got \\[2\\] of rank"),
        (replace(LORA, options={"rank": 2}), {}, "rank of AdapterTuning is an option and has candidates"),
        (replace(LORA, candidates={"rank": [2, -1]}), {}, "rank"),
        (replace(PROBE, candidates={"solver": ["lbfgs", "lbfgs"]}, options={}), {}, "trains nothing, so that its cand"),
    ],
)
def test_what_cannot_be_chosen_is_refused_at_once(method: MethodSpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(method, **changes)


def test_other_augmentations_of_one_data_set_are_rows_of_their_own() -> None:
    plain = MethodSpec(method="LinearProbe", learning_rates=[1e-2], augment=True)
    digits = make_grid(LORA).datasets[0]
    runs = []
    for seed, scale in ((0, (0.9, 1.0)), (1, (0.5, 0.6))):
        dataset = replace(digits, augmentation=AugmentationSpec(scale=scale))
        (cell,) = make_grid(plain, datasets=[dataset], seeds=[seed]).cells()
        runs.append(replace(planned_result(cell), accuracy=50.0, nc1=1.0))
    rows = summarize(runs)
    assert [row.seeds for row in rows] == [1, 1]
    assert len({row.label for row in rows}) == 2


def test_augmentation_out_of_range_is_refused() -> None:
    dataset = replace(make_grid(LORA).datasets[0], augmentation=AugmentationSpec(flip=2.0))
    with pytest.raises(ValueError, match="flip must be a share"):
        make_grid(LORA, datasets=[dataset])
