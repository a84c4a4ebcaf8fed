"""What the runs of a grid keep for each other."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import Grid
from nc_finetune.run.specs import BackboneSpec, DatasetSpec, MethodSpec
from nc_finetune.selection import shared_caches
from nc_finetune.selection.shared_caches import make_room


def write_store(folder: Path, name: str, age: int) -> Path:
    store = folder / name
    store.mkdir()
    (store / "0.bin").write_bytes(bytes(100))
    os.utime(store, (1e9 - age, 1e9 - age))
    return store


def test_the_oldest_stores_go_until_the_rest_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    for name, age in (("new", 1), ("oldest", 3), ("old", 2), ("newest", 0)):
        write_store(tmp_path, name, age)
    make_room(tmp_path, 0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "newest"}
    make_room(tmp_path, 1.0)
    assert len(list(tmp_path.iterdir())) == 2
    make_room(tmp_path, 0.0)
    assert not list(tmp_path.iterdir())


def test_nothing_goes_while_there_is_room(tmp_path: Path) -> None:
    store = write_store(tmp_path, "only", 0)
    make_room(tmp_path, 0.25)
    assert store.exists()


def test_methods_share_what_a_prefix_gives_and_seeds_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_caches, "_prefixes", lambda: SimpleNamespace(name=str(tmp_path)))
    # Random weights stand for pre-trained ones, which are the same for every seed.
    monkeypatch.setattr("lightning.seed_everything", lambda *_, **__: torch.manual_seed(0))
    methods = ("LayerFinetuning", "SkipConnectionFinetuning")
    grid = Grid(
        backbones=[BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        datasets=[DatasetSpec(source="sklearn:digits", image_size=32, val_size=20, max_test_images=20)],
        methods=[MethodSpec(method=name, learning_rates=[1e-3]) for name in methods],
        samples_per_class=[2],
        seeds=[0, 1],
        settings=Settings(epochs=1, num_workers=0),
    )
    kept = []
    for cell in grid.cells():
        assert run_cell(cell).status == "ok"
        kept.append(len(list(tmp_path.iterdir())))
    assert kept == [3, 3, 5, 5]  # a seed draws its own images to train and to validate
