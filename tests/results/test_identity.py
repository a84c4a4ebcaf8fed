"""One identity of a run: whatever changes its numbers changes its name, its row and what it is merged with."""

import dataclasses
import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nc_finetune.backbones import TimmBackbone
from nc_finetune.report._tables.selectors import selector_regrets
from nc_finetune.report._tables.summary import best_by_network, finished_runs, summarize
from nc_finetune.results.identity import identity_of
from nc_finetune.results.merging import merge_results
from nc_finetune.results.result import Result, read_result, write_result
from nc_finetune.run._cell.outcome import planned_result
from nc_finetune.run.cell import WITHOUT_EFFECT, Cell, Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, HeadSpec, LossSpec, MethodSpec
from nc_finetune.run.specs import AugmentationSpec

CHANNELS_LAST = inspect.signature(TimmBackbone).parameters["channels_last"].default
CELL = Cell(
    backbone=BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0"),
    dataset=DatasetSpec(source="sklearn:digits", name="digits", image_size=32),
    method=MethodSpec(method="SkipConnectionFinetuning", learning_rates=[1e-3]),
    head=HeadSpec(),
    samples_per_class=5,
    seed=0,
    settings=Settings(),
)
# Another value of every field that a cell has: one that is added later has to be named here.
OTHER: dict[str, Any] = {
    "backbone.name": "test_vit",
    "backbone.weights": "default",
    "backbone.key_layer": "layer3.0",
    "backbone.model_options": {"drop_rate": 0.1},
    "backbone.options": {"channels_last": True},
    "dataset.source": "somewhere",
    "dataset.name": "other",
    "dataset.image_size": 64,
    "dataset.val_size": 50,
    "dataset.test_size": 50,
    "dataset.max_test_images": 50,
    "dataset.image_column": "image",
    "dataset.label_column": "label",
    "dataset.on_bad_image": "skip",
    "dataset.balance_classes": True,
    "dataset.group": "plant",
    "dataset.augmentation": AugmentationSpec(),
    "dataset.samples_per_class": [5],
    "method.method": "LayerFinetuning",
    "method.learning_rates": [1e-3, 1e-2],
    "method.options": {"scale": "matched"},
    "method.heads": [HeadSpec()],
    "method.solve_head": True,
    "method.augment": True,
    "method.pretrained": False,
    "method.candidates": {"join": ["feature", "before_norm"]},
    "head.head": "CosineHead",
    "head.options": {"bias": False},
    "loss.loss": "FocalLoss",
    "loss.options": {"label_smoothing": 0.1},
    "samples_per_class": 0.5,
    "seed": 1,
    "settings.epochs": 3,
    "settings.batch_size": 16,
    "settings.head_learning_rate": 0.5,
    "settings.normalize": "classes",
    "settings.num_workers": 2,
    "settings.count_flops": True,
    "choice.by": "folds",
    "choice.folds": 3,
    "choice.extend_rates": True,
    "cache": False,
}


def fields_of(spec: Any, prefix: str = "") -> Iterator[str]:
    for part in dataclasses.fields(spec):
        value = getattr(spec, part.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{part.name}.")
        else:
            yield f"{prefix}{part.name}"


def changed(path: str, value: Any, cell: Cell = CELL) -> Cell:
    part, _, name = path.rpartition(".")
    return replace(cell, **({part: replace(getattr(cell, part), **{name: value})} if part else {name: value}))


def finished(cell: Cell, **fields: Any) -> Result:
    """Return what a run of a cell would have come to."""
    known = {"provenance": {"data_fingerprint": "d" * 32, "weights_hash": "w" * 64}, "accuracy": 50.0, "nc1": 1.0}
    return replace(planned_result(cell), **{**known, **fields})


@pytest.mark.parametrize("path", list(fields_of(CELL)))
def test_every_field_of_a_cell_is_part_of_its_name_and_its_result_or_changes_no_number(path: str) -> None:
    # What the images allow has an effect where a method augments.
    cell = changed("method.augment", True) if path == "dataset.augmentation" else CELL
    other = changed(path, OTHER[path], cell)
    is_the_same = path in WITHOUT_EFFECT
    assert (other.run_id == cell.run_id) == is_the_same
    assert (other.config == cell.config) == is_the_same
    assert (identity_of(finished(other)) == identity_of(finished(cell))) == (is_the_same or path == "dataset.source")


_NO_ROWS = ("seed", "settings.normalize", "dataset.source", "dataset.augmentation")  # the last: one for a data set


@pytest.mark.parametrize("path", sorted({*OTHER} - {*WITHOUT_EFFECT, *_NO_ROWS}))
def test_runs_that_differ_in_any_field_are_rows_of_their_own_with_names_of_their_own(path: str) -> None:
    runs = [finished(CELL), finished(changed(path, OTHER[path]), seed=1)]
    rows = summarize(runs)
    assert [row.seeds for row in rows] == [1, 1]
    assert len({(row.group.label, row.label) for row in rows}) == 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["data_fingerprint", "weights_hash"])
