"""Rates, key layers and epochs of a grid chosen by folds of the training images, and rates beyond their list."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nc_finetune.classifier import ImageClassifier
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.data.labelled_images import LabelledImages
from nc_finetune.results.result import Result, read_results, write_result
from nc_finetune.run import plan, runner
from nc_finetune.run._cell import training
from nc_finetune.run._cell.outcome import planned_result
from nc_finetune.run._cell.run import load_data, run_cell
from nc_finetune.run.cell import Cell, Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec, read_grid
from nc_finetune.run.plan import plan_grid
from nc_finetune.run.runner import run_grid
from nc_finetune.selection import CrossValidation, HeldOut

DIGITS = DatasetSpec(source="sklearn:digits", name="digits", image_size=32, test_size=60)


def make_grid(method: str = "LinearProbe", rates: tuple[float, ...] = (1e-3, 1e-2), **changes: Any) -> Grid:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        "datasets": [DIGITS],
        "methods": [MethodSpec(method=method, learning_rates=list(rates))],
        "samples_per_class": [4],
        "settings": Settings(epochs=2),
        "choice": "folds",
        "folds": 2,
    }
    return Grid(**{**parts, **changes})


def make_cell(*arguments: Any, **options: Any) -> Cell:
    (cell,) = make_grid(*arguments, **options).cells()
    return cell


def quiet() -> Console:
    return Console(file=io.StringIO(), width=1000)


@pytest.fixture(scope="module")
def finished() -> Result:
    return run_cell(make_cell("SkipConnectionFinetuning", extend_rates=False))


def test_a_result_says_how_folds_chose(finished: Result, tmp_path: Path) -> None:
    assert (finished.status, finished.error) == ("ok", None)
    assert finished.choice.keys() == {
        *("by", "folds", "images", "epochs", "scores", "stopped_after", "extensions", "seconds")
    }
    assert (finished.choice["by"], finished.choice["folds"], finished.choice["images"]) == ("folds", 2, 40)
    assert finished.choice["epochs"] == [1, 2]
    rate = f"{finished.learning_rate:g}"
    assert finished.epochs == finished.choice["stopped_after"][rate]
    assert finished.val_accuracy == finished.learning_rates[rate] == max(finished.learning_rates.values())  # type: ignore[type-var]
    assert finished.val_accuracy == finished.choice["scores"][rate][(finished.epochs or 0) - 1]
    assert len(finished.learning_curve["train_loss"]) == finished.epochs
    assert 0 < finished.choice["seconds"] < (finished.run_seconds or 0)
    write_result(finished, tmp_path)
    assert read_results(tmp_path)[0].choice == finished.choice


def test_all_images_of_the_sample_are_trained_on_and_none_is_held_out(finished: Result) -> None:
    assert finished.split_sizes == {"train": 40, "val": 0, "test": 60}
    assert finished.nc1 is not None
    assert finished.accuracy is not None


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(finished: Result) -> None:
    again = run_cell(make_cell("SkipConnectionFinetuning", extend_rates=False))
    timeless: dict[str, Any] = {
        "epoch_seconds": None,
        "peak_memory_bytes": None,
        "run_seconds": None,
        "processor_seconds": None,
    }
    first, second = (replace(run, **timeless, choice={**run.choice, "seconds": 0.0}) for run in (finished, again))
    assert first == second


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Note which rows of which table are decoded."""
    found: list[tuple[int, int]] = []
    decoded = LabelledImages._decoded

    def noted(images: LabelledImages, row: int) -> Any:
        found.append((id(images.table), row))
        return decoded(images, row)

    load_data.cache_clear()
    monkeypatch.setattr(LabelledImages, "_decoded", noted)
    yield found
    load_data.cache_clear()


