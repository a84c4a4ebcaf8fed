import io
import multiprocessing
import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from broken_images import encoded
from crossed import crossed
from PIL import Image
from torch import Tensor

from nc_finetune import ImageData
from nc_finetune.cache import GrowingStore, RowLayout
from nc_finetune.data._pixels.pixel_store import PixelStore
from nc_finetune.data._pixels.transforms import DecodeAndResize


class Decoder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.arange(12, dtype=torch.uint8).view(3, 2, 2)


@pytest.fixture
def decode() -> Decoder:
    return Decoder()


def make_store(folder: Path, identity: str = "data") -> PixelStore:
    return PixelStore(folder, identity, rows=5, image_size=2)


def test_an_image_is_decoded_once_for_all_runs(tmp_path: Path, decode: Decoder) -> None:
    found = [make_store(tmp_path).get(3, decode) for _ in range(3)]
    assert decode.calls == 1
    assert all(torch.equal(image, decode()) for image in found)


def test_other_rows_and_other_data_are_decoded(tmp_path: Path, decode: Decoder) -> None:
    for identity, row in (("data", 3), ("data", 4), ("other", 3)):
        make_store(tmp_path, identity).get(row, decode)
    assert decode.calls == 3


def test_a_row_that_was_not_finished_is_decoded_again(tmp_path: Path, decode: Decoder) -> None:
    store = make_store(tmp_path)
    store.get(3, decode)
    with (store.path / "1.bin").open("r+b") as file:  # as if killed before the mark
        file.seek(3 * 16)
        file.write(bytes(16))
    store.get(3, decode)
    assert decode.calls == 2


def test_a_file_that_was_cut_is_filled_again(tmp_path: Path, decode: Decoder) -> None:
    make_store(tmp_path).get(3, decode)
    path = make_store(tmp_path).path
    os.truncate(path / "0.bin", 20)
    image = make_store(tmp_path).get(3, decode)
    assert decode.calls == 2
    assert torch.equal(image, make_store(tmp_path).get(3, decode))


def test_an_image_may_be_changed_without_changing_the_store(tmp_path: Path, decode: Decoder) -> None:
    store = make_store(tmp_path)
    for _ in range(2):
        store.get(0, decode).zero_()
    assert store.get(0, decode).any()


def test_a_worker_opens_the_file_itself(tmp_path: Path, decode: Decoder) -> None:
    store = make_store(tmp_path)
    store.get(1, decode)
    content = pickle.dumps(store)
    assert len(content) < 2000  # without the images
    pickle.loads(content).get(1, decode)  # noqa: S301
    assert decode.calls == 1


