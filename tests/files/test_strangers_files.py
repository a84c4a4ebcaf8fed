"""Model files, hub folders, recipes and grids from strangers: what they may name, and what they may not reach."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import OpenClipBackbone, TimmBackbone
from nc_finetune.cli import main
from nc_finetune.deployment.load import load_model
from nc_finetune.files.class_config import build
from nc_finetune.files.delta import METADATA_KEY, read_delta
from nc_finetune.methods import AdapterTuning, LinearProbe

FIT = ["fit", "digits/efficientnet_lite0_linear_probe", "--trainer.fast_dev_run", "true", "--data.image_size", "32"]
OVERLAY = {"file": "theirs.pth", "url": "http://127.0.0.1:9/theirs.pth", "custom_load": True}
TIMM_OPTIONS: list[dict[str, Any]] = [
    {"checkpoint_path": "theirs.pth"},
    {"pretrained": True},
    {"pretrained_cfg": OVERLAY},
    {"pretrained_cfg_overlay": OVERLAY},
    {"pretrained": True, "pretrained_cfg_overlay": OVERLAY},
    {"cache_dir": "theirs"},
    {"num_classes": 3},
]
CLIP_OPTIONS: list[dict[str, Any]] = [
    {"pretrained_image": True},
    {"pretrained_image_path": "theirs.pth"},
    {"pretrained_text_path": "theirs.pth"},
    {"cache_dir": "theirs"},
    {"weights_only": False},
    {"text_cfg": {"hf_model_name": "theirs/model"}},
    {"vision_cfg": {"timm_model_name": "resnet18", "timm_model_pretrained": True}},
]
PEFT_OPTIONS: list[dict[str, Any]] = [
    {"megatron_config": {}, "megatron_core": "evil"},
    {"corda_config": {"cache_file": "theirs.pth"}},
    {"eva_config": {}},
    {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
    {"base_model_name_or_path": "theirs/model"},
]


class Executes:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def _beside_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Executes()}, "theirs.pth")


def _rewrite(path: Path, description: str) -> None:
    save_file(load_file(path), path, {METADATA_KEY: description})


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("delta") / "it.safetensors"
    save_delta(ImageClassifier(TimmBackbone("test_resnet", None), 3, method=LinearProbe()), path)
    return path


@pytest.fixture
def delta(untouched: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a delta whose description is changed by its author."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "theirs.safetensors"
        shutil.copy(untouched, path)
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()[METADATA_KEY])
        content["config"] |= changes
        _rewrite(path, json.dumps(content))
        return path

    return write


def _timm(options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {"name": "test_resnet", "weights": None, "model_options": dict(options)}
    return {"class_path": "nc_finetune.backbones.TimmBackbone", "init_args": arguments}


@pytest.mark.parametrize("options", TIMM_OPTIONS, ids=str)
def test_a_delta_cannot_say_where_timm_finds_weights(options: dict[str, Any], delta: Callable[..., Path]) -> None:
    path = delta(backbone=_timm(options))
    for trust in (False, True):  # no question of trust: weights= is the way
        with pytest.raises(ValueError, match=r"is no option for timm here.*weights="):
            load_delta(path, trust=trust)
    assert not Path("executed").exists()


def test_every_argument_of_timm_that_no_network_takes_is_refused() -> None:
    for name in ("model_cls", "variant", "pretrained_strict", "pretrained_filter_fn", "feature_cfg", "kwargs_filter"):
        with pytest.raises(ValueError, match=f"'{name}' is no option for timm here"):
            TimmBackbone("test_resnet", None, {name: None})


def test_options_of_networks_pass() -> None:
    assert TimmBackbone("test_vit", None, {"img_size": 32, "drop_rate": 0.1, "no_jit": True}).num_features == 64


@pytest.mark.parametrize("options", TIMM_OPTIONS, ids=str)
def test_a_recipe_cannot_either(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.yaml").write_text(yaml.safe_dump({"model": {"backbone": _timm(options), "weights": None}}))
    assert main([*FIT, "--config", "theirs.yaml"]) == 2
    assert "is no option for timm here" in capsys.readouterr().err
    assert not Path("executed").exists()


@pytest.mark.parametrize("options", TIMM_OPTIONS, ids=str)
def test_a_grid_cannot_either(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    grid = {
        "backbones": [{"name": "test_resnet", "weights": None, "model_options": options}],
        "datasets": [{"source": "sklearn:digits", "image_size": 32}],
        "methods": [{"method": "LinearProbe", "learning_rates": [0.001]}],
        "samples_per_class": [2],
        "settings": {"epochs": 1},
    }
    Path("grid.yaml").write_text(yaml.safe_dump(grid))
    main(["benchmark", "grid.yaml", "--out", "out"])
    written = "".join(path.read_text() for path in Path("out/results").glob("*.json")) if Path("out").exists() else ""
    assert "is no option for timm here" in written + capsys.readouterr().err
    assert not Path("executed").exists()


@pytest.mark.parametrize("options", TIMM_OPTIONS[:-1], ids=str)
def test_a_hub_folder_cannot_either(options: dict[str, Any]) -> None:
    Path("hub").mkdir()
    config = {"architecture": "test_resnet", "model_args": options, "pretrained_cfg": {}}
    Path("hub/config.json").write_text(json.dumps(config))
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "hub/model.safetensors")
    with pytest.raises(ValueError, match="is no option for timm here"):
        TimmBackbone("test_resnet", str(Path("hub").resolve()))
    assert not Path("executed").exists()


@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
def test_open_clip_takes_its_own_options_alone(options: dict[str, Any], delta: Callable[..., Path]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="is no option for open_clip here: it takes force_"):
        OpenClipBackbone("ViT-B-32", None, options)
    arguments = {"name": "ViT-B-32", "weights": None, "model_options": options}
    path = delta(backbone={"class_path": "nc_finetune.backbones.OpenClipBackbone", "init_args": arguments})
    with pytest.raises(ValueError, match="is no option for open_clip here"):
        load_delta(path)


@pytest.mark.parametrize("options", PEFT_OPTIONS, ids=str)
def test_adapters_take_what_steers_them_alone(options: dict[str, Any], delta: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="is no option for peft here: it takes alpha, "):
        AdapterTuning(options=options)
    method = {"class_path": "nc_finetune.methods.AdapterTuning", "init_args": {"options": options}}
    with pytest.raises(ValueError, match="is no option for peft here"):
        load_delta(delta(method=method))


@pytest.mark.parametrize("part", ["backbone", "method", "head"])
@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "pathlib.Path",
        "builtins.eval",
        "nc_finetune.cache.FeatureStore",
        "nc_finetune.data.ImageData",
        "nc_finetune.callbacks.DeltaCheckpoint",
        "nc_finetune.run.specs.BackboneSpec",
        "nc_finetune.deployment.load.load_model",
        "nc_finetune.methods.adapters.re.compile",
        "torch.nn.modules.linear.math.sqrt",
        "torch.nn.utils.parametrize.copy.deepcopy",
        "torch.hub.load",
        "torch.nn_evil.Linear",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "",
        ".",
        "torch.nn.",
    ],
)
def test_a_delta_names_parts_of_models_alone(part: str, path: str, delta: Callable[..., Path]) -> None:
    for partial in (False, True):
        written = delta(**{part: {"class_path": path, "init_args": {}, "partial": partial}})
        with pytest.raises(ValueError, match=r"is outside nc_finetune.backbones|there is no class|is no class of"):
            load_delta(written)


@pytest.mark.parametrize("path", [None, 3, ["os", "system"], {"class_path": "os.system"}], ids=str)
def test_a_class_path_that_is_no_text_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match=r"is outside nc_finetune\.backbones"):
        build({"class_path": path})


def test_what_is_deep_inside_is_checked_too(delta: Callable[..., Path]) -> None:
    inner = {"class_path": "os.system", "init_args": {"command": "mkdir executed"}}
    head = {"class_path": "nc_finetune.heads.BottleneckHead", "init_args": {"head": [{"any": inner}]}, "partial": True}
    with pytest.raises(ValueError, match=r"os\.system is outside"):
        load_delta(delta(head=head))
    assert not Path("executed").exists()


def test_a_checkpoint_is_held_to_the_same(tmp_path: Path, delta: Callable[..., Path]) -> None:
    from nc_finetune.files.delta_io import CHECKPOINT_KEY

    config = read_delta(delta(backbone=_timm({"checkpoint_path": "theirs.pth"}))).config
    torch.save({CHECKPOINT_KEY: config.to_json(), "state_dict": {}}, "theirs.ckpt")
    with pytest.raises(ValueError, match="is no option for timm here"):
        load_model("theirs.ckpt")
    assert not Path("executed").exists()


def test_a_description_without_end_is_refused(delta: Callable[..., Path]) -> None:
    nested: dict[str, Any] = {}
    for _ in range(60):
        nested = {"class_path": "nc_finetune.heads.BottleneckHead", "init_args": {"head": nested}, "partial": True}
    with pytest.raises(ValueError, match="more than 50 levels deep"):
        load_delta(delta(head=nested))
    path = delta()
    _rewrite(path, '{"config": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ValueError, match="is no delta of nc-finetune"):
        load_delta(path)
