"""Readouts in a grid: solved once, measured as other runs are, and told apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nc_finetune.report._tables.labels import variant_labels
from nc_finetune.results.result import Result, read_results, write_result
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, HeadSpec, MethodSpec

SCL: dict[str, Any] = {"layers": "later_half", "method": {"method": "SkipConnectionFinetuning"}}


def make_grid(*methods: MethodSpec, **changes: Any) -> Grid:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        "datasets": [DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=50, test_size=60)],
        "methods": list(methods),
        "samples_per_class": [5],
        "settings": Settings(epochs=3),
    }
    return Grid(**{**parts, **changes})


@pytest.fixture(scope="module")
def runs() -> dict[str, Result]:
    methods = {
        "auto": MethodSpec(method="LayerReadout"),
        "all": MethodSpec(method="LayerReadout", options={"layers": "all"}),
        "under": MethodSpec(method="LayerReadout", options=SCL, learning_rates=[3e-3]),
        "begun": MethodSpec(
            method="LayerReadout", options=SCL, learning_rates=[3e-3], heads=[HeadSpec(head="DiscriminantHead")]
        ),
    }
    found = {name: run_cell(cell) for name, method in methods.items() for cell in make_grid(method).cells()}
    assert [run.error for run in found.values()] == [None] * 4
    return found


def test_heads_and_rates_of_the_grid_are_not_a_readouts() -> None:
    grid = make_grid(MethodSpec(method="LayerReadout"), heads=[HeadSpec(), HeadSpec(head="CosineHead")])
    assert [cell.fits for cell in grid.cells()] == [1]


def test_a_readout_is_one_epoch_that_tunes_the_head_alone(runs: dict[str, Result]) -> None:
    run = runs["all"]
    assert (run.method, run.head, run.epochs, run.key_layer) == ("readout", "linear", 1, None)
    assert (run.learning_rate, run.learning_rates) == (None, {})
    assert run.tuned_parameters == 10 * (832 + 1)
    assert run.delta_bytes == 4 * run.tuned_parameters
    assert (run.epoch_seconds or 0) > 0
    assert {*run.nc1_layers} >= {"layer1.0", "penultimate"}
    assert {"nc1", "nc3_etf_distance", "nc4"} <= {*run.collapse}
    assert run.accuracy is not None
    assert run.accuracy > 40


def test_a_result_says_what_was_chosen(runs: dict[str, Result], tmp_path: Path) -> None:
    assert {*runs["auto"].readout} == {"layers", "shrinkage", "leave_one_out_accuracy", "by_layers"}
    tried = runs["auto"].readout["by_layers"]
    assert {*tried} == {"later_half", "penultimate", "last_blocks", "all"}
    assert runs["auto"].readout["leave_one_out_accuracy"] == tried[runs["auto"].readout["layers"]]
    assert {*runs["all"].readout} == {"layers", "shrinkage", "leave_one_out_accuracy"}
    assert 0 < runs["all"].readout["leave_one_out_accuracy"] <= 100
    assert runs["under"].readout == {}
    assert runs["begun"].readout["layers"] == "later_half"
    write_result(runs["auto"], tmp_path)
    assert read_results(tmp_path)[0].readout == runs["auto"].readout


def test_a_method_under_a_readout_tunes_its_block_at_its_rate(runs: dict[str, Result]) -> None:
    run, alone = runs["under"], runs["all"]
    assert (run.key_layer, run.learning_rate, run.epochs) == ("layer2.0", 3e-3, 3)
    assert (run.tuned_parameters or 0) > 10 * (672 + 1)
    assert run.run_id != alone.run_id
    assert runs["begun"].head == "discriminant_head"


def test_variants_of_readouts_have_names_of_their_own(runs: dict[str, Result]) -> None:
    names = [*variant_labels([*runs.values()]).values()]
    assert len({*names}) == 4
    assert all(name.startswith("readout") for name in names)
    assert any(name.endswith("under it SCL-FT") for name in names)


def test_a_head_is_solved_after_the_fits_of_a_cell() -> None:
    plain = MethodSpec(method="SkipConnectionFinetuning", learning_rates=[3e-3])
    solved = replace(plain, solve_head={"layers": "later_half", "frozen": True})
    cells = [cell for method in (plain, solved) for cell in make_grid(method).cells()]
    assert "solve_head" not in cells[0].config["method"]
    assert cells[0].run_id != cells[1].run_id
    runs = [run_cell(cell) for cell in cells]
    assert [run.error for run in runs] == [None] * 2
    found = runs[1].readout
    assert {*found["by_heads"]} == {"trained", "solved", "mean"}
    assert found["by_heads"]["trained"] == pytest.approx(runs[0].val_accuracy)
    assert runs[1].val_accuracy == found["by_heads"][found["taken"]]
    assert runs[1].learning_rates == {"0.003": runs[1].val_accuracy}
    assert (runs[1].accuracy or 0) > (runs[0].accuracy or 0)
    assert runs[0].readout == {}
    assert [*variant_labels(runs).values()] == ["SCL-FT", "SCL-FT, head solved on later_half, frozen True"]


@pytest.mark.slow
def test_folds_choose_rates_by_the_trained_head_and_leave_the_mean_unjudged() -> None:
    method = MethodSpec(method="SkipConnectionFinetuning", learning_rates=[1e-3, 3e-3], solve_head="later_half")
    (cell,) = make_grid(method, choice="folds", folds=2, extend_rates=False).cells()
    run = run_cell(cell)
    assert run.error is None
    assert run.readout["taken"] == "mean"
    assert "by_heads" not in run.readout


@pytest.mark.parametrize(
    ("method", "solve_head", "message"),
    [
        ("SkipConnectionFinetuning", "auto", "layers='auto' is chosen for a frozen network"),
        ("SkipConnectionFinetuning", {"frozen": True}, "frozen=True is of layers of the network as it was"),
        ("SkipConnectionFinetuning", {"frozn": True}, "unexpected keyword argument 'frozn'"),
        ("SkipConnectionFinetuning", "layer9", "test_resnet: unknown layer 'layer9'"),
        ("LayerReadout", True, "solve_head comes after training, and LayerReadout trains nothing; leave it out"),
    ],
)
def test_a_grid_refuses_heads_that_cannot_be_solved(method: str, solve_head: Any, message: str) -> None:
    rates = [] if method == "LayerReadout" else [3e-3]
    with pytest.raises(ValueError, match=message):
        make_grid(MethodSpec(method=method, learning_rates=rates, solve_head=solve_head))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "blocks.3"}, r"test_resnet: unknown layer 'blocks.3'.*words for groups of layers"),
        ({"layers": ["stem"]}, r"test_resnet: layers=\['stem'\] takes in the stem"),
        ({"layers": [7]}, r"test_resnet: block index 7 is out of range"),
        ({"method": "SkipConnectionFinetuning"}, r"layers='auto' is chosen for a frozen network"),
        ({"layers": "all", "method": "SkipConnectionFinetuning"}, r"LayerReadout needs learning_rates above 0"),
    ],
)
def test_a_grid_refuses_layers_that_no_backbone_has(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(MethodSpec(method="LayerReadout", options=options))
