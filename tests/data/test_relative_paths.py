"""Tables that name files: relative to the table, to the source, or whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.ipc
import pytest
from crossed import crossed
from made_up_images import write_images
from pyarrow import parquet

from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.sources.source import load_source

LABELS = ["cat", "dog", "cat"]
STRING = datasets.Value("string")


def write_files(folder: Path, names: list[str]) -> None:
    for value, name in enumerate(names):
        write_images(folder, name, value=value)


def text(names: list[str], column: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({column: names, "label": LABELS[: len(names)]})


def struct(names: list[str], column: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({column: [{"path": name, "bytes": None} for name in names], "label": LABELS})


def declared(names: list[str], column: str) -> datasets.Dataset:
    features = datasets.Features({column: datasets.Image(decode=False), "label": STRING})
    return datasets.Dataset.from_dict(
        {column: [{"path": name, "bytes": None} for name in names], "label": LABELS}, features=features
    )


Make = Callable[[list[str], str], datasets.Dataset]
every_kind = pytest.mark.parametrize("make", [text, struct, declared])


def greys(source: str | Path, split: str = "train") -> list[int]:
    table, decode = load_source(str(source)).splits[split], DecodeAndResize(8)
    return [int(decode(table.encoded(row))[0, 0, 0]) for row in range(len(table.labels))]


def save(rows: datasets.Dataset, path: Path, arrow: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # HF datasets itself would put the files into the table.
    table = rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
    if not arrow:
        parquet.write_table(table, path.with_suffix(".parquet"))
        return
    with (
        pyarrow.OSFile(str(path.with_suffix(".arrow")), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)


@pytest.mark.parametrize(
    ("relative_to", "place", "arrow", "make"),
    crossed(["table", "source"], ["", "tables"], [False, True], [text, struct, declared]),
)
def test_paths_are_relative_to_the_table_or_the_source(
    tmp_path: Path, make: Make, arrow: bool, place: str, relative_to: str
) -> None:
    names = ["images/0.png", "images/1.png", "images/2.png"]
    write_files(tmp_path / (place if relative_to == "table" else ""), names)
    save(make(names, "image"), tmp_path / place / "all", arrow)
    assert greys(tmp_path) == [0, 1, 2]


@every_kind
def test_whole_paths_are_taken_as_they_are(tmp_path: Path, make: Make) -> None:
    write_files(tmp_path / "elsewhere", ["0.png", "1.png", "2.png"])
    save(make([str(tmp_path / f"elsewhere/{row}.png") for row in range(3)], "image"), tmp_path / "data/all", False)
    assert greys(tmp_path / "data") == [0, 1, 2]


@pytest.mark.parametrize("column", ["file_name", "path", "image_path", "img"])
def test_the_column_of_the_files_is_found(tmp_path: Path, column: str) -> None:
    write_files(tmp_path, ["0.png", "1.png", "2.png"])
    save(text(["0.png", "1.png", "2.png"], column), tmp_path / "metadata", False)
    assert greys(tmp_path) == [0, 1, 2]


@every_kind
def test_tables_in_several_folders_each_name_their_own(tmp_path: Path, make: Make) -> None:
    for part in ("a", "b"):
        write_files(tmp_path / part, ["0.png", "1.png", "2.png"])
        save(make(["0.png", "1.png", "2.png"], "image"), tmp_path / part / "all", False)
    table = load_source(str(tmp_path)).splits["train"]
    paths = [Path(str(table.encoded(row)["path"])).relative_to(tmp_path).as_posix() for row in range(6)]
    assert paths == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]


@every_kind
@pytest.mark.parametrize("whole", [False, True])
def test_folders_of_splits_in_the_paths_are_honoured(tmp_path: Path, make: Make, whole: bool) -> None:
    names = ["train/0.png", "train/1.png", "Holdout/2.png"]
    write_files(tmp_path, names)
    save(make([str(tmp_path / name) if whole else name for name in names], "image"), tmp_path / "metadata", False)
    source = load_source(str(tmp_path))
    assert {split: len(table.labels) for split, table in source.splits.items()} == {"train": 2, "test": 1}
    assert greys(tmp_path, "test") == [2]


def test_files_that_are_nowhere(tmp_path: Path) -> None:
    save(text(["0.png", "1.png", "2.png"], "image"), tmp_path / "all", False)
    with pytest.raises(
        ValueError, match=r"no image that the column 'image' of the table in .* names is there, the first"
    ):
        load_source(str(tmp_path))


def test_one_file_that_is_nowhere_is_a_bad_image(tmp_path: Path) -> None:
    write_files(tmp_path, ["0.png", "1.png"])
    save(text(["0.png", "1.png", "2.png"], "image"), tmp_path / "all", False)
    table = load_source(str(tmp_path)).splits["train"]
    assert table.encoded(2)["path"] == str(tmp_path / "2.png")


def test_embedded_images_with_other_columns_of_files_stay(tmp_path: Path) -> None:
    from made_up_images import make_rows

    rows: Any = make_rows(["cat", "dog"], STRING).add_column("file_name", ["x/0.png", "x/1.png"])
    rows.to_parquet(str(tmp_path / "all.parquet"))
    assert greys(tmp_path) == [0, 1]
