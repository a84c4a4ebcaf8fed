"""Compiled blocks: the same losses but for rounding, the same keys, and everything else beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from plain_module import PlainModule
from torch.utils.data import DataLoader

from nc_finetune import DeltaCheckpoint, ImageClassifier, LayerwiseNC1, TimmBackbone
from nc_finetune.callbacks import CompileBlocks, PrefixCache
from nc_finetune.methods import FullFinetuning, LinearProbe, SideFinetuning, SkipConnectionFinetuning

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]


class Losses(L.Callback):
    def __init__(self) -> None:
        self.train: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(outputs["loss"].item())


def make_model(net: str = "test_resnet", method: Any = None) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = TimmBackbone(net, None, {} if net == "test_resnet" else {"img_size": 32})
    layer = "layer2.0" if net == "test_resnet" else "blocks.3"
    return ImageClassifier(backbone, 3, method=method or SkipConnectionFinetuning(layer))


@pytest.fixture
def fit(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> Callable[..., list[float]]:
    def run(model: ImageClassifier, *callbacks: L.Callback, **options: Any) -> list[float]:
        losses = Losses()
        torch._dynamo.reset()
        L.seed_everything(1, verbose=False)
        make_trainer(losses, *callbacks, max_epochs=2, **options).fit(model, make_loader(), make_loader(seed=1))
        return losses.train

    return run


class Counting:
    """A backend that runs what was traced and counts it."""

    def __init__(self) -> None:
        self.traced = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.traced += 1

        def run(*given: Any) -> Any:
            self.runs += 1
            return graph(*given)

        return run


@pytest.mark.parametrize(("net", "cached"), quick_first(1, [("test_vit", True), ("test_resnet", False)]))
def test_losses_are_the_same_and_blocks_from_the_tuned_one_on_are_compiled(
    fit: Callable[..., list[float]], net: str, cached: bool
) -> None:
    counting = Counting()
    compile_blocks = CompileBlocks(backend=counting)  # type: ignore[arg-type]
    caches = [PrefixCache()] if cached else []
    plain = fit(make_model(net))
    model = make_model(net)
    assert fit(model, compile_blocks, *caches) == pytest.approx(plain, rel=1e-5)
    blocks = model.backbone.block_names
    assert compile_blocks.compiled == blocks[blocks.index("layer2.0" if net == "test_resnet" else "blocks.3") :]
    steps, val = 6, 6 + 2  # with the sanity check
    assert counting.runs >= (steps + val) * len(compile_blocks.compiled)
    # A few kinds of blocks, modes and batch sizes; not one a step.
    assert counting.traced <= 6 * len(compile_blocks.compiled)


@pytest.mark.slow
def test_inductor_trains_the_same(fit: Callable[..., list[float]]) -> None:
    plain = fit(make_model())
    assert fit(make_model(), CompileBlocks(), PrefixCache()) == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_nothing_is_left_behind(fit: Callable[..., list[float]], tmp_path: Path) -> None:
    model = make_model()
    keys = list(model.state_dict())
    nc1, delta = LayerwiseNC1(split=("train", "val")), DeltaCheckpoint(tmp_path)
    fit(model, CompileBlocks(backend="eager"), nc1, delta, enable_checkpointing=True)
    assert list(model.state_dict()) == keys
    assert not any("forward" in part.__dict__ for part in model.modules())
    plain = LayerwiseNC1(split=("train", "val"))
    fit(make_model(), plain)
    for measured, expected in zip(nc1.history, plain.history, strict=True):
        assert {key: float(value) for key, value in measured.items()} == pytest.approx(
            {key: float(value) for key, value in expected.items()}, rel=1e-3
        )
    (saved,) = tmp_path.rglob("*.safetensors")
    assert b"_orig_mod" not in saved.read_bytes()


@pytest.mark.parametrize(("method", "number"), quick_first(1, [(LinearProbe(), 0), (FullFinetuning(), 4)]))
def test_what_is_tuned_decides(fit: Callable[..., list[float]], method: Any, number: int) -> None:
    compile_blocks = CompileBlocks(backend="eager")
    fit(make_model(method=method), compile_blocks)
    assert len(compile_blocks.compiled) == number


def test_other_modules_are_refused(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    with pytest.raises(TypeError, match="needs an ImageClassifier, got PlainModule"):
        make_trainer(CompileBlocks()).fit(PlainModule(), make_loader())


@pytest.mark.parametrize(("net", "join"), quick_first(0, [("test_resnet", "feature"), ("test_vit", "before_norm")]))
def test_a_copy_beside_the_network_is_compiled(fit: Callable[..., list[float]], net: str, join: Any) -> None:
    layer = "layer2.0" if net == "test_resnet" else "blocks.3"
    backend = Counting()
    compiling = CompileBlocks(backend=backend)
    losses = fit(make_model(net, SideFinetuning(layer, join=join)), compiling)
    assert compiling.compiled == (layer,)
    assert backend.runs > 0
    assert losses == pytest.approx(fit(make_model(net, SideFinetuning(layer, join=join))), rel=1e-4)
