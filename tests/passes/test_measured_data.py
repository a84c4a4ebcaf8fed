"""Which samples are measured, in batches of which kind, and how often each goes through the network."""

from typing import Any

import lightning as L
import pytest
import torch
from conftest import TrainerFactory
from plain_module import PlainModule, make_loader, make_samples, measure_by_hand
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.callbacks._collapse import layer_sums


def fit(
    make_trainer: TrainerFactory, callback: L.Callback, model: PlainModule | None = None, **options: Any
) -> PlainModule:
    model = PlainModule() if model is None else model
    make_trainer(callback, **options).fit(model, make_loader(), make_loader(16, seed=1))
    return model


def test_riding_along_validation_runs_no_forward_pass_of_its_own(make_trainer: TrainerFactory) -> None:
    plain, measured = PlainModule(), PlainModule()
    fit(make_trainer, L.Callback(), plain, max_epochs=2)
    fit(make_trainer, LayerwiseNC1(split="val"), measured, max_epochs=2)
    assert measured.images_seen == plain.images_seen


def test_the_training_split_costs_one_forward_pass(make_trainer: TrainerFactory) -> None:
    plain, measured = PlainModule(), PlainModule()
    fit(make_trainer, L.Callback(), plain)
    fit(make_trainer, LayerwiseNC1(), measured)
    assert measured.images_seen - plain.images_seen == 22


