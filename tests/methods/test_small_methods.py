"""Whole runs of the methods that do not tune by blocks, and of those that go through phases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.methods import (
    AdapterTuning,
    BiasTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    NormTuning,
    ProbeFirst,
    SkipConnectionFinetuning,
    SkipProbe,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]
METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "skip probe": SkipProbe,
    "bias": BiasTuning,
    "norm": NormTuning,
    "lora": lambda: AdapterTuning(rank=2),
    "loha": lambda: AdapterTuning("loha", rank=2),
    "lokr": lambda: AdapterTuning("lokr", rank=2),
    "lp-ft": lambda: ProbeFirst(LayerFinetuning(), probe_epochs=1),
    "learned scale": lambda: SkipConnectionFinetuning(scale="learned"),
}
every_method = pytest.mark.parametrize("method", METHODS)
every_net = pytest.mark.parametrize("net", ["test_resnet", "test_vit", "test_efficientnet"])


def make_model(net: str, method: FinetuningMethod) -> ImageClassifier:
    torch.manual_seed(0)
    options = {"img_size": 32} if net == "test_vit" else {}
    return ImageClassifier(TimmBackbone(net, None, {"drop_path_rate": 0.3, **options}), 3, method=method)


def snapshot(model: ImageClassifier) -> dict[str, Tensor]:
    net = model.backbone.model
    return {name: value.detach().clone() for name, value in (*net.named_parameters(), *net.named_buffers())}


@every_method
@every_net
def test_what_is_not_tuned_stays_bit_identical_and_what_is_moves(
    net: str, method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model = make_model(net, METHODS[method]())
    before = snapshot(model)
    make_trainer(max_epochs=3, val_check_interval=1).fit(model, make_loader(), make_loader(seed=1))
    after = snapshot(model)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    tuned = {name for name, value in model.backbone.model.named_parameters() if value.requires_grad}
    assert moved <= tuned
    assert bool(moved) == bool(tuned)


@every_net
def test_bias_tuning_trains_biases_alone(net: str) -> None:
    model = make_model(net, BiasTuning())
    tuned = {name for name, value in model.backbone.model.named_parameters() if value.requires_grad}
    assert tuned == {name for name, _ in model.backbone.model.named_parameters() if name.endswith("bias")}


@every_net
def test_norm_tuning_trains_normalisation_layers_alone(net: str) -> None:
    model = make_model(net, NormTuning())
    norms = [part for part in model.backbone.modules() if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm))]
    expected = {id(value) for norm in norms for value in norm.parameters()}
    assert {id(value) for value in model.backbone.parameters() if value.requires_grad} == expected


# --- adapters


@every_net
@pytest.mark.parametrize("adapter", ["lora", "loha", "lokr"])
def test_adapters_start_as_the_pretrained_network(net: str, adapter: str) -> None:
    plain, adapted = make_model(net, LayerFinetuning()), make_model(net, AdapterTuning(adapter, rank=2))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(adapted.eval().backbone(images), plain.eval().backbone(images))
    assert 0 < adapted.tuned_parameters < plain.total_parameters / 4


def test_adapters_are_put_in_once() -> None:
    model = make_model("test_vit", AdapterTuning(rank=2))
    before = model.total_parameters
    model.method.freeze(model.backbone)
    assert model.total_parameters == before


def test_adapters_go_where_they_are_told() -> None:
    method = AdapterTuning(rank=2, target_modules=["blocks.1.mlp.fc1"], options={"lora_alpha": 4})
    model = make_model("test_vit", method)
    tuned = [name for name, value in model.backbone.model.named_parameters() if value.requires_grad]
    assert len(tuned) == 2
    assert all(name.startswith("blocks.1.mlp.fc1.lora_") for name in tuned)


def test_unknown_adapter_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown adapter 'lorra'; did you mean 'lora'"):
        AdapterTuning("lorra")


def test_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        AdapterTuning(rank=0)


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"nc-finetune\[peft\]"):
        make_model("test_vit", AdapterTuning())


# --- LP-FT


class Watcher(L.Callback):
    """Notes after each epoch whether the network has moved."""

    def __init__(self) -> None:
        self.epochs: list[bool] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.before = snapshot(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        after = snapshot(pl_module)
        moved = any(not torch.equal(value, after[name]) for name, value in self.before.items())
        self.epochs.append(moved)


def test_the_probe_comes_first(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model, watcher = make_model("test_resnet", ProbeFirst(FullFinetuning(), probe_epochs=2)), Watcher()
    make_trainer(watcher, max_epochs=3).fit(model, make_loader())
    assert watcher.epochs == [False, False, True]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_resumes_in_either_phase_bit_for_bit(
    epoch: int, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == epoch

    def model() -> ImageClassifier:
        torch.manual_seed(0)
        backbone = TimmBackbone("test_vit", None, {"img_size": 32})
        return ImageClassifier(backbone, 3, method=ProbeFirst(LayerFinetuning(), probe_epochs=1))

    whole, first, second = model(), model(), model()
    make_trainer(max_epochs=3).fit(whole, make_loader())
    halted = make_trainer(Stop(), max_epochs=3)
    halted.fit(first, make_loader())
    halted.save_checkpoint(tmp_path / "half.ckpt")
    make_trainer(max_epochs=3).fit(second, make_loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert halted.current_epoch == epoch + 1
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not all(torch.equal(value, first.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_probe_of_no_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="probe_epochs must be at least 1, got 0; use full_ft itself"):
        ProbeFirst(FullFinetuning(), 0)
