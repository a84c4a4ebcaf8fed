"""What stands when a grid is run again: runs on the images and weights that are there now, and no others."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quick_first
from made_up_images import write_images
from PIL import Image
from rich.console import Console

from nc_finetune.backbones import TimmBackbone
from nc_finetune.report._tables.summary import summarize
from nc_finetune.report.report import write_report
from nc_finetune.results.merging import merge_results
from nc_finetune.results.result import Result, read_result
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec
from nc_finetune.run.plan import plan_grid
from nc_finetune.run.runner import run_grid


def write_pets(folder: Path, shade: int = 0) -> Path:
    for name, level in (("cat", 40), ("dog", 200)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for item in range(12):
            image = Image.new("L", (16, 16), level)
            image.putpixel((item, 0), shade)
            image.save(folder / name / f"{item}.bmp")  # the same size whatever is in it
    return folder


def make_grid(source: str, seeds: int = 1, weights: str | None = None, **changes: Any) -> Grid:
    dataset = DatasetSpec(source=source, name="pets", image_size=32, val_size=4, test_size=6)
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=weights)],
        "datasets": [dataset],
        "methods": [MethodSpec(method="LinearProbe", learning_rates=[1e-3])],
        "seeds": list(range(seeds)),
        "settings": Settings(epochs=1),
    }
    return Grid(**{**parts, **changes})


def run(grid: Grid, out: Path) -> tuple[list[Result], str]:
    terminal = io.StringIO()
    return run_grid(grid, out, Console(file=terminal, width=1000)), terminal.getvalue()


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(make_grid(str(write_pets(Path("pets")))), Path("out"))
    return folder


@pytest.fixture
def finished(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Result]:
    """Return a folder of images, that of a run on them, and its result: copies, in the folder that one is in."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (file,) = Path("out/results").iterdir()
    return Path("pets"), Path("out"), read_result(file)


def outdated(out: Path) -> list[Path]:
    return sorted((out / "results").glob("*.outdated*"))


def rewrite_in_place(pets: Path) -> None:
    times = {path: path.stat() for path in pets.rglob("*.bmp")}
    write_pets(pets, shade=99)
    for path, state in times.items():
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def swap_two(pets: Path) -> None:
    first, second = pets / "cat/0.bmp", pets / "dog/0.bmp"
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])


CHANGES: dict[str, Callable[[Path], Any]] = {
    "rewritten at equal size and time": rewrite_in_place,
    "two swapped": swap_two,
    "one more": lambda pets: shutil.copy(pets / "cat/0.bmp", pets / "cat/99.bmp"),
    "one less": lambda pets: (pets / "cat/3.bmp").unlink(),
    "another folder of that name": lambda pets: (shutil.rmtree(pets), write_pets(pets, shade=7)),
}


@pytest.mark.parametrize("change", quick_first(2, CHANGES))
def test_runs_on_images_that_were_replaced_are_set_aside_and_run_again(
    finished: tuple[Path, Path, Result], change: str
) -> None:
    pets, out, before = finished
    CHANGES[change](pets)
    results, said = run(make_grid(str(pets), seeds=2), out)
    assert before.provenance["data_fingerprint"] not in {run.provenance["data_fingerprint"] for run in results}
    assert f"{before.run_id} is of other images than those that are now in {pets}" in said
    assert [json.loads(path.read_text())["accuracy"] for path in outdated(out)] == [before.accuracy]
    assert [row.seeds for row in summarize(merge_results([out])[0])] == [2]


def test_a_variable_that_points_elsewhere_is_noticed_and_equal_images_there_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [write_pets(tmp_path / name, shade) for name, shade in (("a", 0), ("b", 0), ("c", 5))]
    moved = []
    for place in places:
        monkeypatch.setenv("PETS", str(place))
        run(make_grid("${PETS}"), tmp_path / "out")
        moved.append(len(outdated(tmp_path / "out")))
    assert moved == [0, 0, 1]


def test_other_weights_in_one_file_are_noticed(tmp_path: Path) -> None:
    weights = tmp_path / "net.pth"
    for place in range(3):
        if place != 1:
            torch.manual_seed(place)
            torch.save(TimmBackbone("test_resnet", weights=None).model.state_dict(), weights)
        _, said = run(make_grid(str(write_pets(tmp_path / "pets")), weights=str(weights)), tmp_path / "out")
        assert ("is of other weights" in said) == (place == 2)
    assert len(outdated(tmp_path / "out")) == 1


def test_random_weights_of_a_control_are_not_compared_and_nothing_is_with_them(tmp_path: Path) -> None:
    weights = tmp_path / "net.pth"
    torch.save(TimmBackbone("test_resnet", weights=None).model.state_dict(), weights)
    control = MethodSpec(method="Control", options={"kind": "nearest_class_mean"}, pretrained=False)
    methods = [control, replace(control, pretrained=True)]  # what is random comes first
    grid = make_grid(str(write_pets(tmp_path / "pets")), weights=str(weights), methods=methods)
    run(grid, tmp_path / "out")
    assert not plan_grid(grid, tmp_path / "out").planned


def test_nothing_that_was_set_aside_is_overwritten(finished: tuple[Path, Path, Result]) -> None:
    pets, out, _ = finished
    for shade in (1, 2):
        write_pets(pets, shade)
        run(make_grid(str(pets)), out)
    assert len(outdated(out)) == 2