def test_runs_on_other_content_are_rows_of_their_own_that_say_so(name: str, seed: int) -> None:
    cell = changed("backbone.weights", "default")
    other = finished(cell, seed=seed, run_id="other")
    other.provenance[name] = "0123456789"
    rows = summarize([finished(cell), other])
    assert [row.seeds for row in rows] == [1, 1]
    assert "01234567" in " ".join(row.group.label for row in rows)


def test_random_weights_are_those_of_the_seed() -> None:
    runs = [finished(replace(CELL, seed=seed)) for seed in (0, 1)]
    runs[1].provenance["weights_hash"] = "other"
    assert [row.seeds for row in summarize(runs)] == [2]


def test_the_place_of_the_images_does_not_matter_where_their_content_is_known() -> None:
    moved = changed("dataset.source", "elsewhere")
    assert [row.seeds for row in summarize([finished(CELL), finished(replace(moved, seed=1))])] == [2]
    unknown = [finished(cell, provenance={}) for cell in (CELL, replace(moved, seed=1))]
    assert [row.seeds for row in summarize(unknown)] == [1, 1]


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("method.options", {}, {"scale": 1.0, "join": "feature"}),
        ("method.options", {"scale": 2}, {"scale": 2.0}),
        ("method.options", {"scale": 2.0, "skip_layers": ["layer1.0"]}, {"skip_layers": ("layer1.0",), "scale": 2}),
        ("method.learning_rates", [1], [1.0]),
        ("head.options", {}, {"bias": True}),
        ("dataset.test_size", 50, 50.0),
        ("dataset.image_size", 224, DatasetSpec(source="s").image_size),
        ("backbone.options", {}, {"channels_last": CHANNELS_LAST}),
        ("loss", LossSpec(loss="CrossEntropyLoss"), LossSpec(loss="CrossEntropyLoss", options={"label_smoothing": 0})),
        (
            "loss",
            LossSpec(loss="ClassBalanced", options={"loss": "FocalLoss"}),
            LossSpec(loss="ClassBalanced", options={"loss": {"loss": "FocalLoss", "options": {"gamma": 2}}}),
        ),
        (
            "head",
            HeadSpec(head="BottleneckHead", options={"head": "CosineHead"}),
            HeadSpec(head="BottleneckHead", options={"head": {"head": "CosineHead"}}),
        ),
    ],
)
def test_cells_that_are_equal_once_they_are_resolved_have_one_identity(path: str, one: Any, other: Any) -> None:
    cells = [changed(path, value) for value in (one, other)]
    assert cells[0].run_id == cells[1].run_id
    assert cells[0].config == cells[1].config


def test_a_key_layer_does_not_name_a_run_that_tunes_no_block() -> None:
    probe = changed("method", MethodSpec(method="LinearProbe", learning_rates=[1e-3]))
    assert changed("backbone.key_layer", None, probe).run_id == probe.run_id


def test_a_config_survives_the_file(tmp_path: Path) -> None:
    cell = changed("method.options", {"scale": "matched"})
    assert read_result(write_result(finished(cell), tmp_path)).config == cell.config


def test_options_of_two_parts_with_one_name_are_both_kept() -> None:
    cell = changed("backbone.model_options", {"scale": 3.0}, changed("method.options", {"scale": 2.0}))
    cell = changed("backbone.options", {"scale": 4.0}, cell)
    assert planned_result(cell).options == {"scale": 2, "model.scale": 3, "backbone.scale": 4}


# Merging


def merged(tmp_path: Path, *runs: Result) -> tuple[list[Result], list[str]]:
    folders = [tmp_path / str(place) for place in range(len(runs))]
    for run, folder in zip(runs, folders, strict=True):
        write_result(run, folder / "results")
    return merge_results(folders)