@pytest.mark.parametrize(("key_layer", "val_size"), [("layer2.0", None), ("auto", 30)])
def test_nothing_outside_of_the_training_sample_is_read_before_the_test(
    key_layer: str, val_size: int | None, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_cell(
        "LayerFinetuning",
        (1e-2,),
        extend_rates=False,
        backbones=[BackboneSpec(name="test_resnet", weights=None, key_layer=key_layer)],
        datasets=[replace(DIGITS, val_size=val_size)],
        cache=False,
    )
    before: list[tuple[int, int]] = []
    outcome = training.CrossValidation.refit

    def at_the_end(judging: CrossValidation, *arguments: Any) -> Any:
        found = outcome(judging, *arguments)
        before.extend(reads)
        return found

    monkeypatch.setattr(training.CrossValidation, "refit", at_the_end)
    result = run_cell(cell)
    assert result.error is None
    data, _ = load_data(*load_arguments(cell))
    images = data.images("train")
    assert {*before} == {(id(images.table), row) for row in images.indices}
    assert {row for _, row in reads} == {*images.indices, *data.images("test").indices}
    if key_layer == "auto":
        assert result.selection["other_rules"].keys() == {"argmin NC1", "Auto-RGN", "middle block"}
        assert result.key_layer == result.selection["block"]


def load_arguments(cell: Cell) -> tuple[Any, ...]:
    settings, dataset = cell.settings, cell.data_spec
    return (dataset, dataset.location, cell.samples_per_class, cell.seed, settings.batch_size, settings.num_workers)


def held_out_scores(monkeypatch: pytest.MonkeyPatch, score: Any) -> list[str]:
    """Let candidates be judged by their names, without training; return these."""
    judged: list[str] = []

    def judge(judging: CrossValidation, name: str, *_: Any) -> HeldOut:
        judged.append(name)
        right = torch.arange(100) < 100 * score(float(name.split()[-1]))
        logits = torch.stack([right.float(), 1 - right.float()], 1)[None]
        rows = torch.arange(100)
        return HeldOut(logits, torch.zeros(100, dtype=torch.int64), rows, rows % 2, (1,))

    monkeypatch.setattr(CrossValidation, "judge", judge)
    return judged


def test_rates_are_extended_until_the_best_lies_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = held_out_scores(monkeypatch, lambda rate: 0.9 - 10 * abs(rate - 0.03))
    result = run_cell(make_cell())
    assert judged == [f"learning rate {rate}" for rate in ("0.001", "0.01", "0.03", "0.09")]
    assert (result.learning_rate, result.choice["extensions"], result.bracketed) == (0.03, 2, True)


@pytest.mark.slow
def test_rates_may_be_extended_on_the_validation_split_too() -> None:
    dataset = replace(DIGITS, val_size=50)
    more = run_cell(make_cell(datasets=[dataset], choice="validation", folds=5, extend_rates=True))
    assert more.choice["by"] == "validation"
    assert more.choice["extensions"] == len(more.learning_rates) - 2 > 0
    best = max(value for value in more.learning_rates.values() if value is not None)
    assert more.val_accuracy == more.learning_rates[f"{more.learning_rate:g}"] == best


@pytest.mark.slow
def test_a_rate_that_diverges_on_a_fold_is_not_taken() -> None:
    result = run_cell(make_cell("FullFinetuning", (1e30, 1e-3), extend_rates=False))
    assert result.status == "ok"
    assert result.learning_rates["1e+30"] is None
    assert result.learning_rate == 1e-3
    assert result.choice["scores"].keys() == {"0.001"}


def test_where_all_diverge_the_result_says_so_and_every_fit_counts() -> None:
    counted: list[int] = []
    cell = make_cell("FullFinetuning", (1e30, 1e31), extend_rates=False)
    result = run_cell(cell, lambda: counted.append(1))
    assert (result.status, result.learning_rate) == ("diverged", None)
    assert len(counted) == cell.fits == 5


def test_a_fold_that_fails_is_a_result_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Cell, "build_model", fails)
    result = run_cell(make_cell())
    assert result.status == "failed"
    assert "fold 1 of 2, learning rate 0.001: RuntimeError: the device is gone" in str(result.error)


def test_one_image_a_class_is_a_clear_message() -> None:
    result = run_cell(make_cell(samples_per_class=[1]))
    assert result.status == "failed"
    assert "folds need a class with two images at least" in str(result.error)


class Killed(BaseException):
    """The process ends."""


@pytest.mark.slow
def test_a_kill_between_folds_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, builds, build = make_grid("LayerFinetuning", extend_rates=False), [], Cell.build_model
    (whole,) = run_grid(grid, tmp_path / "whole", quiet())

    def killed(cell: Cell, *arguments: Any, **named: Any) -> Any:
        builds.append(1)
        if len(builds) == 4:
            raise Killed
        return build(cell, *arguments, **named)

    monkeypatch.setattr(Cell, "build_model", killed)
    with pytest.raises(Killed):
        run_grid(grid, tmp_path / "out", quiet())
    (kept,) = (tmp_path / "out" / "unfinished").iterdir()
    assert (kept.name, len([*kept.iterdir()])) == (whole.run_id, 3)
    (again,) = run_grid(grid, tmp_path / "out", quiet())
    assert len(builds) == 6  # one fold and the refit
    assert not kept.parent.exists()
    assert (again.accuracy, again.learning_rates, again.epochs) == (whole.accuracy, whole.learning_rates, whole.epochs)
    assert again.choice["seconds"] > 0