def test_a_plan_tells_what_would_be_set_aside(finished: tuple[Path, Path, Result]) -> None:
    pets, out, _ = finished
    write_pets(pets, shade=1)
    plan = plan_grid(make_grid(str(pets)), out)
    assert (len(plan.planned), len(plan.state.outdated)) == (1, 1)
    assert not outdated(out)


def test_runs_whose_images_are_gone_stand_and_it_is_said(
    finished: tuple[Path, Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pets, out, before = finished

    def unreachable(source: str) -> Any:
        raise ConnectionError(f"Couldn't reach {source!r} on the Hub")

    monkeypatch.setattr("nc_finetune.data.sources.locations._load_hub", unreachable)
    grid = make_grid(str(pets))
    shutil.rmtree(pets)
    (after,), said = run(grid, out)
    assert after == before
    assert "cannot be compared with those of earlier runs, which stand" in said


def as_version_1(path: Path, **provenance: str) -> None:
    record = json.loads(path.read_text()) | {"schema_version": 1}
    for name in ("config", "split_sizes", "doubled_images", "doubled_examples", "untrained_classes", "notes"):
        del record[name]
    record["provenance"] |= provenance
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("known", [True, False])
def test_an_older_record_stands_where_it_tells_which_images_it_is_of(
    finished: tuple[Path, Path, Result], known: bool
) -> None:
    pets, out, before = finished
    path = out / "results" / f"{before.run_id}.json"
    as_version_1(path, **({} if known else {"data_fingerprint": "by names and sizes"}))
    _, said = run(make_grid(str(pets)), out)
    assert read_result(path).config == before.config
    assert len(outdated(out)) == (not known)
    assert ("is of an older version, which does not tell" in said) == (not known)


def test_a_run_of_other_defaults_is_set_aside(finished: tuple[Path, Path, Result]) -> None:
    pets, out, before = finished
    path = out / "results" / f"{before.run_id}.json"
    record = json.loads(path.read_text())
    record["config"]["head"]["defaults"]["bias"] = False
    path.write_text(json.dumps(record))
    _, said = run(make_grid(str(pets)), out)
    assert "was run with another head bias" in said


def test_one_source_at_two_sizes_ends_with_a_report(tmp_path: Path) -> None:
    pets = str(write_pets(tmp_path / "pets"))
    sizes = [replace(make_grid(pets).datasets[0], image_size=size) for size in (32, 48)]
    results, _ = run(make_grid(pets, datasets=sizes), tmp_path / "out")
    report = write_report(results, tmp_path / "out").markdown.read_text()
    assert "pets (image size 32)" in report
    assert "pets (image size 48)" in report


# What a result says of its data


def test_doubled_images_split_sizes_and_classes_are_in_result_and_report(tmp_path: Path) -> None:
    pets = write_pets(tmp_path / "pets")
    for item in range(1, 12):
        shutil.copy(pets / "cat/0.bmp", pets / f"cat/{item}.bmp")
    (result, other), said = run(make_grid(str(pets), seeds=2), tmp_path / "out")
    assert result.split_sizes == {"train": 14, "val": 4, "test": 6}
    assert result.doubled_images == 5  # of twelve cats, two are for validation and three for the test
    assert re.search(r"cat/\d+\.bmp \(train\) = .*cat/\d+\.bmp \((val|test)\)", result.doubled_examples[0])
    assert "images are in two splits" in result.notes[0]
    assert said.count(result.notes[0]) == 1
    report = write_report([result, other], tmp_path / "out").markdown.read_text()
    assert "| pets" in report.partition("## Data")[2]
    assert "images are in two splits" in report.partition("## Notes on the data")[2]


def missing_class(pets: Path) -> DatasetSpec:
    """Return data in which a class has images in the test split alone."""
    for split in ("train", "val", "test"):
        write_pets(pets / split)
    write_images(pets, "test/eel/1.png", "test/eel/2.png")
    return DatasetSpec(source=str(pets), name="pets", image_size=32)


def undecodable_class(pets: Path) -> DatasetSpec:
    """Return data in which no training image of a class decodes."""
    spec = missing_class(pets)
    write_images(pets, "val/eel/1.png")
    (pets / "train/eel").mkdir()
    (pets / "train/eel/1.png").write_bytes(b"no image")
    return replace(spec, on_bad_image="skip")


@pytest.mark.parametrize("make", [missing_class, undecodable_class])
def test_accuracy_stands_where_only_the_measure_is_undefined(
    tmp_path: Path, make: Callable[[Path], DatasetSpec]
) -> None:
    spec = make(tmp_path / "pets")
    (result,), said = run(make_grid(spec.source, datasets=[spec]), tmp_path / "out")
    assert (result.status, result.error) == ("ok", None)
    assert result.accuracy is not None
    assert result.nc1 is None
    assert result.untrained_classes == (["eel"] if make is missing_class else [])
    assert "NC1 is undefined: no training image of 'eel'" in result.notes[-1]
    assert result.notes[-1] in said
    assert summarize([result])[0].accuracy == result.accuracy


def test_files_that_were_left_out_are_noted_in_every_result_and_said_once(tmp_path: Path) -> None:
    pets = write_pets(tmp_path / "pets")
    (pets / "cat" / "raw.nef").write_bytes(b"no image that Pillow reads")
    results, said = run(make_grid(str(pets), seeds=2), tmp_path / "out")
    assert [any("raw.nef" in note for note in result.notes) for result in results] == [True, True]
    assert said.count("raw.nef") == 1
