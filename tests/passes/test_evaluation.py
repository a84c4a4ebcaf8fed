"""A measurement leaves no trace, and sees through torch.compile."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TrainerFactory, quick_first
from lightning.pytorch.strategies import FSDPStrategy
from plain_module import PlainModule, make_loader, measure_by_hand
from torch import Tensor, nn

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import MeasurementError

BLOCKS = ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
LAYERS = ["stem", *BLOCKS, "penultimate"]


def count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def fit(
    make_trainer: TrainerFactory, callback: L.Callback, model: PlainModule | None = None, **options: Any
) -> PlainModule:
    model = PlainModule() if model is None else model
    make_trainer(callback, **options).fit(model, make_loader(), make_loader(16, seed=1))
    return model


class Counter(nn.Module):
    """Counts its runs in buffers, in place and by a new tensor, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("renewed", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.in_place += 1
        self.renewed = self.renewed + torch.rand(())
        return images


@pytest.mark.parametrize("strict", [False, True])
def test_modes_buffers_and_random_state_are_as_before(make_trainer: TrainerFactory, strict: bool) -> None:
    class Spied(LayerwiseNC1):
        def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> dict[str, float]:
            state = {name: value.clone() for name, value in pl_module.state_dict().items()}
            modes, random, stage = (
                [part.training for part in pl_module.modules()],
                torch.get_rng_state(),
                trainer.state.stage,
            )
            try:
                return super()._measure(trainer, pl_module, split)
            finally:
                assert [part.training for part in pl_module.modules()] == modes
                assert torch.equal(torch.get_rng_state(), random)
                assert trainer.state.stage == stage
                assert count_hooks(pl_module) == 0
                assert all(torch.equal(value, state[name]) for name, value in pl_module.state_dict().items())
                assert not any(buffer.is_inference() for buffer in pl_module.buffers())

    class Failing(PlainModule):
        def forward(self, images: Tensor) -> Tensor:
            if strict and not self.training:
                raise RuntimeError("planted")
            return super().forward(images)

    model = Failing()
    model.net = nn.Sequential(Counter(), model.net)
    model.net[1].layer1.eval()  # a part in another mode
    trainer = make_trainer(Spied(strict=strict), max_epochs=2)
    if strict:
        with pytest.raises(MeasurementError, match=r"layer .*penultimate: batch 0: RuntimeError: planted"):
            trainer.fit(model, make_loader(shuffle=True))
    else:
        trainer.fit(model, make_loader(shuffle=True))


def test_hooks_are_gone_after_the_validation_loop_broke(make_trainer: TrainerFactory) -> None:
    class Breaking(PlainModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            assert count_hooks(self) == len(LAYERS)
            raise RuntimeError("planted")

    model = Breaking()
    with pytest.raises(RuntimeError, match="planted"):
        fit(make_trainer, LayerwiseNC1(split="val"), model, num_sanity_val_steps=0)
    assert count_hooks(model) == 0


@pytest.mark.parametrize(
    ("kind", "split"), quick_first(1, [("in place", "val"), ("network", "val"), ("module", "train")])
)
def test_compiled_modules_are_measured_on_the_original(make_trainer: TrainerFactory, kind: str, split: str) -> None:
    torch.compiler.reset()
    callback, model = LayerwiseNC1(split=split), PlainModule(lr=0.0)
    expected_of = PlainModule(lr=0.0)
    fit(make_trainer, expected := LayerwiseNC1(split=split), expected_of)
    given: Any = model
    if kind == "module":
        given = torch.compile(model, backend="eager")
    elif kind == "network":
        model.net = torch.compile(model.net, backend="eager")  # type: ignore[assignment]
    else:
        model.net.compile(backend="eager")
    make_trainer(callback).fit(given, make_loader(), make_loader(16, seed=1))
    assert callback.values == pytest.approx(expected.values, rel=1e-5)
    torch.compiler.reset()


def test_a_frozen_backbone_is_measured(make_trainer: TrainerFactory) -> None:
    model = PlainModule()
    for part in BLOCKS:
        model.net.get_submodule(part).requires_grad_(False)
    callback = LayerwiseNC1(layers=["layer4.0"], strict=True)
    fit(make_trainer, callback, model)
    assert callback.values["layer4.0"] > 0


def test_a_module_without_forward_is_measured_by_its_network(make_trainer: TrainerFactory) -> None:
    class Bare(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = PlainModule().net

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    callback, model = LayerwiseNC1(strict=True), Bare()
    make_trainer(callback).fit(model, make_loader())
    expected = measure_by_hand(model.net, model.net.fc, make_loader(), True)
    assert callback.values["penultimate"] == pytest.approx(expected, rel=1e-6)


def test_strategies_that_shard_are_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(ValueError, match=r"LayerwiseNC1 needs the whole network in every process .* got FSDPStrategy"):
        LayerwiseNC1().setup(trainer, PlainModule(), "fit")
