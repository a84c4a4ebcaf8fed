from pathlib import Path

import numpy as np
import pytest
from made_up_images import idx, write_idx

from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.sources.source import load_source


@pytest.mark.parametrize("packed", [False, True])
def test_pixels_and_labels(tmp_path: Path, packed: bool) -> None:
    images = write_idx(tmp_path, 5, packed=packed)
    write_idx(tmp_path, 3, "t10k", packed)
    source = load_source(str(tmp_path))
    assert {name: table.labels for name, table in source.splits.items()} == {
        "train": [0, 1, 0, 1, 0],
        "test": [0, 1, 0],
    }
    decode = DecodeAndResize(28, "nearest")
    for row in range(5):
        np.testing.assert_array_equal(decode(source.splits["train"].encoded(row))[2].numpy(), images[row])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"announces 3,920 bytes and holds 3,919; download it again"),
        (lambda content: b"\x00\x00\x0d\x03" + content[4:], r"is no idx file of 3 dimensions of bytes"),
        (lambda content: b"", r"is no idx file of 3 dimensions of bytes"),
    ],
)
def test_damaged_images(tmp_path: Path, damage: object, message: str) -> None:
    write_idx(tmp_path, 5)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load_source(str(tmp_path))


def test_cut_off_gz(tmp_path: Path) -> None:
    write_idx(tmp_path, 5, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged: .*; download it again"):
        load_source(str(tmp_path))


def test_images_without_labels(tmp_path: Path) -> None:
    write_idx(tmp_path, 5)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"lacks train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz"):
        load_source(str(tmp_path))


def test_more_images_than_labels(tmp_path: Path) -> None:
    write_idx(tmp_path, 5)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"has 5 images, .* has 4 labels; download both again"):
        load_source(str(tmp_path))
