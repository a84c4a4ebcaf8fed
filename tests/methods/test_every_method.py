"""Every method on every kind of network: what is not tuned stays as it was, whatever happens, and deltas come back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_where
from crossed import crossed
from safetensors.torch import save_file
from tiny_clip import register_tiny_clip
from torch import Tensor
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import Backbone, OpenClipBackbone, TimmBackbone
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

METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "LinearProbe": LinearProbe,
    "Control": lambda: Control("nearest_class_mean"),
    "LayerReadout": lambda: LayerReadout("later_half"),
    "SkipProbe": SkipProbe,
    "LayerFinetuning": LayerFinetuning,
    "SkipConnectionFinetuning": lambda: SkipConnectionFinetuning(scale="matched"),
    "SideFinetuning": lambda: SideFinetuning(scale="matched"),
    "FullFinetuning": FullFinetuning,
    "ProbeFirst": lambda: ProbeFirst(SkipConnectionFinetuning(), probe_epochs=1),
    "BiasTuning": BiasTuning,
    "NormTuning": NormTuning,
    "AdapterTuning": lambda: AdapterTuning(rank=2),
}
BOTTLENECKS = {"layers": (1, 2, 2, 1), "channels": (16, 24, 32, 48)}
# Random weights of a network that are the same whenever it is built, as pre-trained ones would be.
NETS: dict[str, Callable[[str | None], Backbone]] = {
    "resnet50": lambda weights: TimmBackbone("resnet50", weights, {**BOTTLENECKS, "drop_path_rate": 0.2}),
    "vit": lambda weights: TimmBackbone("test_vit", weights, {"img_size": 32, "drop_path_rate": 0.2}),
    "clip": lambda weights: OpenClipBackbone(register_tiny_clip(), weights),
    "efficientnet": lambda weights: TimmBackbone("test_efficientnet", weights, {"drop_path_rate": 0.2}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, build in NETS.items():
        net = build(None)
        state = net.tower_state_dict() if isinstance(net, OpenClipBackbone) else net.model.state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in NETS}


def snapshot(model: ImageClassifier) -> dict[str, Tensor]:
    """Copy every weight and buffer of the backbone, those that no state dict has included."""
    parts = (*model.backbone.named_parameters(), *model.backbone.named_buffers())
    return {name: value.detach().clone() for name, value in parts}


def moved(before: dict[str, Tensor], model: ImageClassifier) -> set[str]:
    after = snapshot(model)
    assert after.keys() == before.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def logits(model: ImageClassifier) -> Tensor:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        result: Tensor = model.eval()(images)
    return result


@pytest.mark.parametrize(("method", "net"), crossed(METHODS, NETS))
def test_frozen_parts_survive_fit_validate_and_resume_and_the_delta_comes_back(
    net: str,
    method: str,
    weights: dict[str, str],
    tmp_path: Path,
    make_loader: Callable[..., DataLoader[Any]],
    make_trainer: Callable[..., L.Trainer],
) -> None:
    def build() -> ImageClassifier:
        torch.manual_seed(0)  # adapters start at random
        return ImageClassifier(NETS[net](weights[net]), 3, method=METHODS[method]())

    few = {"limit_train_batches": 1, "limit_val_batches": 1}
    model, trainer = build(), make_trainer(max_epochs=1, **few)
    before = snapshot(model)
    tuned = {name for name, value in model.backbone.named_parameters() if value.requires_grad}
    trainer.fit(model, make_loader(), make_loader(seed=1))
    trainer.validate(model, make_loader(seed=1), verbose=False)
    assert moved(before, model) <= tuned
    trainer.save_checkpoint(tmp_path / "it.ckpt")

    resumed = build()
    make_trainer(max_epochs=2, **few).fit(resumed, make_loader(), make_loader(seed=1), ckpt_path=tmp_path / "it.ckpt")
    assert moved(before, resumed) <= tuned
    assert bool(moved(before, resumed)) == bool(tuned)

    path = tmp_path / "it.safetensors"
    save_delta(resumed, path)
    full_size = sum(value.nbytes for part in (resumed.backbone, resumed.head) for value in part.state_dict().values())
    assert path.stat().st_size <= resumed.tuned_parameters / resumed.total_parameters * full_size + 64 * 1024
    assert torch.equal(logits(load_delta(path, build())), logits(resumed))


def test_no_method_is_left_out() -> None:
    assert {*METHODS, ZeroShot.__name__} == set(METHOD_NAMES)  # zero-shot trains nothing: test_zero_shot.py


@pytest.mark.parametrize("net", quick_where({"resnet50", "vit"}.__contains__, NETS))
def test_a_skip_of_scale_zero_is_layer_fine_tuning_bit_for_bit(
    net: str,
    weights: dict[str, str],
    make_loader: Callable[..., DataLoader[Any]],
    make_trainer: Callable[..., L.Trainer],
) -> None:
    states = []
    for method in (LayerFinetuning(), SkipConnectionFinetuning(scale=0.0), SkipConnectionFinetuning()):
        torch.manual_seed(0)
        model = ImageClassifier(NETS[net](weights[net]), 3, method=method)
        torch.manual_seed(1)  # of stochastic depth
        make_trainer(max_epochs=2, limit_train_batches=2).fit(model, make_loader())
        states.append(model.state_dict())
    layer, zero, one = states
    assert all(torch.equal(value, zero[name]) for name, value in layer.items())
    assert not all(torch.equal(value, one[name]) for name, value in layer.items())
