"""Every kind of run that was cut off within an epoch ends with the weights of one that was not: bit for bit."""

import json
import os
import signal
import socket
import warnings
from collections.abc import Callable
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from safely import SAFELY
from torch import Tensor, nn

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.callbacks import PrefixCache, ResumableRun, RunInterruptedError
from nc_finetune.data import RandomCropFlip
from nc_finetune.methods import LayerFinetuning, LinearProbe, SideFinetuning

EPOCHS = 3  # of 4 batches


def dropout_head(width: int, num_classes: int) -> nn.Module:
    """Draw random numbers in every step."""
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(width, num_classes))


def brighten(image: Tensor) -> Tensor:
    return (image * torch.rand(())).to(torch.uint8)


class AfterBatch(L.Callback):
    """Tell the process to end after so many batches of all epochs, or after none."""

    def __init__(self, batches: int | None) -> None:
        self.batches = batches
        self.seen = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            os.kill(os.getpid(), signal.SIGTERM)


class LastFiles(ResumableRun):
    """Counts what it writes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps: list[int] = []

    @property
    def state_key(self) -> str:
        return "ResumableRun"

    def _save(self, trainer: L.Trainer) -> Path:
        self.steps.append(trainer.global_step)
        return super()._save(trainer)


class OwnAccumulation(GradientAccumulationScheduler):
    """With the arguments that Lightning documents."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # type: ignore[override]
        super().on_train_epoch_start(trainer)


KINDS: dict[str, dict[str, Any]] = {
    "accumulation of 2": {"trainer": {"accumulate_grad_batches": 2}},
    "accumulation of 3": {"trainer": {"accumulate_grad_batches": 3}},
    "accumulation by epoch": {"callbacks": lambda: [GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})]},
    "accumulation of one's own": {"callbacks": lambda: [OwnAccumulation({0: 1, 1: 3, 2: 2})]},
    "balanced classes": {"data": {"balance_classes": True}},
    "validation within epochs": {"trainer": {"val_check_interval": 2}},
    "views": {"callbacks": lambda: [PrefixCache(views=4)], "method": lambda: LayerFinetuning("layer3.0")},
    "views of a probe": {"callbacks": lambda: [PrefixCache(views=2, splits=["train"])], "method": LinearProbe},
    "side FT": {"method": lambda: SideFinetuning("layer2.0")},
    "bfloat16": {"trainer": {"precision": "bf16-mixed", "accumulate_grad_batches": 2}},
}


def fit(
    folder: Path, kind: dict[str, Any], end_after: int | None = None, resume: bool = False, **options: Any
) -> tuple[dict[str, Tensor], LastFiles]:
    torch.set_num_threads(1)
    # A resumed process has drawn other numbers before.
    L.seed_everything(1 if resume else 0, verbose=False)
    data = ImageData(
        "sklearn:digits",
        image_size=32,
        batch_size=8,
        val_size=10,
        transform=brighten,
        batch_transform=RandomCropFlip(),
        num_workers=0,
        **{"train_share": 0.0216, **kind.get("data", {})},
    )
    torch.manual_seed(0)
    method = kind.get("method", LinearProbe)()
    model = ImageClassifier("test_resnet", 10, weights=None, head=dropout_head, method=method)
    if resume:
        torch.manual_seed(5)
    run = LastFiles(folder, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [AfterBatch(end_after), *kind.get("callbacks", list)(), run]
    limits = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0}
    trainer = L.Trainer(callbacks=callbacks, **{**quiet, **limits, **kind.get("trainer", {})})
    trainer.fit(model, datamodule=data, ckpt_path=folder / "last.ckpt" if resume else None, **SAFELY)
    return {name: value.clone() for name, value in model.state_dict().items()}, run


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Tensor]]:
    """The weights of a run of some kind that was not cut off; each kind is run once."""

    @cache
    def fit_kind(name: str) -> dict[str, Tensor]:
        return fit(tmp_path_factory.mktemp("whole"), KINDS[name])[0]

    return fit_kind


@pytest.mark.parametrize(("name", "batch"), zip(KINDS, cycle((2, 7)), strict=False))
def test_weights_are_those_of_a_run_that_was_not_cut_off(
    whole: Callable[[str], dict[str, Tensor]], tmp_path: Path, name: str, batch: int
) -> None:
    with pytest.raises(RunInterruptedError):
        fit(tmp_path / "cut", KINDS[name], batch)
    resumed, _ = fit(tmp_path / "cut", KINDS[name], resume=True)
    assert same(resumed, whole(name))