class Unlabelled(Dataset[Any]):
    """Says nothing of its labels."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Any:
        return make_samples()[index]


@pytest.mark.parametrize("dataset", [make_samples(), Unlabelled()], ids=["labels", "no labels"])
def test_samples_per_class_takes_the_first_of_each(make_trainer: TrainerFactory, dataset: Dataset[Any]) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], samples_per_class=3)
    model = PlainModule()
    make_trainer(callback).fit(model, DataLoader(dataset, batch_size=5, shuffle=True))
    first = DataLoader(TensorDataset(*(tensor[:9] for tensor in make_samples().tensors)), batch_size=9)
    expected = measure_by_hand(model, model.net.fc, first, True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_capped_validation_is_measured_apart(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], samples_per_class=3, split="val")
    model = fit(make_trainer, callback)
    first = DataLoader(TensorDataset(*(tensor[:9] for tensor in make_samples(16, seed=1).tensors)), batch_size=9)
    assert callback.values["penultimate"] == pytest.approx(measure_by_hand(model, model.net.fc, first, True), rel=1e-6)


@pytest.mark.parametrize("split", ["train", "val"])
def test_max_batches_takes_the_first(make_trainer: TrainerFactory, split: str) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], max_batches=2, split=split)
    model = fit(make_trainer, callback)
    loader = make_loader() if split == "train" else make_loader(16, seed=1)
    expected = measure_by_hand(model, model.net.fc, list(loader)[:2], True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("collate", "unpack"),
    [
        (lambda pair: {"image": pair[0], "label": pair[1]}, None),
        (lambda pair: {"pixel_values": pair[0], "labels": pair[1]}, None),
        (lambda pair: (pair[0], pair[1], "ids"), None),
        (lambda pair: {"a": [pair[1].unsqueeze(1)], "b": pair[0]}, lambda batch: (batch["b"], batch["a"][0])),
    ],
    ids=["dict", "HF", "triple", "function"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_of_many_kinds(make_trainer: TrainerFactory, collate: Any, unpack: Any, split: str) -> None:
    def take_apart(batch: Any) -> tuple[Tensor, Tensor]:
        if unpack is not None:
            return unpack(batch)[0], unpack(batch)[1].flatten()
        return tuple(batch.values() if isinstance(batch, dict) else batch[:2])  # type: ignore[return-value]

    def make(number: int, seed: int) -> DataLoader[Any]:
        return make_loader(number, seed, collate_fn=lambda rows: collate(torch.utils.data.default_collate(rows)))

    callback = LayerwiseNC1(layers=["penultimate"], split=split, **({"unpack": unpack} if unpack else {}), strict=True)
    make_trainer(callback).fit(PlainModule(unpack=take_apart), make(22, 0), make(16, 1))
    assert callback.values["penultimate"] > 0


def test_several_validation_loaders_are_measured_each(make_trainer: TrainerFactory) -> None:
    callback, model = LayerwiseNC1(layers=["penultimate"], split="val"), PlainModule()
    loaders = [make_loader(16, seed=1), make_loader(13, seed=2)]
    make_trainer(callback).fit(model, make_loader(), loaders)
    for key, loader in zip(("nc1/penultimate", "nc1/penultimate/dataloader_idx_1"), loaders, strict=True):
        assert callback.history[0][key] == pytest.approx(measure_by_hand(model, model.net.fc, loader, True), rel=1e-6)


def test_a_sampler_of_a_subset_stands_for_a_split(make_trainer: TrainerFactory) -> None:
    callback, model = LayerwiseNC1(layers=["penultimate"]), PlainModule()
    loader = make_loader(sampler=SubsetRandomSampler([*range(5, 17)]))
    make_trainer(callback).fit(model, loader)
    part = DataLoader(TensorDataset(*(tensor[5:17] for tensor in make_samples().tensors)), batch_size=4)
    assert callback.values["penultimate"] == pytest.approx(measure_by_hand(model, model.net.fc, part, True), rel=1e-6)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(make_samples()))


def test_an_iterable_dataset_is_measured_as_it_comes(make_trainer: TrainerFactory) -> None:
    callback, model = LayerwiseNC1(layers=["penultimate"]), PlainModule()
    make_trainer(callback).fit(model, DataLoader(Stream(), batch_size=5))
    expected = measure_by_hand(model, model.net.fc, make_loader(), True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("given", [make_loader(13, seed=5), lambda: make_loader(13, seed=5)])
def test_training_data_can_be_given(make_trainer: TrainerFactory, given: Any) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], train_dataloader=given)
    model = fit(make_trainer, callback)
    expected = measure_by_hand(model, model.net.fc, make_loader(13, seed=5), True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_augmentation_on_the_device_stays_away(make_trainer: TrainerFactory) -> None:
    class Augmenting(PlainModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (torch.zeros_like(batch[0]), batch[1]) if self.trainer.training else batch

    callback = LayerwiseNC1(layers=["penultimate"])
    model = fit(make_trainer, callback, Augmenting())
    expected = measure_by_hand(model, model.net.fc, make_loader(), True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_batches_are_prepared_as_in_the_loops_of_the_trainer(make_trainer: TrainerFactory) -> None:
    class Preparing(PlainModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"x": batch[0] * (2 + dataloader_idx), "y": batch[1]}

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch["x"] - dataloader_idx, batch["y"]

    loaders = [make_loader(16, seed=1), make_loader(13, seed=2)]
    ride = LayerwiseNC1(layers=["penultimate"], split="val", strict=True)
    own = LayerwiseNC1(layers=["penultimate"], split="val", samples_per_class=99, prefix="own/", strict=True)
    make_trainer(ride, own).fit(Preparing(), make_loader(), loaders)
    expected = {f"own/{key}": value for key, value in ride.history[0].items() if key.startswith("nc1")}
    assert {key: own.history[0][key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert len(expected) == 2


@pytest.mark.parametrize("limit", [2, 0.5])
def test_a_pass_of_ones_own_keeps_to_the_limit_of_the_loop(make_trainer: TrainerFactory, limit: float) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], split="val", samples_per_class=99)
    model = PlainModule()
    make_trainer(callback, limit_val_batches=limit).fit(model, make_loader(), make_loader(20, seed=1))
    expected = measure_by_hand(model, model.net.fc, list(make_loader(20, seed=1))[:2], True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_overfitting_measures_the_batches_that_are_overfitted(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["penultimate"])
    model = fit(make_trainer, callback, overfit_batches=2)
    expected = measure_by_hand(model, model.net.fc, list(make_loader())[:2], True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_data_that_come_only_once_are_no_second_pass(
    make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_sums, "max_kept_samples", lambda width: 1)
    callback = CollapseMonitor(train_dataloader=iter(list(make_loader())))
    with pytest.warns(UserWarning, match="second pass must see what the first saw: 22 samples, got 0"):
        make_trainer(callback).fit(PlainModule(), make_loader())
    assert callback.history[0]["collapse/nc4"] != callback.history[0]["collapse/nc4"]


def test_nothing_more_is_read_once_every_class_is_full(make_trainer: TrainerFactory) -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            while True:
                yield from list(make_samples())

    callback = LayerwiseNC1(
        layers=["penultimate"], samples_per_class=3, train_dataloader=DataLoader(Endless(), batch_size=5)
    )
    fit(make_trainer, callback)
    assert callback.values["penultimate"] > 0
