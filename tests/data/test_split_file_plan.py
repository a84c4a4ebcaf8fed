"""A file of splits is not read for other splits than are asked for."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from made_up_images import make_rows, write_parquet

from nc_finetune.data import ImageData

DIFFERENT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"samples_per_class": 3}, {"samples_per_class": 5}, "samples_per_class=3, and samples_per_class=5"),
    ({}, {"samples_per_class": 5}, "samples_per_class=None, and samples_per_class=5"),
    ({}, {"seed": 1}, "seed=0, and seed=1"),
    ({"seed": 1}, {}, "seed=1, and seed=0"),
    ({"val_size": 4}, {"val_size": 0.5}, "val_size=4, and val_size=0.5"),
    ({"test_size": 0.3}, {"test_size": 0.4}, "test_size=0.3, and test_size=0.4"),
    ({"test_size": 0.3}, {}, "test_size=0.3, and test_size=0.2"),
    ({"train_share": 0.5}, {"train_share": 0.25}, "train_share=0.5, and train_share=0.25"),
    ({"fold": 0}, {"fold": 1}, "fold=0, and fold=1"),
    ({"fold": 0, "num_folds": 4}, {"fold": 0}, "num_folds=4, and num_folds=5"),
    ({}, {"group": "person"}, "group=None, and group='person'"),
    ({"val_size": 4}, {"fold": 0}, "fold=None, and fold=0"),
    ({}, {"max_test_images": 3}, "max_test_images=None, and max_test_images=3"),
]


@pytest.fixture
def pets(tmp_path: Path) -> str:
    rows = make_rows([0] * 30 + [1] * 20).add_column("person", [str(row // 2) for row in range(50)])
    (tmp_path / "pets").mkdir()
    rows.to_parquet(str(tmp_path / "pets/all.parquet"))
    return str(tmp_path / "pets")


@pytest.mark.parametrize(("written", "asked", "message"), DIFFERENT, ids=str)
def test_a_contradiction_names_both_values(pets: str, tmp_path: Path, written: Any, asked: Any, message: str) -> None:
    file = str(tmp_path / "splits.json")
    first = ImageData(pets, image_size=8, split_file=file, **written).splits_hash
    with pytest.raises(
        ValueError, match=rf"splits\.json was drawn with {message} is asked for; give .*another split_f"
    ):
        _ = ImageData(pets, image_size=8, split_file=file, **asked).splits_hash
    assert ImageData(pets, image_size=8, split_file=file, **written).splits_hash == first


@pytest.mark.parametrize("written", [{"samples_per_class": 3}, {"train_share": 0.5}, {"val_size": 4}, {"fold": 1}])
def test_what_nobody_asks_for_comes_from_the_file_with_a_warning(pets: str, tmp_path: Path, written: Any) -> None:
    file = str(tmp_path / "splits.json")
    first = ImageData(pets, image_size=8, split_file=file, **written).splits_hash
    name, value = next(iter(written.items()))
    with pytest.warns(UserWarning, match=rf"splits\.json was drawn with {name}={value}: these are its splits"):
        assert ImageData(pets, image_size=8, split_file=file).splits_hash == first


# Files of versions that did not say how splits were drawn


def without_plan(file: Path) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: content[name] for name in ("format_version", "splits")}))


@pytest.mark.parametrize(
    ("written", "asked", "message"),
    [
        ({"samples_per_class": 3}, {"samples_per_class": 5}, "samples_per_class=5, has 3 to 3 a class"),
        ({}, {"samples_per_class": 5}, "samples_per_class=5, has 14 to 22 a class"),
        ({"val_size": 4}, {"val_size": 9}, "val_size=9, has 4 of 40 images"),
        ({"val_size": 0.1}, {"val_size": 0.5}, "val_size=0.5, has 4 of 40 images"),
        ({"test_size": 0.3}, {"test_size": 0.5}, "test_size=0.5, has 15 of 50 images"),
        ({"fold": 0, "num_folds": 2}, {"fold": 0}, "val_size=0.2, has 20 of 40 images"),
    ],
    ids=str,
)
def test_sizes_tell_what_an_older_file_cannot_be(
    pets: str, tmp_path: Path, written: Any, asked: Any, message: str
) -> None:
    file = tmp_path / "splits.json"
    _ = ImageData(pets, image_size=8, split_file=str(file), **written).splits_hash
    without_plan(file)
    with pytest.raises(ValueError, match=rf"splits\.json does not fit what is asked for: .*{message}"):
        _ = ImageData(pets, image_size=8, split_file=str(file), **asked).splits_hash


@pytest.mark.parametrize("options", [{}, {"samples_per_class": 3}, {"val_size": 4, "test_size": 0.4}, {"fold": 1}])
def test_an_older_file_is_read_with_a_warning(pets: str, tmp_path: Path, options: Any) -> None:
    file = tmp_path / "splits.json"
    first = ImageData(pets, image_size=8, split_file=str(file), **options).splits_hash
    without_plan(file)
    with pytest.warns(UserWarning, match=r"does not say how it was drawn: of what is asked for, sizes alone could be"):
        assert ImageData(pets, image_size=8, split_file=str(file), **options).splits_hash == first


def test_images_that_came_later_are_said(tmp_path: Path) -> None:
    file = str(tmp_path / "splits.json")
    write_parquet(tmp_path / "pets/all.parquet", [0, 1] * 10)
    _ = ImageData(str(tmp_path / "pets"), image_size=8, split_file=file).splits_hash
    write_parquet(tmp_path / "pets/all.parquet", [0, 1] * 15, datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.warns(
        UserWarning, match=r"10 images came to the source after .*splits\.json was written, and are in no"
    ):
        _ = ImageData(str(tmp_path / "pets"), image_size=8, split_file=file).splits_hash
