"""Augmentation of batches on the device: each image for itself, by the seed, and nothing but uint8 on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torchvision.transforms import v2

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.callbacks import PrefixCache
from nc_finetune.data import PerImage, RandomCropFlip
from nc_finetune.data.batch_transforms import numbers_drawn_from
from nc_finetune.methods import LayerFinetuning

TrainerFactory = Callable[..., L.Trainer]
DRAWN = {"crop": RandomCropFlip(), "each": PerImage(v2.RandomResizedCrop(32, antialias=False))}


def ramp(number: int = 64, side: int = 32) -> Tensor:
    """Images that say where each pixel lies: across in the first channel, down in the second."""
    places = (torch.arange(side) + 0.5) * 256 / side
    one = torch.stack([places.expand(side, side), places[:, None].expand(side, side), torch.zeros(side, side)])
    return one.expand(number, 3, side, side)


@pytest.mark.parametrize("transform", DRAWN.values(), ids=DRAWN)
def test_each_image_draws_its_own_numbers(transform: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    assert len(transform(ramp(16)).unique(dim=0)) == 16
    shared = DRAWN["each"].transform(ramp(16))
    assert len(shared.unique(dim=0)) == 1  # what torchvision does to a batch


def test_boxes_have_the_areas_ratios_and_places_that_are_asked_for() -> None:
    torch.manual_seed(0)
    crops = RandomCropFlip(scale=(0.2, 0.5), ratio=(0.5, 2.0))(ramp(2000)) / 256
    widths, heights = (crops[:, 0, 16, 30] - crops[:, 0, 16, 1]).abs(), crops[:, 1, 30, 16] - crops[:, 1, 1, 16]
    widths, heights = widths * 32 / 29, heights * 32 / 29
    areas, ratios = widths * heights, widths / heights
    assert 0.199 < areas.min() < 0.21
    assert 0.49 < areas.max() < 0.501
    assert 0.499 < ratios.min() < 0.55
    assert 1.8 < ratios.max() < 2.001
    edges = crops[:, :, 16, :].amin(-1)[:, 0], crops[:, :, 16, :].amax(-1)[:, 0]
    assert edges[0].min() < 0.05
    assert edges[1].max() > 0.95


def test_half_the_images_are_flipped() -> None:
    torch.manual_seed(0)
    crops = RandomCropFlip(scale=(1, 1), ratio=(1, 1))(ramp(1000))
    flipped = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(crops[~flipped], ramp(int((~flipped).sum())), atol=1e-3)
    assert torch.allclose(crops[flipped], ramp(int(flipped.sum())).flip(3), atol=1e-3)


def test_a_box_is_resized_as_torchvision_does_it() -> None:
    images = torch.rand(1, 3, 32, 32)
    crop = RandomCropFlip()
    crop._sizes = lambda number, aspect: torch.tensor([[0.5, 0.25]])  # type: ignore[method-assign]
    torch.manual_seed(3)
    moves = crop._draw(1, 1.0)
    torch.manual_seed(3)
    found = crop(images)
    centre_x, centre_y = (16 * (1 + moves[0, :, 2])).tolist()
    left, top = round(centre_x - 8), round(centre_y - 4)
    theta = torch.tensor([[[0.5, 0, (left + 8) / 16 - 1], [0, 0.25, (top + 4) / 16 - 1]]])
    crop._draw = lambda number, aspect: theta  # type: ignore[method-assign]
    found = crop(images)
    ours = v2.functional.resized_crop(images, top, left, 8, 16, [32, 32], antialias=False)
    # At the rim of the box its neighbours are seen, too.
    assert torch.allclose(found[..., 4:-4, 4:-4], ours[..., 4:-4, 4:-4], atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_a_box_that_never_fits_is_the_largest_of_an_allowed_ratio(shape: tuple[int, int]) -> None:
    crop = RandomCropFlip(scale=(1, 1), ratio=(1, 1))
    width, height = (crop._sizes(1, shape[1] / shape[0])[0] * torch.tensor([shape[1], shape[0]])).tolist()
    assert (width, height) == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0, 1)}, "scale must be two shares"),
        ({"ratio": (2, 1)}, "the smaller first, got"),
        ({"flip": 2}, "flip must be a share in"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomCropFlip(**options)


def test_numbers_outside_are_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with numbers_drawn_from(5, torch.device("cpu")):
        torch.rand(7)
    assert torch.equal(torch.rand(2), expected)


class Watched(ImageData):
    """Counts the bytes that go to the device, and keeps what training gets."""

    handed_over = 0

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.handed_over += sum(part.nbytes for part in batch if isinstance(part, Tensor))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class Seen(L.Callback):
    def __init__(self) -> None:
        self.train: list[Tensor] = []
        self.val: list[Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(batch[0])

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        self.val.append(batch[0])


def run(make_trainer: TrainerFactory, *callbacks: L.Callback, **options: Any) -> tuple[Seen, Watched]:
    L.seed_everything(2, verbose=False)
    model = ImageClassifier("test_resnet", 10, weights=None, method=LayerFinetuning("layer2.0"))
    data = Watched("sklearn:digits", image_size=32, samples_per_class=2, val_size=20, batch_size=8, **options)
    seen = Seen()
    trainer = make_trainer(seen, *callbacks, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, datamodule=data)
    return seen, data


def test_training_batches_alone_are_augmented_anew_each_epoch_and_by_the_seed(make_trainer: TrainerFactory) -> None:
    plain, _ = run(make_trainer)
    seen, _ = run(make_trainer, batch_transform=RandomCropFlip())
    again, _ = run(make_trainer, batch_transform=RandomCropFlip())
    assert all(map(torch.equal, seen.train, again.train))
    assert all(map(torch.equal, seen.val, plain.val))
    assert not any(map(torch.equal, seen.train, plain.train))
    pictures = [image for batch in plain.train[:3] for image in batch]
    assert len(pictures) == 20
    first, second = (torch.cat(seen.train[start : start + 3]) for start in (0, 3))
    assert len(torch.cat([first, second]).unique(dim=0)) == 40  # each image twice, never the same


def test_uint8_alone_goes_to_the_device(make_trainer: TrainerFactory) -> None:
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), PerImage(v2.RandomHorizontalFlip())])
    seen, data = run(make_trainer, batch_transform=to_float)
    images = 2 * (20 + 20)
    assert data.handed_over == images * (3 * 32 * 32 + 8)
    assert seen.train[0].dtype == torch.float32


def test_a_cache_refuses_it_unless_views_are_asked_for(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    refused = PrefixCache(splits=["train"])
    with pytest.warns(UserWarning, match=r"transfer hooks make other batches .*views=8.* goes on without it"):
        run(make_trainer, refused, batch_transform=RandomCropFlip())
    assert refused.stored_bytes == {}
    plain = run(make_trainer, PrefixCache(str(tmp_path / "plain")))[0]
    cache = PrefixCache(str(tmp_path / "views"), views=2, splits=["train"])
    run(make_trainer, cache, batch_transform=RandomCropFlip())
    assert cache.stored_bytes["train"] == 2 * 20 * (32 * 8 * 8 * 4 + 8)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run(make_trainer, PrefixCache(str(tmp_path / "views"), views=2, splits=["train"]), batch_transform=RandomCropFlip())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    run(make_trainer, PrefixCache(str(tmp_path / "views"), views=2, splits=["train"]), batch_transform=PerImage(abs))
    assert len(list((tmp_path / "views").iterdir())) == 2
    assert plain.val


def test_views_of_a_cache_differ(make_trainer: TrainerFactory) -> None:
    kept: list[Tensor] = []

    class Look(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            kept.append(trainer.train_dataloader.dataset[0][0]["layer2.0"])

    L.seed_everything(2, verbose=False)
    model = ImageClassifier("test_resnet", 10, weights=None, method=LayerFinetuning("layer2.0"))
    options: dict[str, Any] = {"image_size": 32, "samples_per_class": 2, "val_size": 20}
    data = ImageData("sklearn:digits", **options, batch_transform=RandomCropFlip())
    make_trainer(PrefixCache(views=2), Look(), max_epochs=3).fit(model, datamodule=data)
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])


def test_a_recipe_can_name_transforms() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageData, "data")
    words = ["--data.source=sklearn:digits", "--data.batch_transform=nc_finetune.data.RandomCropFlip"]
    words += ["--data.batch_transform.scale=[0.5,1]", "--data.transform=torchvision.transforms.v2.RandomHorizontalFlip"]
    built = parser.instantiate(parser.parse_args(words)).data
    assert built.batch_transform.scale == (0.5, 1)
    assert isinstance(built.transform, v2.RandomHorizontalFlip)
