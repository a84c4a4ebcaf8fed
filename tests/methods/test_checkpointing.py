"""Gradient checkpointing, which runs blocks again in the backward pass, changes no gradient of any method."""

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from crossed import crossed
from tiny_clip import register_tiny_clip
from torch import Tensor
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier
from nc_finetune.backbones import Backbone, OpenClipBackbone, SplitBackbone, SplitError, TimmBackbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.methods import (
    AdapterTuning,
    BiasTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    NormTuning,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
    SkipProbe,
)

METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "probe": LinearProbe,
    "skip probe": SkipProbe,
    "layer": LayerFinetuning,
    "scl": SkipConnectionFinetuning,
    "scl, patches": lambda: SkipConnectionFinetuning(pooling="average", scale="learned"),
    "side": SideFinetuning,
    "side, learned": lambda: SideFinetuning(scale="learned"),
    "side, matched": lambda: SideFinetuning(scale="matched"),
    "side, statistics": lambda: SideFinetuning(batch_norm="train"),
    "full": FullFinetuning,
    "lp-ft": lambda: ProbeFirst(SideFinetuning(), 1),
    "bias": BiasTuning,
    "norm": NormTuning,
    "lora": lambda: AdapterTuning(rank=2, options={"lora_dropout": 0.2}),
}
BEFORE_NORM = {
    "side": lambda: SideFinetuning(join="before_norm"),
    "scl": lambda: SkipConnectionFinetuning(join="before_norm"),
    "skip probe": lambda: SkipProbe(join="before_norm"),
}
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (2, 2, 2, 2)}
NETS: dict[str, Callable[[], Backbone]] = {
    "resnet": lambda: TimmBackbone("test_resnet", None),
    "vit": lambda: TimmBackbone("test_vit", None, {"img_size": 32, "drop_path_rate": 0.2}),
    "convnext": lambda: TimmBackbone("test_convnext", None),
    "swin": lambda: TimmBackbone("swin_tiny_patch4_window7_224", None, SWIN),
    "clip": lambda: OpenClipBackbone(register_tiny_clip(), None),
}


def make_model(net: str, method: FinetuningMethod) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(NETS[net](), 3, method=method)


def gradients(model: ImageClassifier) -> dict[str, Tensor]:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.method.start_epoch(1)
    model.train()
    torch.manual_seed(2)
    F.cross_entropy(model(images), torch.tensor([0, 1, 2, 1])).backward()  # type: ignore[no-untyped-call]
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def check(net: str, method: Callable[[], FinetuningMethod]) -> None:
    plain, checkpointed = make_model(net, method()), make_model(net, method())
    checkpointed.backbone.model.set_grad_checkpointing()  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, found = gradients(plain), gradients(checkpointed)
        with torch.no_grad():
            checkpointed(torch.rand(2, 3, 32, 32))
    assert found.keys() == expected.keys()
    assert {name for name, value in plain.named_parameters() if value.requires_grad} == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize(("method", "net"), crossed(METHODS, NETS))
def test_gradients_are_the_same(net: str, method: str) -> None:
    check(net, METHODS[method])


@pytest.mark.parametrize(("method", "net"), crossed(BEFORE_NORM, [net for net in NETS if net != "resnet"]))
def test_so_they_are_where_the_skip_joins_before_the_norm(net: str, method: str) -> None:
    check(net, BEFORE_NORM[method])


@pytest.mark.parametrize("net", ["vit", "clip"])
def test_a_network_that_is_cut_in_its_midst_is_not_run_again(
    net: str, make_loader: Callable[..., DataLoader[Any]], make_trainer: Callable[..., L.Trainer]
) -> None:
    model = make_model(net, LayerFinetuning())
    model.backbone.model.set_grad_checkpointing()  # type: ignore[operator]
    with pytest.raises(SplitError, match=r"under gradient checkpointing .* without what was kept; switch one of the"):
        SplitBackbone(model.backbone, model.backbone.middle_block, image_shape=(3, 32, 32))
    cache = PrefixCache()
    with pytest.warns(UserWarning, match="under gradient checkpointing"):
        make_trainer(cache).fit(model, make_loader())
    assert cache.stored_bytes == {}
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_side_fine_tuning_needs_no_network_in_the_backward_pass_and_is_cached(
    make_loader: Callable[..., DataLoader[Any]], make_trainer: Callable[..., L.Trainer]
) -> None:
    states = []
    for checkpointing in (False, True):
        model, cache = make_model("vit", SideFinetuning()), PrefixCache()
        model.backbone.model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        make_trainer(cache, max_epochs=2).fit(model, make_loader())
        assert cache.stored_bytes
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