def test_what_was_kept_of_other_cells_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unfinished" / "another").mkdir(parents=True)
    monkeypatch.setattr(runner, "run_cell", lambda cell, advance, progress: planned_result(cell))
    run_grid(make_grid(), tmp_path, quiet())
    assert not (tmp_path / "unfinished").exists()


def test_a_readout_needs_no_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossValidation, "judge", None)
    cell = make_cell(methods=[MethodSpec(method="LayerReadout")])
    result = run_cell(cell)
    assert (result.status, result.choice, result.learning_rates, result.val_accuracy) == ("ok", {}, {}, None)
    assert result.readout["leave_one_out_accuracy"] > 0
    assert result.split_sizes["val"] == 0
    assert cell.fits == 1


@pytest.mark.slow
def test_a_solved_head_is_joined_unjudged_after_the_refit() -> None:
    method = MethodSpec(method="LayerFinetuning", learning_rates=[1e-2], solve_head=True)
    result = run_cell(make_cell(methods=[method], extend_rates=False))
    assert (result.error, result.readout["taken"]) == (None, "mean")
    assert "by_heads" not in result.readout


@pytest.mark.slow
def test_the_test_split_is_touched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    setup = ImageClassifier.setup
    monkeypatch.setattr(ImageClassifier, "setup", lambda self, stage: (stages.append(stage), setup(self, stage))[1])
    run_cell(make_cell(rates=(1e-3,), extend_rates=False))
    assert stages == ["fit", "fit", "fit", "test"]


# Grids


def test_cells_of_earlier_grids_keep_their_names() -> None:
    usual = {"choice": "validation", "folds": 5, "datasets": [replace(DIGITS, val_size=50)]}
    assert make_cell(**usual).run_id == "digits-test_resnet-linear_probe-n4-s0-5d27c57a"
    assert "choice" not in make_cell(**usual).config
    assert make_cell(**usual, refit=False, extend_rates=False).run_id == make_cell(**usual).run_id


def test_the_choice_is_part_of_the_name() -> None:
    changes: list[dict[str, Any]] = [{}, {"folds": 3}, {"extend_rates": False}, {"choice": "validation", "folds": 5}]
    assert len({make_cell(**change).run_id for change in changes}) == len(changes)
    assert make_cell(extend_rates=True, refit=True).run_id == make_cell().run_id
    assert make_cell(datasets=[replace(DIGITS, val_size=0)]).run_id == make_cell().run_id
    assert make_cell().config["choice"] == {"by": "folds", "folds": 2, "extend_rates": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice": "fold"}, "unknown choice 'fold'; did you mean 'folds'"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"refit": False}, "choice: folds leaves no model that has seen all training images, so that refit must be tr"),
        ({"choice": "validation", "folds": 5, "refit": True}, "choice: validation keeps the model that it judged"),
        ({"choice": "validation", "folds": 3}, "choice: validation has no folds, got folds: 3"),
        (
            {"choice": "validation", "folds": 5, "datasets": [replace(DIGITS, val_size=0)]},
            "digits: val_size 0 leaves nothing to choose by; hold images out, or say choice: folds",
        ),
        (
            {"methods": [MethodSpec(method="LayerReadout", learning_rates=[1e-3])]},
            r"LayerReadout trains nothing, so that its learning_rates, \[0.001\], would choose nothing; leave them out",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(**changes)


def test_one_rate_needs_no_validation_images() -> None:
    cell = make_cell(rates=(1e-3,), choice="validation", folds=5, datasets=[replace(DIGITS, val_size=0)])
    result = run_cell(cell)
    assert (result.status, result.learning_rate, result.val_accuracy) == ("ok", 1e-3, None)


def test_yaml_says_all_of_it(tmp_path: Path) -> None:
    text = find_recipe("quickstart").read_text()
    (tmp_path / "grid.yaml").write_text(f"{text}\nchoice: folds\nfolds: 4\nrefit: true\nextend_rates: false\n")
    choice = read_grid(tmp_path / "grid.yaml").cells()[0].choice
    assert (choice.by, choice.folds, choice.extend_rates) == ("folds", 4, False)
    (tmp_path / "grid.yaml").write_text(f"{text}\nchoice: folds\n")
    assert read_grid(tmp_path / "grid.yaml").cells()[0].choice.extend_rates


def test_fits_are_counted_and_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_step_seconds", lambda *_: (1.0, 0.25))  # of a batch, trained on and judged
    grid = make_grid("LayerFinetuning")
    assert [cell.fits for cell in grid.cells()] == [5]
    refit, fold, test = 2 * 2 * 1.0 + 2 * 0.25, 2 * 2 * (0.5 * 1.0 + 0.5 * 0.25), 2 * 0.25
    assert plan_grid(grid, tmp_path).seconds == pytest.approx(refit + 4 * fold + test)
