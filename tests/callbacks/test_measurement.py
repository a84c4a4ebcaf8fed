"""Bad input is nan with one warning that says where, and an error only if strict."""

import math
import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TrainerFactory
from crossed import crossed
from plain_module import CLASSES, PlainModule, make_loader, make_samples
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import MeasurementError


def fit(
    make_trainer: TrainerFactory, callback: L.Callback, model: PlainModule | None = None, **options: Any
) -> PlainModule:
    model = PlainModule() if model is None else model
    make_trainer(callback, **options).fit(model, make_loader(), make_loader(16, seed=1))
    return model


def spoil(position: int, change: Callable[[Tensor, Tensor], Any]) -> DataLoader[Any]:
    def collate(rows: list[Any]) -> Any:
        images, labels = torch.utils.data.default_collate(rows)
        first = torch.equal(images[0], make_samples()[position][0])
        return change(images, labels) if first else (images, labels)

    return make_loader(collate_fn=collate)


class TupleBlock(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return images, images


class Unused(PlainModule):
    def __init__(self) -> None:
        super().__init__(unpack=lambda batch: batch if len(batch) == 2 else (batch[0], torch.zeros(5).long()))
        self.odd = TupleBlock()
        self.idle = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.odd(images)[0])


BAD: dict[str, tuple[Any, str, str]] = {
    "no labels": (spoil(5, lambda images, labels: [images]), "layer1.0", "batch 1: a batch must be .inputs, labels."),
    "labels out of range": (spoil(10, lambda i, y: (i, y + 7)), "layer1.0", r"batch 2: labels must lie in .* 7 to 9"),
    "float labels": (spoil(0, lambda i, y: (i, y + 0.5)), "layer1.0", "batch 0: labels must be integers"),
    "not finite": (
        spoil(5, lambda i, y: (i * torch.nan, y)),
        "layer1.0",
        r"features are not finite \(first in batch 1\)",
    ),
    "a tuple": (make_loader(), "odd", "layer odd: batch 0: it must give one tensor, got tuple"),
    "never run": (make_loader(), "idle", "layer idle: it gave nothing: it did not run"),
    "width changes": (
        spoil(10, lambda i, y: (nn.functional.interpolate(i, size=(64, 64)), y)),
        "layer1.0",
        r"layer layer1.0: batch 2: features must have shape \(N, 2048\)",
    ),
    "class absent": (
        DataLoader(TensorDataset(*(t[1:3] for t in make_samples().tensors))),
        "layer1.0",
        "no samples of class 0",
    ),
}


@pytest.mark.parametrize(("split", "case"), crossed(["train", "val"], BAD))
def test_bad_input_is_nan_with_one_warning(make_trainer: TrainerFactory, case: str, split: str) -> None:
    data, layer, match = BAD[case]
    pool = "flatten" if case == "width changes" else "default"
    callback = LayerwiseNC1(layers=[layer], split=split, train_dataloader=data, num_classes=CLASSES, pool=pool)
    trainer = make_trainer(callback, max_epochs=2, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="could not measure") as caught:
        trainer.fit(NoCheck(), make_loader(), data if split == "val" else make_loader(16))
    [message] = [str(warning.message) for warning in caught if "could not measure" in str(warning.message)]
    assert re.search(match, message), message
    assert len(callback.history) == 2
    assert all(math.isnan(row[f"nc1/{layer}"]) for row in callback.history)


class NoCheck(Unused):
    """Takes batches whatever they are: what is bad for us may be good for others."""

    def _loss(self, batch: Any) -> Tensor:
        images = batch[0]
        return self(images).square().mean()


@pytest.mark.parametrize(("case", "split"), crossed(["no labels", "a tuple", "class absent"], ["train", "val"]))
def test_bad_input_is_an_error_if_strict(make_trainer: TrainerFactory, case: str, split: str) -> None:
    data, layer, match = BAD[case]
    callback = LayerwiseNC1(layers=[layer], split=split, train_dataloader=data, num_classes=CLASSES, strict=True)
    trainer = make_trainer(callback, num_sanity_val_steps=0)
    with pytest.raises(MeasurementError, match=match):
        trainer.fit(NoCheck(), make_loader(), data if split == "val" else make_loader(16))


def test_other_layers_are_measured_beside_a_bad_one(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["layer1.0", "odd"], num_classes=CLASSES)
    with pytest.warns(UserWarning, match="layer odd"):
        fit(make_trainer, callback, NoCheck())
    assert callback.values["layer1.0"] > 0


class Wrapped(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.block(images),)


class Unwrap(nn.Module):
    def forward(self, outputs: tuple[Tensor]) -> Tensor:
        return outputs[0]


def test_a_tuple_of_one_tensor_is_that_tensor(make_trainer: TrainerFactory) -> None:
    model = PlainModule()
    model.net.layer2 = nn.Sequential(Wrapped(model.net.layer2), Unwrap())  # type: ignore[arg-type]
    callback = LayerwiseNC1(layers=["net.layer2.0", "net.layer2.0.block"], strict=True)
    fit(make_trainer, callback, model)
    assert len(set(callback.values.values())) == 1


def test_each_split_has_a_warning_of_its_own(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["odd"], split=["train", "val"], num_classes=CLASSES)
    with pytest.warns(UserWarning, match="on the train split") as caught:
        make_trainer(callback, max_epochs=2).fit(NoCheck(), make_loader(), make_loader(16))
    assert sum("could not measure" in str(warning.message) for warning in caught) == 2


def test_an_error_without_words_is_told_by_its_name(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["layer1.0"], split="val", unpack=lambda batch: {}["x"])
    with pytest.warns(UserWarning, match="batch 0: KeyError: 'x'"):
        fit(make_trainer, callback)


def test_a_head_of_many_more_classes_than_there_are_data_of_is_told_in_short(make_trainer: TrainerFactory) -> None:
    with pytest.warns(UserWarning, match=r"no samples of class 3, 4, .*, 22 and 977 more of 1000"):
        fit(make_trainer, LayerwiseNC1(layers=["penultimate"], num_classes=1000, input_of_classifier="fc"))
