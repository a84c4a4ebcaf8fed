"""Two processes keep a share each, and train as they do without."""

import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.multiprocessing
from plain_module import make_samples
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.methods import FinetuningMethod, SideFinetuning, SkipConnectionFinetuning


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())


def fit(*callbacks: L.Callback, method: FinetuningMethod | None = None) -> list[float]:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    method = method or SkipConnectionFinetuning("layer3.0", skip_layers=["layer1.0"])
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=method)
    losses = Losses()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    where = {"strategy": "ddp", "devices": 2, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=2, callbacks=[losses, *callbacks], **where, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, labels = make_samples(11).tensors
        trainer.fit(model, DataLoader(TensorDataset(images.sigmoid(), labels), batch_size=2, shuffle=True))
    return losses.values


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    kept = PrefixCache(str(Path(folder, "cache")))
    seen = {
        "plain": fit(),
        "folder": fit(kept),
        "again": fit(PrefixCache(kept.folder)),
        "temporary": fit(PrefixCache()),
        "side": fit(method=SideFinetuning("layer2.0")),
        "side, kept": fit(PrefixCache(), method=SideFinetuning("layer2.0")),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps({**seen, "bytes": kept.stored_bytes["train"]}))
    torch.distributed.destroy_process_group()


def test_two_processes_share_what_each_has_computed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(seen["plain"]) == 6
        assert seen["folder"] == seen["again"] == seen["temporary"] == seen["plain"]
        assert seen["side, kept"] == seen["side"] != seen["plain"]
    shares = [json.loads(path.read_text())["rows"] for path in sorted((tmp_path / "cache").rglob("meta.json"))]
    assert shares == [6, 5]
