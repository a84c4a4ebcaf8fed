"""How many processes read images: none where it is cheap or no core is to spare."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nc_finetune.data import ImageData, workers
from nc_finetune.data.workers import choose_workers


class Clock:
    """Stands still but for what is said to take long: a busy machine changes nothing."""

    now = 0.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "time", SimpleNamespace(perf_counter=lambda: Clock.now))


def slowly(image: Tensor) -> Tensor:
    Clock.now += 0.02
    return image


def data(**options: Any) -> ImageData:
    return ImageData("sklearn:digits", image_size=16, **options)


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 0), (4, 1, 3), (4, 2, 1), (2, 2, 0), (96, 8, 8), (4, 8, 0)]
)
def test_slow_images_get_the_cores_that_are_left(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, expected: int
) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    assert choose_workers(data(transform=slowly).train_set, processes) == expected


def test_cheap_images_get_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    assert choose_workers(data().train_set) == 0

    def slow_decoding(found: ImageData) -> Any:
        images = found.train_set
        decode = images.decode
        images.decode = lambda encoded: slowly(decode(encoded))
        return images

    cached = data(pixel_cache=str(tmp_path))
    images = slow_decoding(cached)
    assert choose_workers(images) == 3
    for item in range(len(images)):
        images.pixels.get(images.indices[item], lambda: torch.zeros(3, 16, 16, dtype=torch.uint8))
    assert choose_workers(images) == 0


def test_the_loader_takes_what_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 3)
    slow = data(transform=slowly)
    before = torch.get_rng_state()
    loader = slow.train_dataloader()
    assert (loader.num_workers, loader.persistent_workers) == (2, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert slow.val_dataloader().num_workers == 0
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)
    assert slow.train_dataloader().num_workers == 2
    assert data(num_workers=1).train_dataloader().num_workers == 1


def test_an_image_that_does_not_decode_is_told_of_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    images = data().train_set

    def broken(encoded: Any) -> Tensor:
        raise OSError("cut")

    images.decode = broken
    assert choose_workers(images) == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_gpus_alone(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    images = data()
    root = SimpleNamespace(root_device=torch.device(device))
    images.trainer = SimpleNamespace(strategy=root, num_devices=1, world_size=1, global_rank=0)  # type: ignore[assignment]
    assert images.val_dataloader().pin_memory == images.train_dataloader().pin_memory == (device == "cuda")
