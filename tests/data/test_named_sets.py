from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from made_up_images import make_rows, write_idx, write_images, write_parquet

from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.sources import named_sets
from nc_finetune.data.sources.named_sets import NAMED_SETS
from nc_finetune.data.sources.source import load_source
from nc_finetune.data.sources.tables import Source


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    load = datasets.load_dataset

    def local_alone(source: str, **options: Any) -> Any:
        if not options:
            raise ConnectionError(f"Couldn't reach '{source}' on the Hub")
        return load(source, **options)

    monkeypatch.setattr(datasets, "load_dataset", local_alone)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of named data sets."""
    monkeypatch.setenv("NC_FINETUNE_DATA", str(tmp_path))
    monkeypatch.setattr(named_sets, "PACKAGED", tmp_path / "usr/share/datasets")
    monkeypatch.chdir(tmp_path.parent)
    return tmp_path


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def shown(source: Source) -> dict[str, list[tuple[str, str]]]:
    """Return file name and class of each row by split."""
    return {
        split: [
            (Path(str(table.encoded(row)["path"])).stem, source.class_names[label])
            for row, label in enumerate(table.labels)
        ]
        for split, table in source.splits.items()
    }


@pytest.mark.parametrize("name", list(NAMED_SETS))
def test_without_files_and_network_the_error_says_what_to_do(home: Path, name: str) -> None:
    known = NAMED_SETS[name]
    with pytest.raises(ValueError, match=rf"^{name} is not in {home / name}, and the hub cannot be read") as raised:
        load_source(name)
    assert f"Download {known.archive} and unpack it into {home / name}" in str(raised.value)
    assert f"hf download --repo-type dataset {known.hub_id} --local-dir {home / name}" in str(raised.value)


@pytest.mark.parametrize("name", list(NAMED_SETS))
def test_the_hub_is_asked_for_the_columns_that_it_has(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = NAMED_SETS[name]
    for variant, column in known.label.items():
        rows = make_rows([0, 1], image=known.image, label=column).add_column("label_of_another_kind", [0, 1])
        monkeypatch.setattr(datasets, "load_dataset", {known.hub_id: {"train": rows}}.__getitem__)
        assert load_source(f"{name}:{variant}").class_names == ("cat", "dog")


def test_tables_that_were_downloaded_by_hand(home: Path) -> None:
    write_parquet(home / "cifar10/train-00000.parquet", [0, 1, 1], image="img")
    assert load_source("cifar10").splits["train"].labels == [0, 1, 1]


def test_a_folder_of_that_name_here_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "here").mkdir()
    monkeypatch.chdir(home / "here")
    write_images(home / "here", "oxford_pets/pug/1.png", "oxford_pets/lab/1.png")
    assert load_source("oxford_pets").class_names == ("lab", "pug")


@pytest.mark.parametrize("place", ["dtd", "dtd/dtd"])
def test_folds_of_dtd(home: Path, place: str) -> None:
    root = home / place
    write_images(root, *(f"images/{name}/{name}_{number}.jpg" for name in ("dotted", "woven") for number in range(3)))
    for fold in range(1, 11):
        parts = ("train", "val", "test") if fold % 2 else ("test", "train", "val")
        for number, part in enumerate(parts):
            names = (f"{name}/{name}_{number}.jpg" for name in ("dotted", "woven"))
            write_lines(root / f"labels/{part}{fold}.txt", *names)
    folds = {fold: shown(load_source(f"dtd:{fold}")) for fold in range(1, 11)}
    assert folds[1]["train"] == [("dotted_0", "dotted"), ("woven_0", "woven")]
    assert folds[2]["train"] == [("dotted_1", "dotted"), ("woven_1", "woven")]
    assert all(list(splits) == ["train", "val", "test"] for splits in folds.values())
    assert shown(load_source("dtd")) == folds[1]


@pytest.mark.parametrize(("variant", "names"), [("variant", ("707-320", "A 340")), ("family", ("707", "A340"))])
def test_levels_of_aircraft(home: Path, variant: str, names: tuple[str, str]) -> None:
    root = home / "fgvc_aircraft/fgvc-aircraft-2013b/data"
    write_images(root, *(f"images/{number}.jpg" for number in range(6)))
    for number, split in enumerate(("train", "val", "test")):
        for level, (first, second) in (("variant", ("707-320", "A 340")), ("family", ("707", "A340"))):
            write_lines(root / f"images_{level}_{split}.txt", f"{2 * number} {first}", f"{2 * number + 1} {second}")
    assert shown(load_source(f"fgvc_aircraft:{variant}")) == {
        split: [(str(2 * number), names[0]), (str(2 * number + 1), names[1])]
        for number, split in enumerate(("train", "val", "test"))
    }


@pytest.mark.parametrize(("variant", "names"), [("breed", ("Maine_Coon", "pug")), ("species", ("cat", "dog"))])
def test_levels_of_pets(home: Path, variant: str, names: tuple[str, str]) -> None:
    root = home / "oxford_pets"
    write_images(root, *(f"images/{name}_{number}.jpg" for name in ("Maine_Coon", "pug") for number in (1, 2)))
    for number, file in ((1, "trainval"), (2, "test")):
        write_lines(root / f"annotations/{file}.txt", f"Maine_Coon_{number} 1 1 1", f"pug_{number} 2 2 1")
    assert shown(load_source(f"oxford_pets:{variant}")) == {
        split: [(f"Maine_Coon_{number}", names[0]), (f"pug_{number}", names[1])]
        for number, split in ((1, "train"), (2, "test"))
    }


def write_cifar(path: Path, labels: list[list[int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    images = np.random.default_rng(len(labels)).integers(256, size=(len(labels), 3, 32, 32), dtype=np.uint8)
    path.write_bytes(b"".join(bytes(label) + image.tobytes() for label, image in zip(labels, images, strict=True)))
    return images


def test_binary_edition_of_cifar_10(home: Path) -> None:
    root = home / "cifar10/cifar-10-batches-bin"
    write_lines(root / "batches.meta.txt", "airplane", "automobile", "")
    batches = [write_cifar(root / f"data_batch_{number}.bin", [[0], [1]]) for number in range(1, 6)]
    write_cifar(root / "test_batch.bin", [[1], [0], [1]])
    source = load_source("cifar10")
    assert source.class_names == ("airplane", "automobile")
    assert source.splits["test"].labels == [1, 0, 1]
    image = DecodeAndResize(32, "nearest")(source.splits["train"].encoded(3))
    np.testing.assert_array_equal(image.numpy(), batches[1][1])


@pytest.mark.parametrize(("variant", "labels"), [("fine", [1, 0, 2]), ("coarse", [0, 0, 1])])
def test_binary_edition_of_cifar_100(home: Path, variant: str, labels: list[int]) -> None:
    root = home / "cifar100"
    write_lines(root / "fine_label_names.txt", "apple", "bear", "cat")
    write_lines(root / "coarse_label_names.txt", "fruit", "animal")
    for split in ("train", "test"):
        write_cifar(root / f"{split}.bin", [[0, 1], [0, 0], [1, 2]])
    assert load_source(f"cifar100:{variant}").splits["train"].labels == labels


def test_damaged_cifar(home: Path) -> None:
    (home / "cifar100").mkdir()
    write_lines(home / "cifar100/fine_label_names.txt", "apple", "bear")
    (home / "cifar100/train.bin").write_bytes(b"too short")
    with pytest.raises(ValueError, match=r"train\.bin is damaged: 9 bytes are no whole number of images"):
        load_source("cifar100")


def test_pickles_of_cifar_are_not_opened(home: Path) -> None:
    (home / "cifar10/cifar-10-batches-py").mkdir(parents=True)
    (home / "cifar10/cifar-10-batches-py/data_batch_1").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"holds CIFAR's Python edition: pickles, which are never loaded; get the"):
        load_source("cifar10")


def test_a_package_of_the_distribution_is_found(home: Path) -> None:
    folder = named_sets.PACKAGED / "fashion-mnist"
    folder.mkdir(parents=True)
    write_idx(folder, 20, packed=True)
    assert list(load_source("fashion_mnist").class_names) == ["0", "1"]  # what write_idx puts there


def test_fashion_mnist_has_names(home: Path) -> None:
    (home / "fashion_mnist").mkdir()
    write_idx(home / "fashion_mnist", 20, packed=True)
    path = home / "fashion_mnist/train-labels-idx1-ubyte.gz"
    path.unlink()
    labels = np.arange(20, dtype=np.uint8) % 10
    path.with_suffix("").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 20]) + labels.tobytes())
    assert load_source("fashion_mnist").class_names[9] == "Ankle boot"


def test_unknown_variant_lists_those_that_there_are(home: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown variant of dtd '11'.* Valid: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"):
        load_source("dtd:11")


def test_a_fold_that_the_hub_does_not_have(home: Path) -> None:
    with pytest.raises(ValueError, match=r"the hub has dtd in the variant 1 alone; Download https://www\.robots\.ox"):
        load_source("dtd:2")


def test_an_archive_that_was_unpacked_in_part(home: Path) -> None:
    write_lines(home / "dtd/labels/train1.txt", "dotted/1.jpg")
    with pytest.raises(ValueError, match=r"val1\.txt is missing; unpack https.*dtd-r1\.0\.1\.tar\.gz into .*dtd again"):
        load_source("dtd")
