"""Frozen means frozen: whole runs of the trainer on networks with BatchNorm, dropout and stochastic depth."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from crossed import crossed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.methods import FullFinetuning, LayerFinetuning, LinearProbe, SkipConnectionFinetuning

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]

NETS: dict[str, tuple[str, dict[str, float]]] = {
    "test_resnet": ("layer2.0", {"drop_rate": 0.3, "drop_path_rate": 0.3}),
    "test_efficientnet": ("blocks.2.0", {"drop_rate": 0.3, "drop_path_rate": 0.3}),
    "test_vit": (
        "blocks.3",
        {"img_size": 32, "drop_rate": 0.3, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3},
    ),
}
METHODS = ("linear_probe", "layer_ft", "scl_ft", "full_ft")
WAKING_HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_end",
)
every_net_and_method = pytest.mark.parametrize(("net", "method"), crossed(NETS, METHODS))


def make_model(net: str, method: str, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    key_layer, model_options = NETS[net]
    methods = {
        "linear_probe": LinearProbe,
        "layer_ft": lambda **options: LayerFinetuning(key_layer, **options),
        "scl_ft": lambda **options: SkipConnectionFinetuning(key_layer, **options),
        "full_ft": FullFinetuning,
    }
    return ImageClassifier(TimmBackbone(net, None, model_options), 3, method=methods[method](**options))


def tuned_prefix(net: str, method: str) -> str | tuple[str, ...]:
    """What the names of everything tuned start with; an empty tuple starts nothing."""
    return {"linear_probe": (), "full_ft": ""}.get(method, f"{NETS[net][0]}.")


def snapshot(model: ImageClassifier) -> dict[str, Tensor]:
    """Copy every weight and buffer of the network, those that no state dict has included."""
    net = model.backbone.model
    return {name: value.detach().clone() for name, value in (*net.named_parameters(), *net.named_buffers())}


def changed(before: dict[str, Tensor], model: ImageClassifier) -> set[str]:
    after = snapshot(model)
    assert after.keys() == before.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


class Waker(L.Callback):
    """Puts the whole backbone into train mode, at one hook or at all of them."""

    def __init__(self, *hooks: str) -> None:
        self.calls: list[str] = []
        for hook in hooks:
            setattr(self, hook, lambda _trainer, model, *_, hook=hook: self.wake(model, hook))

    def wake(self, model: Any, hook: str) -> None:
        self.calls.append(hook)
        model.backbone.train()


class ModeRecorder(L.Callback):
    """Notes the mode of every part of the network whenever it runs in a training step."""

    def __init__(self) -> None:
        self.modes: dict[str, set[bool]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for name, part in pl_module.backbone.model.named_modules():
            part.register_forward_pre_hook(lambda part, _, name=name: self.note(name, part))

    def note(self, name: str, part: nn.Module) -> None:
        if torch.is_grad_enabled():
            self.modes.setdefault(name, set()).add(part.training)


@every_net_and_method
def test_what_is_not_tuned_stays_bit_identical(
    net: str, method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, waker = make_model(net, method), Waker(*WAKING_HOOKS)
    before, prefix = snapshot(model), tuned_prefix(net, method)
    make_trainer(waker, max_epochs=2, val_check_interval=1).fit(model, make_loader(), make_loader(seed=1))
    moved = changed(before, model)
    assert set(waker.calls) == set(WAKING_HOOKS)
    assert not {name for name in moved if not name.startswith(prefix)}
    weights = {name for name, _ in model.backbone.model.named_parameters() if name.startswith(prefix)}
    assert moved == weights, "every tuned weight moves, and no buffer"


@pytest.mark.parametrize("hook", quick_first(2, WAKING_HOOKS))
def test_no_single_hook_wakes_the_frozen_part(
    hook: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model = make_model("test_resnet", "layer_ft")
    before = snapshot(model)
    make_trainer(Waker(hook), max_epochs=2, val_check_interval=1).fit(model, make_loader(), make_loader())
    assert not {name for name in changed(before, model) if not name.startswith("layer2.0.")}


@pytest.mark.parametrize(("method", "net"), crossed(METHODS[1:], ["test_resnet", "test_efficientnet"]))
def test_only_statistics_of_the_tuned_part_move_where_asked(
    net: str, method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model = make_model(net, method, batch_norm="train")
    before, prefix = snapshot(model), tuned_prefix(net, method)
    make_trainer(Waker(*WAKING_HOOKS), max_epochs=2).fit(model, make_loader(8), make_loader())
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert changed(before, model) & statistics == {name for name in statistics if name.startswith(prefix)} != set()


@every_net_and_method
def test_frozen_parts_run_in_eval_mode_and_tuned_ones_in_train_mode(
    net: str, method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, recorder = make_model(net, method), ModeRecorder()
    make_trainer(recorder, max_epochs=2, val_check_interval=1).fit(model, make_loader(), make_loader())
    parts = dict(model.backbone.model.named_modules())
    prefix = tuned_prefix(net, method)
    expected = {
        name: {f"{name}.".startswith(prefix) and not isinstance(parts[name], nn.BatchNorm2d)} for name in recorder.modes
    }
    assert recorder.modes == expected
    kinds = {type(parts[name]).__name__ for name in recorder.modes}
    assert {"DropPath", "Dropout" if net == "test_vit" else "BatchNormAct2d"} & kinds


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_frozen_parameters_stay_none(
    method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model = make_model("test_resnet", method)
    with_gradient: list[set[str]] = []

    class GradientRecorder(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
            parameters = pl_module.backbone.model.named_parameters()
            with_gradient.append({name for name, parameter in parameters if parameter.grad is not None})

    make_trainer(GradientRecorder()).fit(model, make_loader())
    prefix = tuned_prefix("test_resnet", method)
    tuned = {name for name, _ in model.backbone.model.named_parameters() if name.startswith(prefix)}
    assert with_gradient == [tuned] * 3


def test_a_skip_of_scale_zero_is_layer_fine_tuning_bit_for_bit(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    trained: dict[float | None, ImageClassifier] = {}
    for scale in (None, 0.0, 1.0):
        torch.manual_seed(0)
        backbone = TimmBackbone("test_resnet", None, {"drop_path_rate": 0.3})
        layer = LayerFinetuning("layer2.0")
        method = layer if scale is None else SkipConnectionFinetuning("layer2.0", scale)
        trained[scale] = ImageClassifier(backbone, 3, method=method)
        make_trainer(max_epochs=2).fit(trained[scale], make_loader())
    states = {scale: model.state_dict() for scale, model in trained.items()}
    same = {
        scale: all(torch.equal(states[None][name], value) for name, value in states[scale].items()) for scale in states
    }
    assert same == {None: True, 0.0: True, 1.0: False}