@pytest.mark.parametrize("path", ["dataset.image_size", "settings.batch_size", "dataset.val_size", "loss.loss"])
def test_runs_of_other_settings_are_no_duplicates(tmp_path: Path, path: str) -> None:
    runs, problems = merged(tmp_path, finished(CELL), finished(changed(path, OTHER[path])))
    assert (len(runs), problems) == (2, [])


def test_runs_of_one_name_on_other_content_both_stay_and_are_named(tmp_path: Path) -> None:
    runs, problems = merged(tmp_path, finished(CELL), finished(CELL, provenance={"data_fingerprint": "other"}))
    assert len({run.run_id for run in runs}) == len(runs) == 2
    assert "has another content" in problems[0]
    assert [row.seeds for row in summarize(runs)] == [1, 1]


def test_the_same_run_in_two_folders_counts_once(tmp_path: Path) -> None:
    runs, problems = merged(tmp_path, finished(CELL), finished(CELL, accuracy=1.0))
    assert [run.accuracy for run in runs] == [50.0]
    assert [problem.rpartition(" ")[0].endswith("(accuracy 50 and") for problem in problems] == [True]


def test_a_run_that_failed_makes_room_for_one_that_did_not(tmp_path: Path) -> None:
    lost = finished(CELL, status="failed", provenance={}, accuracy=None)
    runs, problems = merged(tmp_path, lost, finished(CELL), lost)
    assert ([run.status for run in runs], problems) == (["ok"], [])


def as_version_1(path: Path) -> None:
    """Take out of a file what records of version 1 do not say."""
    record = json.loads(path.read_text())
    later = ("config", "split_sizes", "doubled_images", "doubled_examples", "untrained_classes", "notes")
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in later} | {"schema_version": 1}))


def test_an_older_record_beside_a_newer_one_is_not_averaged_with_it_and_it_is_said(tmp_path: Path) -> None:
    as_version_1(write_result(finished(CELL), tmp_path / "old" / "results"))
    write_result(finished(CELL), tmp_path / "new" / "results")
    runs, problems = merge_results([tmp_path / "old", tmp_path / "new"])
    assert "one of them does not say" in problems[0]
    assert sorted(row.group.dataset for row in summarize(runs)) == ["digits", "digits (settings not recorded)"]


def test_older_records_are_rows_as_before(tmp_path: Path) -> None:
    for seed in (0, 1):
        as_version_1(write_result(finished(replace(CELL, seed=seed)), tmp_path / "results"))
    (row,) = summarize(merge_results([tmp_path])[0])
    assert (row.seeds, row.group.dataset) == (2, "digits")


# Averages


@pytest.mark.parametrize(
    "path", ["loss.loss", "head.head", "settings.epochs", "backbone.options", "dataset.image_size"]
)
def test_the_best_of_a_network_is_of_one_variant(path: str) -> None:
    runs = [finished(CELL, accuracy=80.0), finished(changed(path, OTHER[path]), accuracy=40.0)]
    assert best_by_network(runs) == {("test_resnet", None): 80.0}


def test_other_weights_are_another_network() -> None:
    tuned = changed("backbone.weights", "default")
    runs = [finished(CELL, accuracy=40.0), finished(tuned, accuracy=80.0)]
    assert best_by_network(runs) == {("test_resnet", None): 40.0, ("test_resnet", "default"): 80.0}


@pytest.mark.parametrize("path", ["dataset.name", "dataset.test_size", "samples_per_class"])
def test_networks_are_compared_on_one_task(path: str) -> None:
    with pytest.raises(ValueError, match="one data set and training size, got digits"):
        best_by_network([finished(CELL), finished(changed(path, OTHER[path]))])


@pytest.mark.parametrize("path", ["loss.loss", "head.head", "settings.batch_size", "dataset.image_size"])
def test_choices_of_a_key_layer_are_compared_with_blocks_of_the_same_task(path: str) -> None:
    rules = {"block": "layer2.0", "seconds": 1.0, "other_rules": {}}
    auto = finished(changed("backbone.key_layer", "auto"), key_layer="layer2.0", selection=rules)
    blocks = [finished(changed("backbone.key_layer", name), val_accuracy=50.0) for name in ("layer2.0", "layer3.0")]
    better = [replace(finished(changed(path, OTHER[path])), key_layer=run.key_layer, accuracy=90.0) for run in blocks]
    found = selector_regrets(finished_runs([auto, *blocks, *better]))
    assert found["short trials"]["regret"] == [0.0]
