"""What needs a CUDA device: no waiting for it, its precision, its memory."""

from typing import Any

import lightning as L
import pytest
import torch
from conftest import TrainerFactory
from plain_module import CLASSES, PlainModule, make_loader, measure_by_hand
from torch import nn

from nc_finetune import LayerwiseNC1
from nc_finetune.backbones import find_network_layers
from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.callbacks._collapse import layer_sums
from nc_finetune.callbacks._collapse.measurement import Measurement
from nc_finetune.metrics import NeuralCollapse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def fit(make_trainer: TrainerFactory, callback: L.Callback, **options: Any) -> PlainModule:
    model = PlainModule()
    trainer = make_trainer(callback, accelerator="gpu", devices=1, **options)
    trainer.fit(model, make_loader(), make_loader(16, seed=1))
    return model.cuda()


def on_device(number: int = 22, seed: int = 0) -> list[Any]:
    return [(images.cuda(), labels) for images, labels in make_loader(number, seed)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_values_are_those_of_features_taken_by_hand(make_trainer: TrainerFactory, split: str) -> None:
    callback = LayerwiseNC1(split=split, strict=True)
    model = fit(make_trainer, callback)
    batches = on_device() if split == "train" else on_device(16, seed=1)

    def to_cpu(output: torch.Tensor) -> torch.Tensor:
        return output.cpu()

    expected = measure_by_hand(model, model.net.fc, batches, take_input=True, pool=to_cpu)  # type: ignore[arg-type]
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-4)  # TF32 and order of sums


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_half_precision_gives_finite_values(make_trainer: TrainerFactory, precision: str) -> None:
    callback = LayerwiseNC1(split=["train", "val"], strict=True)
    fit(make_trainer, callback, precision=precision)
    assert all(value > 0 for key, value in callback.history[0].items() if key.startswith(("nc1", "val")))


def test_the_monitor_runs(make_trainer: TrainerFactory) -> None:
    callback = CollapseMonitor(strict=True)
    fit(make_trainer, callback)
    assert callback.history[0]["collapse/nc4"] >= 0


def measuring(net: nn.Module) -> Measurement:
    layers = find_network_layers(net.cuda().eval(), num_classes=CLASSES)

    def make(width: int, measures: tuple[str, ...], scatter: bool) -> NeuralCollapse:
        return NeuralCollapse(CLASSES, width, measures=measures, scatter=scatter)

    measures = dict.fromkeys(layers.layer_names, ("nc1",))
    return Measurement(layers, measures, CLASSES, make, pooling="default", device=torch.device("cuda"))


def test_no_batch_waits_for_the_device() -> None:
    net = PlainModule().net
    measurement = measuring(net)
    images, labels = torch.randn(8, 3, 32, 32, device="cuda"), torch.arange(8, device="cuda") % CLASSES
    with measurement.watch(measurement.take), torch.inference_mode():
        for batch in range(3):
            if batch == 1:  # the first batch makes the sums
                torch.cuda.set_sync_debug_mode("error")
            measurement.begin_batch(batch, labels, slice(7))
            net(images)
            measurement.end_batch()
        torch.cuda.set_sync_debug_mode("default")
    assert measurement.problems == {}


@pytest.fixture(autouse=True)
def _waiting_is_allowed_again() -> Any:
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_memory_does_not_grow_with_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_sums, "max_kept_samples", lambda width: 64)
    net = PlainModule().net
    measurement = measuring(net)
    images, labels = torch.randn(64, 3, 64, 64, device="cuda"), torch.arange(64, device="cuda") % CLASSES
    used = []
    with measurement.watch(measurement.take), torch.inference_mode():
        for batch in range(6):
            measurement.begin_batch(batch, labels)
            net(images)
            measurement.end_batch()
            used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[1]
