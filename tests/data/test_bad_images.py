import csv
import io
import os
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from broken_images import BROKEN, ODD, encoded, photo, write_broken_folder
from PIL import Image
from torch import Tensor

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.callbacks import PrefixCache
from nc_finetune.data import UnlabelledFolder, check_data
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.sources import locations


def decode(content: bytes, size: int = 16) -> Tensor:
    return DecodeAndResize(size)({"bytes": content, "path": None})


# What is odd, and decoded


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_are_decoded(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind == "damaged EXIF":
            warnings.filterwarnings("ignore", "Corrupt EXIF data")
        image = decode(ODD[kind][0]())
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)


@pytest.mark.parametrize("kind", ["animated GIF", "animated PNG", "animated WebP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    assert decode(ODD[kind][0]())[:, 8, 8].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["cmyk", "alpha", "PNG called .jpg", "bytes after the end"])
def test_colours_stay_what_they_were(kind: str) -> None:
    expected = decode(encoded(photo(), "PNG")).float()
    assert (decode(ODD[kind][0]()).float() - expected).abs().mean() < 6


def test_16_bits_keep_their_brightness() -> None:
    assert decode(ODD["16 bits"][0]()).unique().tolist() == [128]


def test_a_photo_turned_by_exif_stands_upright() -> None:
    expected = decode(encoded(photo().transpose(Image.Transpose.ROTATE_270), "PNG")).float()
    assert (decode(ODD["turned by EXIF"][0]()).float() - expected).abs().mean() < 6


def test_a_line_does_not_fill_the_memory() -> None:
    # Resized as a whole it would have 224 x 3,584,000 pixels.
    assert decode(ODD["a line"][0](), 224).unique().tolist() == [77]


@pytest.mark.parametrize("size", [(200, 30), (30, 200), (121, 30)])
def test_of_a_long_image_the_same_centre_is_kept(size: tuple[int, int]) -> None:
    image = photo(*size)
    short, left, top = min(size), (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    expected = decode(encoded(image.crop((left, top, left + short, top + short)), "PNG"), 30).float()
    assert (decode(encoded(image, "PNG"), 30).float() - expected).abs().max() <= 2


# What is broken

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images_are_refused_with_a_reason(kind: str) -> None:
    make, _, message = BROKEN[kind]
    with pytest.raises((OSError, ValueError, SyntaxError), match=message):
        decode(make())


def data_of(folder: Path, **options: Any) -> ImageData:
    return ImageData(str(folder), **{"image_size": 32, "test_size": 0.2, "val_size": 0.2, "batch_size": 8, **options})


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, list[Path]]:
    """Return a folder of 60 good images and one of each broken kind, and the paths of these."""
    return tmp_path / "pets", write_broken_folder(tmp_path / "pets", 60)


def test_raise_names_the_file_and_the_way_out(folder: tuple[Path, list[Path]]) -> None:
    data = data_of(folder[0])
    message = (
        r"^the image .*bad\d+\.\w+ in row \d+ does not decode: .*; repair or remove it, or leave it out by"
        r" on_bad_image='skip', which is --on-bad-image skip on the command line$"
    )
    with pytest.raises(ValueError, match=message):
        _ = [list(data.eval_dataloader(split)) for split in ("train", "val", "test")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_leaves_out_exactly_the_broken_ones(folder: tuple[Path, list[Path]], num_workers: int) -> None:
    root, broken = folder
    data = data_of(root, on_bad_image="skip", num_workers=num_workers)
    number = sum(len(labels) for split in ("train", "val", "test") for _, labels in data.eval_dataloader(split))
    assert number == 60
    found = data.bad_images()
    assert sorted(str(bad.path) for bad in found) == sorted(map(str, broken))
    assert all(bad.reason for bad in found)


def test_labels_stay_with_their_images(folder: tuple[Path, list[Path]]) -> None:
    root, _ = folder
    for number, image in enumerate(sorted((root / "dog").glob("good*"))):
        Image.new("L", (8, 8), 100 + number).save(image)
    for image in (root / "cat").glob("good*"):
        Image.new("L", (8, 8), 10).save(image)
    for split in ("train", "val", "test"):
        for images, labels in data_of(root, on_bad_image="skip").eval_dataloader(split):
            assert ((images[:, 0, 4, 4] > 50) == labels.bool()).all()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_of_which_nothing_is_left(folder: tuple[Path, list[Path]], batch_size: int) -> None:
    data = data_of(folder[0], on_bad_image="skip", batch_size=batch_size)
    sizes = {split: [len(labels) for _, labels in data.eval_dataloader(split)] for split in ("train", "val", "test")}
    assert sum(map(sum, sizes.values())) == 60
    assert all(size for group in sizes.values() for size in group)
    # Training has as many batches as were planned: schedules count them.
    loader = data.train_dataloader()
    assert sum(1 for _ in loader) == len(loader)


def test_a_fit_on_a_messy_folder_reports_what_it_left_out(
    folder: tuple[Path, list[Path]], tmp_path: Path, make_trainer: Any
) -> None:
    root, broken = folder
    data = data_of(root, on_bad_image="skip")
    model = ImageClassifier("test_resnet", 2, weights=None)
    trainer = make_trainer(logger=True, default_root_dir=tmp_path / "run")
    with pytest.warns(UserWarning, match=r"^left out \d+ images that do not decode:\n  .*bad"):
        trainer.fit(model, datamodule=data)
    reported = {
        row["path"] for file in (tmp_path / "run").rglob("bad_images.csv") for row in csv.DictReader(file.open())
    }
    in_test = {str(path) for path in broken} - reported
    seen = {data.test_set.table.encoded(row)["path"] for row in data.test_set.indices}
    assert reported
    assert in_test <= seen


def test_a_missing_file_is_a_bad_image(folder: tuple[Path, list[Path]]) -> None:
    root, broken = folder
    data = data_of(root, on_bad_image="skip")
    _ = data.data
    gone = root / "cat/good00000.jpg"
    gone.unlink()
    for split in ("train", "val", "test"):
        list(data.eval_dataloader(split))
    assert {str(bad.path) for bad in data.bad_images()} == {str(path) for path in [*broken, gone]}


def test_nothing_is_reported_where_nothing_is_broken(tmp_path: Path) -> None:
    data = data_of(tmp_path, on_bad_image="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.teardown("fit")


def test_unknown_way() -> None:
    with pytest.raises(ValueError, match=r"unknown on_bad_image 'drop'\. Valid: raise, skip"):
        ImageData("never looked at", on_bad_image="drop")  # type: ignore[arg-type]


def test_a_folder_without_labels_skips_too(folder: tuple[Path, list[Path]]) -> None:
    root, broken = folder
    data = UnlabelledFolder(root, ["cat", "dog"], image_size=16, on_bad_image="skip")
    number = sum(len(images) for images in data.predict_dataloader())
    assert number == len(data.files) == 60
    assert [root / name for name in data.skipped] == sorted(broken)


def test_predictions_of_the_test_split_keep_their_places(folder: tuple[Path, list[Path]]) -> None:
    data = data_of(folder[0], on_bad_image="skip", test_size=0.5)
    number = sum(len(labels) for _, labels in data.predict_dataloader())
    assert number == len(data.predicted_items) < len(data.test_set)
    raising = data_of(folder[0], test_size=0.5).test_set
    for item in data.predicted_items:
        raising[item]


def test_a_link_to_nowhere_is_a_bad_image(folder: tuple[Path, list[Path]]) -> None:
    root, broken = folder
    (root / "cat/link.jpg").symlink_to("nowhere.jpg")
    data = data_of(root, on_bad_image="skip")
    assert data.fingerprint
    for split in ("train", "val", "test"):
        list(data.eval_dataloader(split))
    assert {str(bad.path) for bad in data.bad_images()} == {str(path) for path in [*broken, root / "cat/link.jpg"]}


def write_shard(path: Path, contents: list[bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for number, content in enumerate(contents):
            for ending, part in (("jpg", content), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))


def write_rows(path: Path, contents: list[bytes]) -> None:
    labels = [number % 2 for number in range(len(contents))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": content, "path": None} for content in contents]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(str(path))


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "hub"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_works_on_every_kind_of_source(
    kind: str, num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [encoded(photo(seed=number)) for number in range(40)]
    contents = [*good[:7], b"<html>", good[0][:200], b"", *good[7:]]
    source = str(tmp_path)
    if kind == "webdataset":
        write_shard(tmp_path / "train.tar", contents)
    else:
        write_rows(tmp_path / "train.parquet", contents)
    if kind == "hub":
        found = datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "train.parquet")})
        monkeypatch.setattr(locations, "_load_hub", lambda name: dict(found))
        source = "someone/pets"
    data = data_of(Path(source), on_bad_image="skip", num_workers=num_workers)
    number = sum(len(labels) for split in ("train", "val", "test") for _, labels in data.eval_dataloader(split))
    assert number == 40
    assert [(bad.table, bad.row) for bad in data.bad_images()] == [("train", row) for row in (7, 8, 9)]
    assert all(bad.reason for bad in data.bad_images())


# Skipping, under everything that looks at images before or beside training

ABSENT: dict[str, Any] = {
    "link to nowhere": lambda path: path.symlink_to("nowhere.jpg"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "zero bytes": lambda path: path.touch(),
    "gone": lambda path: path.write_bytes(b"to be removed"),
    "pipe": os.mkfifo,
    "no permission": lambda path: path.write_bytes(encoded(photo())),
}


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
@pytest.mark.parametrize("kind", ABSENT)
def test_skip_works_under_all_caches(
    tmp_path: Path, kind: str, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(32, 32, number), "PNG"))
    bad = [tmp_path / "pets/cat" / name for name in ("a.png", "b.png", "c.png", "d.png")]
    for path in bad:
        ABSENT[kind](path)
    (tmp_path / "pets/dog/folder.png").mkdir()
    options = {"batch_size": 4, "num_workers": None, "pixel_cache": str(tmp_path / "pixels")}
    data = data_of(tmp_path / "pets", on_bad_image="skip", **options)
    assert data.num_classes == 2
    if kind == "gone":
        for path in bad:
            path.unlink()
    if kind == "no permission":
        read, forbidden = Path.read_bytes, {str(path) for path in bad}
        opened = Image.open

        def refuse(path: Any, *args: Any) -> Any:
            if str(path) in forbidden:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *args)

        monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path) if str(path) in forbidden else read(path))
        monkeypatch.setattr(Image, "open", refuse)
    assert data.fingerprint
    assert data.duplicates == []
    model = ImageClassifier("test_resnet", 2, weights=None)
    trainer = make_trainer(PrefixCache(str(tmp_path / "prefixes")), max_epochs=1)
    with pytest.warns(UserWarning, match=r"left out \d images that do not decode"):
        trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    sets = [list(data.eval_dataloader(split)) for split in ("train", "val", "test")]
    assert sum(len(labels) for batches in sets for _, labels in batches) == 24
    assert {str(found.path) for found in data.bad_images()} == {str(path) for path in bad}


def test_rows_without_an_image_are_skipped_under_all_caches(tmp_path: Path, make_trainer: Any) -> None:
    contents = [None if row in (2, 3, 9) else encoded(photo(seed=row)) for row in range(30)]
    images = [None if content is None else {"bytes": content, "path": None} for content in contents]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(30)]}, features=features)
    (tmp_path / "pets").mkdir()
    rows.to_parquet(str(tmp_path / "pets/train.parquet"))
    data = data_of(tmp_path / "pets", on_bad_image="skip", pixel_cache=str(tmp_path / "pixels"), num_workers=None)
    trainer = make_trainer(PrefixCache(str(tmp_path / "prefixes")), max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(ImageClassifier("test_resnet", 2, weights=None), datamodule=data)
    assert sum(len(labels) for split in ("train", "val", "test") for _, labels in data.eval_dataloader(split)) == 27
    assert [bad.row for bad in data.bad_images()] == [2, 3, 9]


@pytest.mark.parametrize("kind", [*ODD, *BROKEN])
def test_the_check_passes_what_training_passes(tmp_path: Path, kind: str) -> None:
    make, ending = ODD[kind] if kind in ODD else BROKEN[kind][:2]
    for number in range(12):
        path = tmp_path / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(photo(32, 32, number), "PNG"))
    (tmp_path / f"cat/odd.{ending}").write_bytes(make())
    data = data_of(tmp_path, on_bad_image="skip")
    for split in ("train", "val", "test"):
        list(data.eval_dataloader(split))
    refused = {bad.path for bad in data.bad_images()}
    assert {bad.path for bad in check_data(data_of(tmp_path)).broken} == refused
    assert bool(refused) == (kind in BROKEN)
