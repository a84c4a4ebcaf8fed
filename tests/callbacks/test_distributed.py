"""The same values from one process and from three, whatever the sampler repeats, and no hang where one fails."""

import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
import torch.multiprocessing
from lightning.pytorch.callbacks import EarlyStopping
from plain_module import CLASSES, PlainModule, make_loader, make_samples
from torch.utils.data import DataLoader, Dataset

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.callbacks._collapse import layer_sums

LAYERS = ["blocks.1", "penultimate"]
RANKS = 3


class Capped(Dataset[Any]):
    """Says its labels, and fails on one sample if asked."""

    def __init__(self, failing: int | None = None) -> None:
        self.samples = make_samples(11)
        self.labels = self.samples.tensors[1].tolist()
        self.failing = failing

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Any:
        if index == self.failing:
            raise OSError("planted")
        return self.samples[index]


def fit(folder: Path, **options: Any) -> dict[str, Any]:
    """Train without learning, so that any number of processes has the same network, and return what was measured."""
    torch.set_num_threads(1)
    callbacks = {
        "both": LayerwiseNC1(LAYERS, split=["train", "val"], measures=("nc1", "cdnv"), by_class=True),
        "wide": LayerwiseNC1(["blocks.1"], pool="flatten", prefix="wide/"),
        "capped": LayerwiseNC1(["penultimate"], samples_per_class=2, prefix="capped/"),
        "failing": LayerwiseNC1(LAYERS, train_dataloader=DataLoader(Capped(1)), prefix="failing/", folder=folder),
        "monitor": CollapseMonitor(split="val"),
    }
    model = PlainModule("test_vit", lr=0.0)
    torch.manual_seed(0)
    model.net = timm.create_model("test_vit", num_classes=CLASSES, img_size=32)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    stop = EarlyStopping("nc1/penultimate")
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[*callbacks.values(), stop], **quiet, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, make_loader(13), DataLoader(make_samples(11, seed=1), batch_size=2))
    logged = trainer.callback_metrics["nc1/penultimate"].item()
    return {"logged": logged, **{name: callback.history for name, callback in callbacks.items()}}


def run_rank(rank: int, ranks: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    if rank == 0:  # one process keeps features, the others have a scatter: they must agree
        layer_sums.max_kept_samples = lambda width: 3
    measured = fit(Path(folder), strategy="ddp", devices=ranks)
    Path(folder, f"{rank}.json").write_text(json.dumps(measured))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server imports everything once; what it forks starts at once.
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (RANKS, port, str(folder)), nprocs=RANKS, start_method="forkserver"
    )
    assert len(list(folder.glob("*.csv"))) == 1
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", ["both", "wide", "capped", "monitor"])
def test_number_of_processes_does_not_matter(alone: Any, together: list[Any], name: str) -> None:
    [expected] = alone[name]
    for measured in together:
        [row] = measured[name]
        values = {key: value for key, value in row.items() if key not in ("epoch", "step")}
        assert values == pytest.approx({key: expected[key] for key in values}, rel=1e-6, abs=1e-6)
        assert row.keys() == expected.keys()


def test_what_is_logged_is_the_value(together: list[Any]) -> None:
    for measured in together:
        assert measured["logged"] == pytest.approx(measured["both"][0]["nc1/penultimate"], rel=1e-6)


def test_a_sample_that_one_process_cannot_read_is_nan_on_all(together: list[Any]) -> None:
    for measured in together:
        [row] = measured["failing"]
        assert [row[f"failing/nc1/{layer}"] != row[f"failing/nc1/{layer}"] for layer in LAYERS] == [True, True]
