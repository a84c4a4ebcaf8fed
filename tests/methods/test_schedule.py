"""Learning rates along a fit, and along one that goes on."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import LoaderFactory, TrainerFactory
from crossed import crossed
from torch import nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.methods import rate_factor

STEPS = 3  # of an epoch


class Rates(L.Callback):
    """Notes the rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def fit(
    make_trainer: TrainerFactory, make_loader: LoaderFactory, epochs: int, resumed: Path | None = None, **options: Any
) -> tuple[list[float], L.Trainer]:
    rates = Rates()
    torch.manual_seed(0)
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, head_learning_rate=1.0, **options)
    trainer = make_trainer(rates, max_epochs=epochs)
    trainer.fit(model, make_loader(4 * STEPS), ckpt_path=resumed, **({"weights_only": True} if resumed else {}))
    return rates.seen, trainer


def cosine(step: int, total: int) -> float:
    return (1 + math.cos(math.pi * step / total)) / 2


def test_the_default_is_half_a_cosine(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    seen, _ = fit(make_trainer, make_loader, 2)
    assert seen == pytest.approx([cosine(step, 6) for step in range(6)])


@pytest.mark.parametrize(("warmup", "schedule"), crossed([0, 2, 0.5], ["cosine", "linear", "constant"]))
def test_a_fit_of_longer_is_the_end_of_a_long_fit(
    schedule: str, warmup: float, tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    _, trainer = fit(make_trainer, make_loader, 2, schedule=schedule, warmup=warmup)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    seen, _ = fit(make_trainer, make_loader, 4, tmp_path / "it.ckpt", schedule=schedule, warmup=warmup)
    whole, _ = fit(make_trainer, make_loader, 4, schedule=schedule, warmup=warmup)
    assert seen == pytest.approx(whole[2 * STEPS :])
    assert all(later <= earlier for earlier, later in pairwise(seen))


def test_a_checkpoint_of_torchs_cosine_goes_on(
    tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    _, trainer = fit(make_trainer, make_loader, 2)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    checkpoint = torch.load(tmp_path / "it.ckpt", weights_only=True)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    old = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * STEPS)
    for _ in range(2 * STEPS):
        optimizer.step()
        old.step()
    checkpoint["lr_schedulers"] = [old.state_dict()]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    seen, _ = fit(make_trainer, make_loader, 4, tmp_path / "old.ckpt")
    assert seen == pytest.approx([cosine(step, 12) for step in range(6, 12)])


def test_without_an_end_the_rate_stays_and_it_is_said(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    rates = Rates()
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, head_learning_rate=1.0)
    with pytest.warns(UserWarning, match="the rates cannot fall along a cosine: they stay constant"):
        make_trainer(rates, Stop(), max_epochs=-1).fit(model, make_loader(4 * STEPS))
    assert rates.seen == [1.0] * STEPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"warmup": -1}, "warmup must be a number of steps, or a share of all steps"),
        ({"warmup": 2.5}, "warmup must be a number of steps"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier("test_resnet", 3, weights=None, **options)


def test_it_never_divides_by_nothing() -> None:
    for schedule in ("cosine", "linear", "constant"):
        for warmup in (0, 1, 5, 0.9):
            factors = [rate_factor(schedule, warmup, 1)(step) for step in range(8)]  # type: ignore[arg-type]
            assert all(0 <= factor <= 1 for factor in factors)
            assert factors[0] > 0