@pytest.mark.parametrize(("accumulated", "expected"), [(1, [2, 4, 6, 8]), (2, [2, 4]), (3, [2, 3])])
def test_every_so_many_steps_is_one_file_each(tmp_path: Path, accumulated: int, expected: list[int]) -> None:
    kind = {"trainer": {"accumulate_grad_batches": accumulated, "max_epochs": 1}, "data": {"train_share": 0.0432}}
    _, run = fit(tmp_path, kind, every_n_steps=2)
    assert run.steps == expected


def test_the_last_of_so_many_steps_is_written(tmp_path: Path) -> None:
    _, run = fit(tmp_path, {"trainer": {"max_steps": 3}}, every_n_epochs=5)
    assert run.steps == [3]


def test_a_test_of_a_checkpoint_leaves_the_numbers_of_the_next_fit(tmp_path: Path) -> None:
    fit(tmp_path, {"trainer": {"max_epochs": 1}})
    run, data = ResumableRun(tmp_path / "next"), ImageData("sklearn:digits", image_size=32, num_workers=0)
    model = ImageClassifier("test_resnet", 10, weights=None, head=dropout_head)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(callbacks=[run], limit_test_batches=1, max_epochs=1, limit_train_batches=1, **quiet)
    trainer.test(model, data, ckpt_path=tmp_path / "last.ckpt", verbose=False, **SAFELY)
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(torch.get_rng_state())

    trainer.callbacks.insert(0, Look())
    torch.manual_seed(3)
    trainer.fit(model, data)
    old = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["ResumableRun"]["random"][0]["torch"]
    assert not torch.equal(seen[0], old)


def test_each_fit_has_the_folder_of_its_own_logs(tmp_path: Path, make_trainer: Any) -> None:
    run, data = ResumableRun(), ImageData("sklearn:digits", image_size=32, num_workers=0, samples_per_class=2)
    model = ImageClassifier("test_resnet", 10, weights=None)
    for name in ("first", "second"):
        trainer = make_trainer(run, default_root_dir=tmp_path / name, limit_val_batches=0, enable_checkpointing=True)
        trainer.fit(model, data)
        assert (tmp_path / name / "checkpoints" / "last.ckpt").is_file()


TOGETHER = {
    "plain": {},
    "accumulation": {"trainer": {"accumulate_grad_batches": 2}},
    "views": {"callbacks": lambda: [PrefixCache(views=2)], "method": lambda: LayerFinetuning("layer3.0")},
}


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    warnings.simplefilter("ignore")
    seen = {}
    for name, kind in TOGETHER.items():
        ddp = {**kind, "trainer": {**kind.get("trainer", {}), "strategy": "ddp", "devices": 2}}
        whole, _ = fit(Path(folder, name, "whole"), ddp)
        numbers = torch.get_rng_state()
        cut = Path(folder, name, "cut")
        try:
            fit(cut, ddp, 3 if rank == 1 else None)  # one process is told alone
        except RunInterruptedError:
            resumed, _ = fit(cut, ddp, resume=True)
            seen[name] = [same(resumed, whole), torch.equal(torch.get_rng_state(), numbers), numbers.sum().item()]
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_each_of_two_processes_goes_on_with_its_own_numbers(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name in TOGETHER:
        assert [found[name][:2] for found in seen] == [[True, True]] * 2


def test_another_number_of_processes_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError):
        fit(tmp_path, {}, 2)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    content["callbacks"]["ResumableRun"]["random"] *= 2
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="random numbers of 2 processes, here are 1"):
        fit(tmp_path, {}, resume=True)


def test_lightnings_own_checkpoints_hold_them_too(tmp_path: Path) -> None:
    keep = {"callbacks": lambda: [ModelCheckpoint(tmp_path, "own", every_n_train_steps=2, save_top_k=-1)]}
    whole, _ = fit(tmp_path / "whole", keep)
    with pytest.raises(RunInterruptedError):
        fit(tmp_path / "cut", keep, 5)
    (tmp_path / "cut" / "last.ckpt").write_bytes((tmp_path / "own.ckpt").read_bytes())
    resumed, _ = fit(tmp_path / "cut", {}, resume=True)
    assert same(resumed, whole)
