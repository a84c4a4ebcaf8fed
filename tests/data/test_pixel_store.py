import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nc_finetune import ImageData
from nc_finetune.data.pixel_store import PixelStore


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
    with store.path.open("r+b") as file:  # as if killed before the mark
        file.seek(3)
        file.write(b"\0")
    store.get(3, decode)
    assert decode.calls == 2


def test_a_file_that_was_cut_is_filled_again(tmp_path: Path, decode: Decoder) -> None:
    make_store(tmp_path).get(3, decode)
    path = make_store(tmp_path).path
    os.truncate(path, 20)
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
    copied = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert copied._file is None
    copied.get(1, decode)
    assert decode.calls == 1


@pytest.mark.parametrize("when", ["opening", "writing"])
def test_without_room_images_are_decoded_with_one_warning(
    tmp_path: Path, decode: Decoder, when: str, monkeypatch: Any
) -> None:
    folder = tmp_path / "cache"
    if when == "opening":
        folder.touch()
    else:
        monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
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
