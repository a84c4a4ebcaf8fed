"""Flags of the trainer that touch loaders: a run with each of them, cut off anywhere, goes on bit for bit."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_where
from safely import SAFELY
from torch import Tensor

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1
from nc_finetune.callbacks import ResumableRun, RunInterruptedError

EPOCHS = 3
BATCHES = 8  # of an epoch without limits: stopping there is stopping between two epochs


def brighten(image: Tensor) -> Tensor:
    return (image * torch.rand(())).to(torch.uint8)


class Watch(L.Callback):
    """Keep what came in which batch, and tell the run to end after one of them, counted over all epochs."""

    def __init__(self, run: ResumableRun, stop_after: int | None) -> None:
        self.run, self.stop_after = run, stop_after
        self.seen: list[tuple[float, list[int]]] = []
        self.validations: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((float(batch[0].double().sum()), batch[1].tolist()))
        if len(self.seen) == self.stop_after:
            self.run._note(15, None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


def fit(
    folder: Path, stop_after: int | None = None, resume: bool = False, data: dict[str, Any] | None = None, **flags: Any
) -> tuple[Watch, ImageClassifier]:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    options = {"image_size": 16, "batch_size": 8, "train_share": 0.0432, "val_size": 30, "transform": brighten}
    images = ImageData("sklearn:digits", num_workers=0, **{**options, **(data or {})})  # of 8 batches
    model = ImageClassifier("test_resnet", 10, weights=None)
    run = ResumableRun(folder)
    watch = Watch(run, stop_after)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(callbacks=[watch, run], **{"max_epochs": EPOCHS, "num_sanity_val_steps": 0, **quiet, **flags})
    try:
        trainer.fit(model, datamodule=images, ckpt_path=folder / "last.ckpt" if resume else None, **SAFELY)
    except RunInterruptedError:
        assert stop_after is not None
    return watch, model


FLAGS: list[dict[str, Any]] = [
    {"limit_train_batches": 3},
    {"limit_train_batches": 0.5},
    {"limit_train_batches": 4, "data": {"balance_classes": True}},
    {"limit_train_batches": 5, "accumulate_grad_batches": 2},
    {"accumulate_grad_batches": 3},
    {"limit_train_batches": 4, "val_check_interval": 2},
    {"val_check_interval": 0.5},
    {"val_check_interval": 5, "check_val_every_n_epoch": None},
    {"overfit_batches": 3},
    {"overfit_batches": 0.5, "data": {"balance_classes": True}},
    {"reload_dataloaders_every_n_epochs": 1},
    {"reload_dataloaders_every_n_epochs": 2, "limit_train_batches": 3},
    {"limit_val_batches": 0},
    {"limit_val_batches": 0.5, "num_sanity_val_steps": -1},
    {"num_sanity_val_steps": 2, "use_distributed_sampler": False},
    {"max_epochs": -1, "max_steps": 18},
    {"max_steps": 18, "check_val_every_n_epoch": 2},
    {"max_steps": 18, "limit_val_batches": 0},
    {"max_steps": 9, "accumulate_grad_batches": 2},
    {},
]


# After how many batches a run is cut off: within an epoch, between two, and before the last one.
STOPS = (3, BATCHES, -1)
# Each run in two of these places.
CASES = [(place, stop) for place, stop in product(range(len(FLAGS)), STOPS) if stop != STOPS[(place + 1) % len(STOPS)]]
# Limits of batches, of steps and of validations, and loaders of another kind.
ALWAYS = ({"limit_train_batches": 0.5}, {"overfit_batches": 3}, {"limit_val_batches": 0})
ALWAYS += ({"limit_train_batches": 4, "val_check_interval": 2}, {"max_steps": 9, "accumulate_grad_batches": 2})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Watch, ImageClassifier]]:
    """A run with some flags that was not cut off; each is run once."""
    return cache(lambda place: fit(tmp_path_factory.mktemp("whole"), **FLAGS[place]))


@pytest.mark.parametrize(
    ("place", "stop"),
    quick_where(lambda case: FLAGS[case[0]] in ALWAYS and case[1] == STOPS[case[0] % len(STOPS)], CASES),
)
def test_a_run_that_was_cut_off_goes_on(
    whole: Callable[[int], tuple[Watch, ImageClassifier]], place: int, stop: int, tmp_path: Path
) -> None:
    flags, (complete, expected) = FLAGS[place], whole(place)
    stop_after = stop if stop > 0 else len(complete.seen) + stop
    first, _ = fit(tmp_path, stop_after, **flags)
    second, found = fit(tmp_path, resume=True, **flags)
    assert first.seen + second.seen == complete.seen
    assert first.validations + second.validations == complete.validations
    pairs = zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("balance", [False, True])
def test_overfitting_takes_the_same_images_of_several_classes_each_epoch(balance: bool, tmp_path: Path) -> None:
    data = {"balance_classes": balance, "transform": None}
    watch, _ = fit(tmp_path, data=data, overfit_batches=2)
    epochs = [watch.seen[start : start + 2] for start in range(0, 6, 2)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len({label for _, labels in epochs[0] for label in labels}) > 4


def test_what_is_measured_of_overfitted_batches_is_what_was_trained_on(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(overfit_batches=2, logger=False, accelerator="cpu")
    images = ImageData("sklearn:digits", image_size=16, batch_size=8)
    images.trainer = trainer
    trained, measured = iter(images.train_dataloader()), iter(images.eval_dataloader("train"))
    for _ in range(2):
        assert all(map(torch.equal, next(trained), next(measured)))


@pytest.mark.parametrize("flags", [{"fast_dev_run": True}, {"fast_dev_run": 2}, {"overfit_batches": 2}])
def test_measures_of_layers_run_with_it(flags: dict[str, Any], make_trainer: Any) -> None:
    images = ImageData("sklearn:digits", image_size=16, batch_size=32, samples_per_class=8)
    model = ImageClassifier("test_resnet", 10, weights=None)
    trainer = make_trainer(LayerwiseNC1(), **flags)
    trainer.fit(model, datamodule=images)
    trainer.test(model, datamodule=images, verbose=False)
