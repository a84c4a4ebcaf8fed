"""What comes out otherwise each time that it is read is never frozen unnoticed, wherever its numbers are drawn."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import quick_where
from crossed import crossed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from nc_finetune import ImageClassifier, LayerwiseNC1
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PrefixCache, ProbePath
from nc_finetune.heads import SimplexETFHead
from nc_finetune.methods import LayerFinetuning, LinearProbe

TrainerFactory = Callable[..., L.Trainer]
NUMBER = 24


class Images(Dataset[Any]):
    """Images whose flips somebody draws."""

    def __init__(self, flips: Callable[[], bool] = lambda: False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (NUMBER, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.flips = flips

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = self.images[row]
        return (image.flip(2) if self.flips() else image), row % 3


class Pairs(Images):
    """Takes a row and whether it is flipped."""

    def __getitem__(self, item: Any) -> tuple[Tensor, int]:
        row, flipped = item if isinstance(item, tuple) else (item, False)
        image = self.images[row]
        return (image.flip(2) if flipped else image), row % 3


class FlippingSampler(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((row, bool(torch.rand(()) < 0.5)) for row in range(NUMBER))

    def __len__(self) -> int:
        return NUMBER


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (Images()[int(row)] for row in torch.randperm(NUMBER))

    def __len__(self) -> int:
        return NUMBER


class RareFlip(Images):
    """Draws a number each time, and hardly ever does anything."""

    def __init__(self) -> None:
        super().__init__(lambda: bool(torch.rand(()) < 1e-6))


def flipped_batch(flips: Callable[[], bool]) -> Callable[[Any], Any]:
    def collate(rows: Any) -> Any:
        images, labels = torch.utils.data.default_collate(rows)
        return (images.flip(3) if flips() else images), labels

    return collate


class Hooked(L.LightningDataModule):
    """Flips training batches on the device, with a generator of its own."""

    def __init__(self, when_training: bool) -> None:
        super().__init__()
        self.when_training = when_training
        self.rng = np.random.default_rng(0)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Images(), batch_size=6)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Images(), batch_size=6)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        flips = (self.trainer.training or not self.when_training) and self.rng.random() < 0.5
        return (batch[0].flip(3) if flips else batch[0]), batch[1]


def own_numpy() -> Callable[[], bool]:
    rng = np.random.default_rng(0)
    return lambda: bool(rng.random() < 0.5)


def own_torch() -> Callable[[], bool]:
    generator = torch.Generator().manual_seed(0)
    return lambda: bool(torch.rand((), generator=generator) < 0.5)


def own_python() -> Callable[[], bool]:
    generator = random.Random(0)  # noqa: S311
    return lambda: generator.random() < 0.5


def loader(dataset: Any, **options: Any) -> dict[str, Any]:
    return {"train_dataloaders": DataLoader(dataset, batch_size=6, **options)}


RANDOM: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "torch": (lambda: loader(Images(lambda: bool(torch.rand(()) < 0.5))), "dataset gives other samples"),
    "numpy": (lambda: loader(Images(lambda: bool(np.random.rand() < 0.5))), "dataset gives other samples"),
    "a rare flip": (lambda: loader(RareFlip()), "dataset gives other samples"),
    "own numpy generator": (lambda: loader(Images(own_numpy())), "dataset gives other samples"),
    "own torch generator": (lambda: loader(Images(own_torch())), "dataset gives other samples"),
    "own python generator": (lambda: loader(Images(own_python())), "dataset gives other samples"),
    "collate_fn": (lambda: loader(Images(), collate_fn=flipped_batch(own_numpy())), "collate_fn makes other batches"),
    "collate_fn, torch": (
        lambda: loader(Images(), collate_fn=flipped_batch(lambda: bool(torch.rand(()) < 0.5))),
        "collate_fn makes other batches",
    ),
    "hook": (lambda: {"datamodule": Hooked(when_training=False)}, "transfer hooks make other batches"),
    "hook in training": (lambda: {"datamodule": Hooked(when_training=True)}, "transfer hooks make other batches"),
    "stream": (lambda: {"train_dataloaders": DataLoader(Stream(), batch_size=6)}, "samples have numbers"),
}
# One of each place and kind of generator, which run always.
FEW = {"torch", "a rare flip", "own numpy generator", "collate_fn", "hook in training", "stream"}


def make_model(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", None)
    return ImageClassifier(backbone, 3, **{"method": LayerFinetuning("layer3.0"), **options})


@pytest.mark.parametrize("name", quick_where(FEW.__contains__, RANDOM))
def test_a_prefix_is_not_kept(make_trainer: TrainerFactory, name: str) -> None:
    give, reason = RANDOM[name]
    cache, model = PrefixCache(splits=["train"]), make_model()
    with pytest.warns(UserWarning, match=rf"PrefixCache: .*{reason}.*training goes on without it"):
        make_trainer(cache).fit(model, **give())
    assert cache.stored_bytes == {}
    assert model.split is None


@pytest.mark.parametrize("name", ["own numpy generator", "collate_fn", "hook in training"])
def test_views_of_what_is_random_differ(make_trainer: TrainerFactory, name: str) -> None:
    give, _ = RANDOM[name]
    cache, seen = PrefixCache(views=3, splits=["train"]), []

    class Look(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            seen.append(trainer.train_dataloader.dataset.__getitems__(list(range(NUMBER)))[0]["layer3.0"].clone())

    make_trainer(cache, Look(), max_epochs=4, num_sanity_val_steps=0).fit(make_model(), **give())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[3])


@pytest.mark.parametrize(("split", "where"), crossed(["train", "val"], ["dataset", "collate_fn", "hook"]))
def test_what_changes_with_the_epoch_is_noticed_in_the_second(
    make_trainer: TrainerFactory, split: str, where: str
) -> None:
    epoch = [0]

    class Count(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            epoch[0] = trainer.current_epoch

    class Later(ImageClassifier):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (batch[0].flip(3) if where == "hook" and epoch[0] else batch[0]), batch[1]

    torch.manual_seed(0)
    model = Later(TimmBackbone("test_resnet", None), 3, method=LayerFinetuning("layer3.0"))
    changed = Images(lambda: where == "dataset" and epoch[0] > 0)
    collate = flipped_batch(lambda: where == "collate_fn" and epoch[0] > 0)
    both = [DataLoader(changed, batch_size=6, collate_fn=collate) for _ in range(2)]
    cache = PrefixCache(splits=[split])
    with pytest.warns(UserWarning, match=rf"in epoch 1 some {split} images have become others.* goes on without it"):
        make_trainer(Count(), cache, max_epochs=3).fit(model, *both)
    assert cache.stored_bytes == {}
    assert isinstance(both[0].dataset, Images)


def test_a_sampler_that_says_more_than_a_number_is_obeyed(make_trainer: TrainerFactory) -> None:
    def run(*callbacks: L.Callback) -> dict[str, Tensor]:
        L.seed_everything(1, verbose=False)
        model = make_model()
        make_trainer(*callbacks, max_epochs=2).fit(model, **loader(Pairs(), sampler=FlippingSampler()))
        return model.state_dict()

    with pytest.warns(UserWarning, match="the sampler gives tuple in place of numbers of samples"):
        kept = run(PrefixCache(splits=["train"]))
    plain = run()
    assert all(torch.equal(value, plain[name]) for name, value in kept.items())


def test_a_generator_of_the_loader_gives_the_same_order(make_trainer: TrainerFactory) -> None:
    def run(*callbacks: L.Callback) -> dict[str, Tensor]:
        L.seed_everything(1, verbose=False)
        model, generator = make_model(), torch.Generator().manual_seed(4)
        make_trainer(*callbacks, max_epochs=2).fit(model, **loader(Images(), shuffle=True, generator=generator))
        return model.state_dict()

    kept, plain = run(PrefixCache()), run()
    assert all(torch.equal(value, plain[name]) for name, value in kept.items())


@pytest.mark.parametrize(
    ("taker", "name"),
    crossed(["LayerwiseNC1", "ProbePath", "HeadAlignment"], ["own numpy generator", "collate_fn", "hook"]),
)
def test_whoever_takes_one_version_of_many_says_so(make_trainer: TrainerFactory, name: str, taker: str) -> None:
    give, reason = RANDOM[name]
    callbacks: list[L.Callback] = [LayerwiseNC1(["penultimate"])] if taker == "LayerwiseNC1" else []
    options: dict[str, Any] = {}
    if taker == "ProbePath":
        callbacks, options = [ProbePath([1e-2])], {"method": LinearProbe()}
    if taker == "HeadAlignment":
        options = {"head": lambda width, classes: SimplexETFHead(width, classes, orientation="class_means")}
    data = {"val_dataloaders": DataLoader(Images(), batch_size=6), **give()}
    if "datamodule" in data:
        data.pop("val_dataloaders")
    with pytest.warns(UserWarning, match=rf"{taker} takes training data as they come, and .*{reason}") as caught:
        make_trainer(*callbacks, max_epochs=2).fit(make_model(**options), **data)
    assert len([warning for warning in caught if taker in str(warning.message)]) == 1


def test_data_that_are_said_to_be_the_same_are_not_looked_at(make_trainer: TrainerFactory) -> None:
    class Told(Hooked):
        deterministic = True

    cache = PrefixCache(splits=["train"])
    make_trainer(cache).fit(make_model(), datamodule=Told(when_training=True))
    assert cache.stored_bytes.keys() == {"train"}
