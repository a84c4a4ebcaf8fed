"""Files that nobody would write: each is read, or refused with a ValueError, and nothing else happens."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from broken_images import encoded, photo
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up_images import idx, write_images

from nc_finetune.cli import main
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.columns.label_tables import LabelTable
from nc_finetune.data.sources.idx_files import read_idx_folder
from nc_finetune.data.splits.file import read_splits
from nc_finetune.report.content import build_report
from nc_finetune.report.markdown import render_markdown
from nc_finetune.report.spreadsheet import render_csv
from nc_finetune.results.result import Result, read_result, write_result
from nc_finetune.run.grid import read_grid

quick = settings(deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
words = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)
small = st.dictionaries(words, leaves, max_size=3)


@contextlib.contextmanager
def file_of(content: str | bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        yield path


# Results

FIELDS = [name for name in Result.__dataclass_fields__ if name not in ("run_id", "schema_version")]


@quick
@given(st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
def test_results_of_any_content_are_refused(content: bytes) -> None:
    with (
        file_of(content, "run.json") as path,
        pytest.raises(ValueError, match=r"run\.json (is not|has schema version)"),
    ):
        read_result(path)


@quick
@given(st.dictionaries(st.sampled_from([*FIELDS, "unknown"]), anything, max_size=5))
def test_results_with_odd_fields_are_read_or_refused(fields: dict[str, Any]) -> None:
    record = {"run_id": "a", "backbone": "b", "weights": None, "dataset": "d", "method": "m", "schema_version": 1}
    with file_of(json.dumps({**record, **fields}), "run.json") as path:
        try:
            found = read_result(path)
        except ValueError as error:
            assert fields
            assert "not a benchmark result" in str(error)  # noqa: PT017
            return
        assert "unknown" not in fields
        with contextlib.suppress(ValueError):  # conventions that do not go together
            render_markdown(build_report([found]))
            render_csv([found])


HINTS = get_type_hints(Result)


@st.composite
def plausible_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Draw fields that have the right types, and nothing else right about them."""
    names = draw(st.lists(st.sampled_from(FIELDS), max_size=6))
    return {name: draw(small if HINTS[name] == dict[str, Any] else st.from_type(HINTS[name])) for name in names}


@quick
@example({"nc1": 1.6e308})
@example({"nc1": 5e-324})
@given(plausible_fields())
def test_what_is_read_can_be_reported(fields: dict[str, Any]) -> None:
    record = {"run_id": "a", "backbone": "b", "weights": None, "dataset": "d", "method": "m", "schema_version": 1}
    record |= {"accuracy": 50.0, "nc1": 0.5} | fields
    with file_of(json.dumps(finite(record)), "run.json") as path:
        try:
            found = read_result(path)
        except ValueError as error:
            assert "not a benchmark result" in str(error)  # noqa: PT017
            return
    report = build_report([found])
    assert render_markdown(report).startswith("# ")
    assert render_csv([found]).count("\n") >= 2


def finite(value: Any) -> Any:
    """Return what JSON can hold of a value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(part) for part in value]
    return {name: finite(part) for name, part in value.items()} if isinstance(value, dict) else value


@quick
@given(
    accuracy=st.none() | st.floats(),
    layers=st.dictionaries(words, st.none() | st.floats(), max_size=4),
    error=st.none() | words,
    bad=st.lists(words, max_size=3),
)
def test_results_come_back_as_they_were(accuracy: Any, layers: Any, error: Any, bad: Any) -> None:
    result = Result(
        run_id="a", backbone="b", weights=None, dataset="d", method="m",
        accuracy=accuracy, nc1_layers=layers, error=error, bad_images=bad,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        back = read_result(write_result(result, Path(folder)))
    assert (back.accuracy, back.error, back.bad_images) == (finite(accuracy), error, bad)
    assert back.nc1_layers == finite(layers)


# Recipes

GRID: dict[str, Any] = {
    "backbones": [{"name": "test_resnet", "weights": None}],
    "datasets": [{"source": "sklearn:digits", "name": "digits", "image_size": 32}],
    "methods": [{"method": "LinearProbe", "learning_rates": [1e-3]}],
    "samples_per_class": [3],
    "seeds": [0],
    "settings": {"epochs": 1},
}


@settings(quick, max_examples=30)
@given(st.sampled_from([*GRID, "unknown"]), anything)
def test_grids_with_odd_parts_are_read_or_refused(part: str, value: Any) -> None:
    with file_of(yaml.safe_dump({**GRID, part: value}), "grid.yaml") as path, contextlib.suppress(ValueError):
        assert read_grid(path).cells()


@quick
@given(st.binary(max_size=100))
def test_grids_of_any_content_are_refused(content: bytes) -> None:
    with file_of(content, "grid.yaml") as path, pytest.raises(ValueError, match=r"."):
        read_grid(path)


@settings(quick, max_examples=8)
@given(part=st.sampled_from(["model", "data", "trainer"]), name=words, value=anything)
def test_recipes_with_odd_keys_are_refused_without_a_traceback(part: str, name: str, value: Any) -> None:
    recipe = {"data": {"source": "sklearn:digits"}, "model": {"backbone": "test_resnet"}}
    recipe[part] = {**recipe.get(part, {}), f"odd {name}": value}
    with file_of(yaml.safe_dump(recipe), "recipe.yaml") as path:
        assert main(["fit", str(path), "--trainer.fast_dev_run", "true"]) == 2


# Data


@quick
@given(st.binary(max_size=120) | st.binary(max_size=60).map(lambda rest: b"file,label\n1.png,cat\n" + rest))
def test_tables_of_labels_of_any_content(content: bytes) -> None:
    with file_of(content, "labels.csv") as path:
        write_images(path.parent, "1.png", "2.png")
        with contextlib.suppress(ValueError):
            found = LabelTable(path.parent, [Path("1.png"), Path("2.png")]).read({"": path})
            assert all(len(rows) for rows in found.values())


@quick
@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda rest: bytes([0, 0, 8, 3]) + rest))
def test_idx_files_of_any_content(content: bytes) -> None:
    with file_of(content, "train-images-idx3-ubyte") as path:
        labels = path.with_name("train-labels-idx1-ubyte")
        labels.write_bytes(idx(torch.zeros(3, dtype=torch.uint8).numpy()))
        with contextlib.suppress(ValueError):
            found = read_idx_folder(path.parent, [Path(path.name), Path(labels.name)])
            assert len(found["train"]) == 3


@quick
@given(st.binary(max_size=60) | anything.map(lambda value: json.dumps({"format_version": 1, "splits": value}).encode()))
def test_files_of_splits_of_any_content(content: bytes) -> None:
    with file_of(content, "splits.json") as path, pytest.raises(ValueError, match=r"splits\.json"):
        read_splits(path, {})


@settings(quick, max_examples=100)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]),
    cut=st.floats(0, 1),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_decode_or_raise_what_is_caught(kind: str, cut: float, places: list[tuple[float, int]]) -> None:
    content = bytearray(encoded(photo(), kind))
    for place, value in places:
        content[int(place * len(content))] = value
    decode = DecodeAndResize(8)
    try:
        image = decode({"bytes": bytes(content[: int(cut * len(content))]), "path": None})
    except Exception:  # every codec has its own kinds: those of the processes and of the machine are none
        return
    assert image.shape == (3, 8, 8)
