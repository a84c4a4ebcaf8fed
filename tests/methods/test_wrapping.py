"""A method around another one passes on everything that it does not decide itself."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from crossed import crossed
from torch import Tensor, nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.methods import (
    METHOD_NAMES,
    AdapterTuning,
    BiasTuning,
    Control,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LayerReadout,
    LinearProbe,
    NormTuning,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
    SkipProbe,
    ZeroShot,
)
from nc_finetune.methods._wrapping import asks_inner, public_names

METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "LinearProbe": LinearProbe,
    "LayerReadout": lambda: LayerReadout(["blocks.1", "penultimate"], method=SideFinetuning("blocks.3")),
    "SkipProbe": lambda: SkipProbe(join="before_norm", pooling="average"),
    "LayerFinetuning": lambda: LayerFinetuning("blocks.1", batch_norm="train"),
    "SkipConnectionFinetuning": lambda: SkipConnectionFinetuning(["blocks.1", "blocks.2"], pooling="average"),
    "SideFinetuning": lambda: SideFinetuning("blocks.4"),
    "FullFinetuning": lambda: FullFinetuning("train", key_layer="blocks.3"),
    "ProbeFirst": lambda: ProbeFirst(SideFinetuning("blocks.3"), 1),
    "BiasTuning": BiasTuning,
    "NormTuning": NormTuning,
    "AdapterTuning": lambda: AdapterTuning(rank=2, options={"lora_dropout": 0.1}),
}
# What a probe decides itself.
OWN = {"name", "label", "start_epoch", "set_modes", "features"}


def make_backbone() -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone("test_vit2", None, {"img_size": 32})


def answer(method: FinetuningMethod, backbone: TimmBackbone, name: str) -> Any:
    """Ask a method something, of itself or of a backbone, and describe the answer so that two can be compared."""
    found = getattr(method, name)
    if not inspect.ismethod(found):
        return describe(found)
    arguments = {"backbone": backbone, "layer": "blocks.0", "images": torch.ones(2, 3, 32, 32), "epoch": 3}
    torch.manual_seed(1)
    return describe(found(*(arguments[parameter] for parameter in inspect.signature(found).parameters)))


def describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().flatten().tolist()
    if isinstance(value, nn.Module):
        return type(value).__name__, [p.shape for p in value.parameters()]
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if inspect.isgenerator(value):
        return [describe(item) for item in value]
    if hasattr(value, "tuned_modules"):  # what bind returns
        return describe(value.tuned_modules)
    return repr(value)


def state(backbone: TimmBackbone) -> Any:
    return [(name, value.requires_grad) for name, value in backbone.named_parameters()]


def test_no_method_is_left_out() -> None:
    assert {*METHODS, Control.__name__, ZeroShot.__name__} == set(METHOD_NAMES)


@pytest.mark.parametrize("method", [ZeroShot(), LayerReadout()])
def test_a_probe_before_what_trains_nothing_is_refused(method: FinetuningMethod) -> None:
    with pytest.raises(ValueError, match=f"a method that trains, and {method.label} does not; use it by itself"):
        ProbeFirst(method)


@pytest.mark.parametrize(("name", "method"), crossed([name for name in public_names() if name not in OWN], METHODS))
def test_a_probe_answers_as_the_method_that_follows(method: str, name: str) -> None:
    plain, wrapped = METHODS[method](), ProbeFirst(METHODS[method]())
    nets = make_backbone(), make_backbone()
    if name != "freeze" and isinstance(plain, AdapterTuning):
        for one, net in zip((plain, wrapped), nets, strict=True):
            torch.manual_seed(2)
            one.freeze(net)
    assert answer(wrapped, nets[1], name) == answer(plain, nets[0], name)
    assert state(nets[1]) == state(nets[0])


@pytest.mark.parametrize("method", METHODS)
def test_once_the_probe_is_over_everything_is_the_methods(method: str) -> None:
    plain, wrapped = METHODS[method](), ProbeFirst(METHODS[method](), probe_epochs=2)
    nets = make_backbone(), make_backbone()
    wrapped.start_epoch(2)
    for one, net in zip((plain, wrapped), nets, strict=True):
        torch.manual_seed(2)
        one.freeze(net)
        one.train()
        one.set_modes(net)
    torch.testing.assert_close(answer(wrapped, nets[1], "features"), answer(plain, nets[0], "features"))
    modes = [[part.training for part in net.modules()] for net in nets]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("LinearProbe", "SkipProbe")])
def test_a_model_behind_a_probe_trains_what_it_trains_without(method: str) -> None:
    plain, wrapped = METHODS[method](), ProbeFirst(METHODS[method]())
    rates = [
        [(group["name"], group["lr"], len(group["params"])) for group in model._parameter_groups()]
        for model in (ImageClassifier(make_backbone(), 3, method=one) for one in (plain, wrapped))
    ]
    assert rates[0] == rates[1]
    assert len(rates[0]) > 1


def test_a_new_question_is_passed_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuningMethod, "how_warm", lambda self, degrees: f"cold: {degrees}", raising=False)

    @asks_inner
    class Around(FinetuningMethod):
        name, label = "around", "around"

        def __init__(self, method: FinetuningMethod) -> None:
            nn.Module.__init__(self)
            self.method = method

    class Warm(LinearProbe):
        def how_warm(self, degrees: int) -> str:
            return f"warm: {degrees}"

    assert Around(Warm()).how_warm(3) == "warm: 3"  # type: ignore[attr-defined]
    assert Around(Around(Warm())).how_warm(4) == "warm: 4"  # type: ignore[attr-defined]


# --- bound once


def test_what_was_looked_up_is_known_until_something_changes() -> None:
    method, backbone, other = LayerFinetuning("blocks.1"), make_backbone(), make_backbone()
    bound = method.bind(backbone)
    assert bound.tuned_modules == (backbone.get_layer("blocks.1"),)
    assert method.train().bind(backbone) is bound
    method.set_key_layer("blocks.3")
    assert method.bind(backbone).key_layers == ("blocks.3",)
    method.key_layer = "blocks.2"
    assert method.bind(backbone).tuned_modules == (backbone.get_layer("blocks.2"),)
    assert method.bind(other).tuned_modules == (other.get_layer("blocks.2"),)
    bound = method.bind(other)
    method.freeze(other)
    assert method.bind(other) is not bound


@pytest.mark.parametrize("method", METHODS)
def test_copies_leave_the_backbone_behind(method: str) -> None:
    one, backbone = METHODS[method](), make_backbone()
    one.freeze(backbone)
    one.set_modes(backbone)
    bound = [part for part in one.modules() if getattr(part, "_bound", None) is not None]
    assert bound
    twin = copy.deepcopy(one)
    assert all(getattr(part, "_bound", None) is None for part in twin.modules())


@pytest.mark.parametrize("method", ["SkipProbe", "SkipConnectionFinetuning", "SideFinetuning", "ProbeFirst"])
def test_a_step_walks_through_no_modules(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, backbone = METHODS[method](), make_backbone()
    one.freeze(backbone)
    one.features(backbone, torch.rand(2, 3, 32, 32))
    walks: list[str] = []

    def watched(name: str, walk: Any) -> Any:
        return lambda *given, **named: walks.append(name) or walk(*given, **named)

    for name in ("named_modules", "modules", "named_parameters"):
        monkeypatch.setattr(nn.Module, name, watched(name, getattr(nn.Module, name)))
    one.features(backbone, torch.rand(2, 3, 32, 32))
    assert walks == []
