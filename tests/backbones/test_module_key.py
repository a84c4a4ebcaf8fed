"""The key of what a frozen network gives: whatever changes outputs changes it, and nothing else."""

import copy
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import FrozenPrefix, TimmBackbone, module_key
from nc_finetune.methods import LayerFinetuning, SkipConnectionFinetuning


def classifier(net: str = "test_vit", options: dict[str, Any] | None = None, method: Any = None) -> ImageClassifier:
    torch.manual_seed(0)
    size = {"img_size": 32} if net == "test_vit" else {}
    backbone = TimmBackbone(net, None, {**size, **(options or {})})
    return ImageClassifier(backbone, 3, method=method or LayerFinetuning(backbone.block_names[2]))


def frozen_prefix(model: ImageClassifier, size: int = 32) -> FrozenPrefix:
    return FrozenPrefix(model, torch.rand(2, 3, size, size))


@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("test_vit", {"act_layer": "relu"}),
        ("test_vit", {"global_pool": "avg"}),
        ("test_vit", {"img_size": 64}),
        ("test_vit", {"init_values": 1e-3}),
        ("test_vit", {"norm_layer": partial(nn.LayerNorm, eps=1e-3)}),
        ("test_vit", {"pre_norm": True}),
        ("test_resnet", {"output_stride": 16}),
        ("test_resnet", {"act_layer": "gelu"}),
        ("test_resnet", {"norm_layer": partial(nn.BatchNorm2d, eps=1e-2)}),
    ],
    ids=str,
)
def test_options_of_the_network_are_in_the_key(net: str, options: dict[str, Any]) -> None:
    changed = frozen_prefix(classifier(net, options), options.get("img_size", 32))
    assert changed.key() != frozen_prefix(classifier(net)).key()


def _scale(model: ImageClassifier) -> None:
    model.backbone.model.blocks[0].attn.scale *= 2  # type: ignore[index, union-attr]


def _hook(model: ImageClassifier) -> None:
    model.backbone.get_layer("blocks.0").register_forward_hook(lambda module, inputs, output: output * 2)


def _epsilon(model: ImageClassifier) -> None:
    model.backbone.model.blocks[0].norm1.eps = 1e-2  # type: ignore[index, union-attr]


def _mean(model: ImageClassifier) -> None:
    model.backbone.get_buffer("_mean").add_(0.1)


def _weight(model: ImageClassifier) -> None:
    with torch.no_grad():
        model.backbone.model.cls_token.add_(1)  # type: ignore[union-attr, operator]


def _activation(model: ImageClassifier) -> None:
    model.backbone.model.blocks[1].mlp.act = nn.GELU(approximate="tanh")  # type: ignore[index, union-attr]


def _forward(model: ImageClassifier) -> None:
    layer = model.backbone.get_layer("blocks.0")
    layer.forward = lambda inputs: inputs  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[ImageClassifier], None]] = {
    "scale": _scale,
    "hook": _hook,
    "epsilon": _epsilon,
    "mean": _mean,
    "weight": _weight,
    "activation": _activation,
    "forward": _forward,
    "dtype": lambda model: model.backbone.get_layer("blocks.0").half() and None,
    "memory format": lambda model: model.backbone.set_channels_last(True),
    "pooled tokens": lambda model: setattr(model.backbone, "num_prefix_tokens", 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_outputs_changes_the_key(change: str) -> None:
    model = classifier()
    prefix = frozen_prefix(model)
    before = prefix.key()
    CHANGES[change](model)
    assert prefix.key() != before


@pytest.mark.parametrize("net", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_networks_that_are_built_alike_have_one_key(net: str) -> None:
    assert frozen_prefix(classifier(net)).key() == frozen_prefix(classifier(net)).key()


def test_what_is_tuned_does_not_count() -> None:
    model, other = classifier(), classifier(method=SkipConnectionFinetuning("blocks.2"))
    prefix = frozen_prefix(model)
    before = prefix.key()
    assert frozen_prefix(other).key() == before
    with torch.no_grad():
        for value in model.backbone.get_layer("blocks.2").parameters():
            value.add_(1)
    model.backbone.base_hash, model.backbone.weights = "known", "a path"
    assert prefix.key() == before


class Scaled(nn.Module):
    def __init__(self, scale: Any) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


class Held:
    def __init__(self, value: int) -> None:
        self.value = value
        self.me = self


def _function(factor: int) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs * factor


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.0, 1.5),
        (torch.tensor(1.0), torch.tensor(1.5)),
        ([1, {2: 3}], [1, {2: 4}]),
        ({"a", "b"}, {"a", "c"}),
        (Held(1), Held(2)),
        (_function(1), _function(2)),
        (partial(torch.mul, other=1), partial(torch.mul, other=2)),
        (torch.float16, torch.float32),
        (nn.Tanh, nn.ReLU),
        ([nn.Linear(1, 1)], [nn.Linear(1, 2)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attributes_of_every_kind_count(one: Any, other: Any) -> None:
    assert module_key(Scaled(one)) == module_key(copy.deepcopy(Scaled(one)))
    assert module_key(Scaled(one)) != module_key(Scaled(other))


def test_other_processes_come_to_the_same_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from nc_finetune.backbones import module_key\nfrom torch import nn\n"
        "part = nn.Identity()\npart.names = {'a', 'b', 'c', 'd'}\npart.function = lambda x: x in {'e', 'f', 'g'}\n"
        "print(module_key(part))\n"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == other.stdout != ""


def test_a_mode_counts_unless_training_puts_it_back() -> None:
    model = classifier()
    prefix = frozen_prefix(model)
    of_training = prefix.key()
    model.backbone.get_layer("blocks.0").train()  # as another model on the same backbone does
    assert prefix.key() == of_training
    model.eval()
    before = prefix.key()
    model.backbone.get_layer("blocks.0").train()
    assert prefix.key() != before