@pytest.mark.parametrize("when", ["opening", "writing"])
def test_without_room_images_are_decoded_with_one_warning(
    tmp_path: Path, decode: Decoder, when: str, monkeypatch: Any
) -> None:
    folder = tmp_path / "cache"
    if when == "opening":
        folder.touch()
    else:
        monkeypatch.setattr(GrowingStore, "put", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    store = make_store(folder)
    with pytest.warns(UserWarning, match="cannot be kept") as caught:
        images = [store.get(0, decode) for _ in range(3)]
    assert len(caught) == 1
    assert decode.calls == 3
    assert torch.equal(images[2], images[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same(tmp_path: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"image_size": 16, "samples_per_class": 2, "val_size": 20, "num_workers": num_workers}
    plain = list(ImageData("sklearn:digits", **options).eval_dataloader("train"))
    for _ in range(2):
        kept = list(ImageData("sklearn:digits", **options, pixel_cache=str(tmp_path)).eval_dataloader("train"))
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(kept, plain, strict=True))
    assert len(list(tmp_path.iterdir())) == 1


# What must not be mixed up


def solid(value: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (value, value, value))


def write_pets(folder: Path, values: tuple[int, int] = (10, 200), number: int = 6) -> None:
    """Write BMP files, which are of one size whatever they show."""
    for name, value in zip(("cat", "dog"), values, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for item in range(number):
            solid(value + item).save(folder / name / f"{item}.bmp")


def colours(source: Path, cache: Path, **options: Any) -> list[int]:
    data = ImageData(
        str(source), **{"image_size": 8, "val_size": 2, "test_size": 2, "pixel_cache": str(cache), **options}
    )
    sets = (data.train_set, data.val_set, data.test_set)
    return sorted(int(images[item][0][0, 4, 4]) for images in sets for item in range(len(images)))


def test_another_folder_with_the_same_names_and_sizes_is_another(tmp_path: Path) -> None:
    write_pets(tmp_path / "a/train", (10, 200))
    write_pets(tmp_path / "b/train", (60, 120))
    first, second = (colours(tmp_path / name / "train", tmp_path / "cache") for name in "ab")
    assert set(first) == {*range(10, 16), *range(200, 206)}
    assert set(second) == {*range(60, 66), *range(120, 126)}


@pytest.mark.parametrize(
    ("when", "how"),
    crossed(
        ["in another run", "in the same run"],
        ["written again", "with the old time", "copied over", "renamed over", "linked"],
    ),
)
def test_a_file_that_was_replaced_is_decoded_again(tmp_path: Path, how: str, when: str) -> None:
    write_pets(tmp_path / "pets")
    data = ImageData(str(tmp_path / "pets"), image_size=8, val_size=2, test_size=2, pixel_cache=str(tmp_path / "cache"))
    before = [data.train_set[item][0].clone() for item in range(len(data.train_set))]
    path = Path(str(data.train_set.table.encoded(data.train_set.indices[0])["path"]))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    solid(90).save(tmp_path / "new.bmp")
    os.utime(tmp_path / "new.bmp", ns=times)
    if how == "copied over":
        shutil.copy2(tmp_path / "new.bmp", path)
    elif how == "renamed over":
        (tmp_path / "new.bmp").rename(path)
    elif how == "linked":
        path.unlink()
        path.symlink_to(tmp_path / "new.bmp")
    else:
        solid(90).save(path)
        if how == "with the old time":
            os.utime(path, ns=times)
    if when == "in another run":
        options: dict[str, Any] = {"image_size": 8, "val_size": 2, "test_size": 2}
        data = ImageData(str(tmp_path / "pets"), **options, pixel_cache=str(tmp_path / "cache"))
    assert int(data.train_set[0][0][0, 4, 4]) == 90
    assert all(torch.equal(data.train_set[item][0], before[item]) for item in range(1, len(before)))


@pytest.mark.parametrize("other", [{"interpolation": "nearest"}, {"image_size": 9}, {"decoder": "another version"}])
def test_another_decoder_decodes_again(tmp_path: Path, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    write_pets(tmp_path / "pets")
    colours(tmp_path / "pets", tmp_path / "cache")
    if other.pop("decoder", None):
        monkeypatch.setattr("nc_finetune.data._pixels.transforms.decoder_versions", lambda: "Pillow 99")
    asked: list[Any] = []
    decode = DecodeAndResize.__call__
    monkeypatch.setattr(DecodeAndResize, "__call__", lambda self, encoded: asked.append(1) or decode(self, encoded))
    colours(tmp_path / "pets", tmp_path / "cache", **other)
    assert len(asked) == 12
    colours(tmp_path / "pets", tmp_path / "cache", **other)
    assert len(asked) == 12


class ShortFile(io.FileIO):
    """A file on a disk that is nearly full: it takes a part of what it is given, and then nothing."""

    def write(self, content: Any) -> int:  # type: ignore[override]
        if len(content) < 12:
            raise OSError(28, "No space left on device")
        return super().write(memoryview(content)[:5])


def test_a_short_write_is_no_image(tmp_path: Path, decode: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    assert store._opened() is not None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *_, **__: ShortFile(self, "r+"))
        with pytest.warns(UserWarning, match=r"cannot be kept in .*No space left"):
            store.get(2, decode)
    assert decode.calls == 1
    assert torch.equal(make_store(tmp_path).get(2, decode), decode())
    assert decode.calls == 3


@pytest.mark.parametrize("place", range(0, 12, 3))
def test_damaged_pixels_are_decoded_again(tmp_path: Path, decode: Decoder, place: int) -> None:
    make_store(tmp_path).get(2, decode)
    with (make_store(tmp_path).path / "0.bin").open("r+b") as file:
        file.seek(2 * 12 + place)
        file.write(b"\xee")
    assert torch.equal(make_store(tmp_path).get(2, decode), decode())


def _fill(folder: Path, value: int, rounds: int) -> None:
    for _ in range(rounds):
        store = GrowingStore(folder, RowLayout.of(torch.zeros(1, 50_000)), rows=3)
        for row in range(3):
            store.put(row, b"%d" % value, torch.full((50_000,), float(value)))
            found = store.get(row, b"%d" % value)
            assert found is None or found.unique().tolist() == [value]


@pytest.mark.skipif(sys.platform == "win32", reason="processes that fork")
def test_processes_that_write_at_once_never_read_each_others_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_fill, args=(tmp_path / "store", value, 30)) for value in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_images_in_a_table_are_kept_by_its_content(tmp_path: Path) -> None:
    for name, offset in (("a", 0), ("b", 100)):
        images = [{"bytes": encoded(solid(offset + row), "BMP"), "path": f"{row}.bmp"} for row in range(12)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 6}, features)
        (tmp_path / name).mkdir()
        rows.to_parquet(str(tmp_path / name / "train.parquet"))
    for _ in range(2):
        assert colours(tmp_path / "a", tmp_path / "cache") == list(range(12))
        assert colours(tmp_path / "b", tmp_path / "cache") == list(range(100, 112))


def test_what_is_set_after_the_first_use_is_followed(tmp_path: Path) -> None:
    data = ImageData("sklearn:digits", image_size=16)
    first, bad = data.images("val")[0][0], data.bad_images()
    data.pixel_cache = str(tmp_path)
    assert data.images("val")[0][0].equal(first)
    assert any(tmp_path.rglob("*")), "nothing was kept"
    data.image_size, data.interpolation = 24, "nearest"
    assert data.images("val")[0][0].shape == (3, 24, 24)
    assert data.images("val").indices == ImageData("sklearn:digits", image_size=16).images("val").indices
    assert data.bad_images() == bad


def test_what_needs_neither_images_nor_splits_settles_nothing(tmp_path: Path) -> None:
    write_broken = [(tmp_path / kind / f"{index}.png") for kind in "ab" for index in range(6)]
    for index, path in enumerate(write_broken):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"none" if index % 6 == 0 else encoded(Image.new("RGB", (8, 8), (index, 0, 0)), "PNG"))
    data = ImageData(str(tmp_path), image_size=8, val_size=2, test_size=2)
    assert data.fingerprint
    data.plan = replace(data.plan, samples_per_class=2)
    assert (len(data.train_set), data.summary is not None) == (4, True)
    data = ImageData(str(tmp_path), image_size=8, val_size=2, test_size=2)
    assert data.splits_hash
    data.on_bad_image = "skip"
    for split in ("train", "val", "test"):
        list(data.eval_dataloader(split))
    assert len(data.bad_images()) == 2
