"""Collapse beside averages of the weights: all values of a row are of the model that is validated, saved and left."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TrainerFactory, quick_first
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from plain_module import PlainModule, make_loader, measure_by_hand
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, LayerwiseNC1
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import AverageEpochs, CollapseMonitor
from nc_finetune.callbacks._collapse.callback import CollapseCallback
from nc_finetune.methods import LayerReadout

AVERAGES: dict[str, Callable[[], L.Callback]] = {
    "ema": lambda: EMAWeightAveraging(decay=0.9),
    "epochs": lambda: AverageEpochs(0.5),
    "late": lambda: EMAWeightAveraging(decay=0.9, update_starting_at_step=7),
    "without_buffers": lambda: WeightAveraging(use_buffers=False),
}
BOTH: dict[str, Any] = {"split": ["train", "val"]}
CALLBACKS: dict[str, Callable[[], CollapseCallback]] = {
    "rides": lambda: LayerwiseNC1("penultimate", **BOTH),
    "own_pass": lambda: LayerwiseNC1("penultimate", samples_per_class=3, **BOTH),
    "monitor": lambda: CollapseMonitor("penultimate", **BOTH),
    "put_off": lambda: LayerwiseNC1("penultimate", every_n_epochs=None, **BOTH),
}


class StopAtOnce(L.Callback):
    """Stops when nobody expects it."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


class OwnAverage(L.Callback):
    """Validates an average, in a way of its own."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._average_model = copy.deepcopy(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Would put it in place."""


def fit(make_trainer: TrainerFactory, *callbacks: L.Callback, **options: Any) -> dict[str, Tensor]:
    """Return the weights that are left of a fit that is validated on its training images."""
    model = PlainModule(lr=0.1)
    make_trainer(*callbacks, **{"max_epochs": 2, **options}).fit(model, make_loader(), make_loader())
    return model.state_dict()


def by_split(callback: CollapseCallback) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return what each row has of the training and of the validation split."""
    train = [{k: v for k, v in row.items() if not k.startswith(("val/", "epoch", "step"))} for row in callback.history]
    val = [{k[4:]: v for k, v in row.items() if k.startswith("val/")} for row in callback.history]
    return train, val


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize(
    ("average", "kind"),
    quick_first(
        3,
        [
            ("ema", "rides"),
            ("epochs", "monitor"),
            ("late", "own_pass"),
            ("epochs", "rides"),
            ("ema", "monitor"),
            ("without_buffers", "rides"),
        ],
    ),
)
def test_the_same_images_have_the_same_values_as_training_and_validation_split(
    average: str, kind: str, average_first: bool, make_trainer: TrainerFactory
) -> None:
    callbacks = [CALLBACKS[kind](), AVERAGES[average]()]
    fit(make_trainer, *(callbacks[::-1] if average_first else callbacks))
    train, val = by_split(callbacks[0])  # type: ignore[arg-type]
    assert len(train) == 2
    assert train[0] != train[1]
    for one, other in zip(train, val, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(
    ("average", "average_first"), quick_first(2, [("ema", False), ("epochs", True), ("ema", True), ("epochs", False)])
)
def test_what_was_put_off_is_measured_on_the_average_that_is_left(
    average: str, average_first: bool, make_trainer: TrainerFactory
) -> None:
    callbacks = [CALLBACKS["put_off"](), AVERAGES[average]()]
    model = PlainModule(lr=0.1)
    trainer = make_trainer(*(callbacks[::-1] if average_first else callbacks), StopAtOnce(), max_epochs=9)
    trainer.fit(model, make_loader(), make_loader())
    (row,) = callbacks[0].history  # type: ignore[attr-defined]
    expected = measure_by_hand(model, model.net.fc, make_loader(), take_input=True)  # type: ignore[arg-type]
    assert row["nc1/penultimate"] == row["val/nc1/penultimate"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("average", "precision"),
    quick_first(2, [("ema", "bf16-true"), ("epochs", "32-true"), ("ema", "32-true"), ("epochs", "bf16-true")]),
)
def test_the_fit_ends_with_the_weights_that_it_would_have_without(
    average: str, precision: str, make_trainer: TrainerFactory
) -> None:
    """Also in few digits, of which the average has more."""
    options = {"precision": precision, "limit_val_batches": 0}
    alone = fit(make_trainer, AVERAGES[average](), **options)
    beside = fit(make_trainer, LayerwiseNC1("penultimate"), AVERAGES[average](), **options)
    assert all(torch.equal(value, alone[name]) for name, value in beside.items())


def test_the_weights_are_put_back_where_measuring_raises(make_trainer: TrainerFactory) -> None:
    class Broken(LayerwiseNC1):
        def _measure(self, *_: Any) -> dict[str, float]:
            raise InterruptedError

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before = {name: value.clone() for name, value in pl_module.state_dict().items()}
            with pytest.raises(InterruptedError):
                super().on_train_epoch_end(trainer, pl_module)
            after.append(all(torch.equal(value, before[name]) for name, value in pl_module.state_dict().items()))

    after: list[bool] = []
    fit(make_trainer, Broken("penultimate"), AVERAGES["ema"](), max_epochs=1)
    assert after == [True]


def test_a_test_is_measured_on_the_weights_that_are_tested(make_trainer: TrainerFactory) -> None:
    callback, other = LayerwiseNC1("penultimate", split="test", samples_per_class=99), PlainModule()
    trainer = make_trainer(AVERAGES["ema"](), callback)
    trainer.fit(PlainModule(lr=0.1), make_loader())
    trainer.test(other, make_loader(), verbose=False)
    expected = measure_by_hand(other, other.net.fc, make_loader(), take_input=True)  # type: ignore[arg-type]
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_a_head_that_is_solved_is_measured_though_no_step_was_averaged(make_trainer: TrainerFactory) -> None:
    images, labels, rows = torch.rand(12, 3, 32, 32), torch.arange(12) % 3, []
    for averages in ([], [AVERAGES["ema"]()]):
        torch.manual_seed(0)
        model = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=LayerReadout("all"))
        callback = LayerwiseNC1("penultimate")
        make_trainer(*averages, callback).fit(model, DataLoader(TensorDataset(images, labels), 6))
        rows += callback.history
    assert rows[0] == rows[1]


def test_an_average_that_is_validated_in_a_way_of_its_own_is_told_once(make_trainer: TrainerFactory) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make_trainer, LayerwiseNC1("penultimate"), OwnAverage(), max_epochs=2)
    (told,) = [str(one.message) for one in caught if "OwnAverage" in str(one.message)]
    assert "LayerwiseNC1 measures the train split on the weights that the module has at that moment" in told


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:SWA is currently only")
@pytest.mark.parametrize("average", [AVERAGES["ema"], lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1)])
def test_nothing_is_told_of_averages_that_are_known(
    average: Callable[[], L.Callback], make_trainer: TrainerFactory, recwarn: pytest.WarningsRecorder
) -> None:
    fit(make_trainer, LayerwiseNC1("penultimate"), average())
    assert not [one for one in recwarn if "may validate an average" in str(one.message)]
