"""A run that was cut off, however it was, ends with the weights of one that was not: bit for bit."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safely import SAFELY
from torch import Tensor, nn

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.callbacks import ResumableRun, RunInterruptedError
from nc_finetune.data import RandomCropFlip

EPOCHS, STEPS = 3, 4  # 56 images in batches of 16, the last one smaller


def dropout_head(width: int, num_classes: int) -> nn.Module:
    """Draw random numbers in every step: a resumed run has to go on with them."""
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(width, num_classes))


def brighten(image: Tensor) -> Tensor:
    return (image * torch.rand(())).to(torch.uint8)


class At(L.Callback):
    """Do something to the process after a step; steps count from 1 over all epochs."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.act()


def fit(
    folder: Path, *callbacks: L.Callback, resume: bool = False, workers: int = 0, **options: Any
) -> ImageClassifier:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    data = ImageData(
        "sklearn:digits",
        image_size=16,
        batch_size=16,
        train_share=0.0432,
        val_size=30,
        transform=brighten,
        batch_transform=RandomCropFlip(),
        num_workers=workers,
    )
    model = ImageClassifier("test_resnet", 10, weights=None, head=dropout_head)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = ResumableRun(folder, **options)
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=[*callbacks, run], num_sanity_val_steps=0, **quiet)
    trainer.fit(model, datamodule=data, ckpt_path=folder / "last.ckpt" if resume else None, **SAFELY)
    assert trainer.global_step == EPOCHS * STEPS
    return model


def tell(signum: int) -> Any:
    return lambda: os.kill(os.getpid(), signum)


def same(first: ImageClassifier, second: ImageClassifier) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    return fit(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("step", "signum"),
    [(1, signal.SIGTERM), (4, signal.SIGTERM), (11, signal.SIGTERM), (6, signal.SIGINT)],
)
def test_what_is_told_to_end_goes_on(whole: ImageClassifier, tmp_path: Path, step: int, signum: int) -> None:
    with pytest.raises(
        RunInterruptedError, match=rf"stopped by {signal.Signals(signum).name} after step {step}; go on"
    ):
        fit(tmp_path, At(step, tell(signum)))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step
    assert same(fit(tmp_path, resume=True), whole)


def test_worker_processes_make_no_difference(whole: ImageClassifier, tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError):
        fit(tmp_path, At(6, tell(signal.SIGTERM)), workers=2)
    assert same(fit(tmp_path, resume=True, workers=1), whole)


def test_two_interruptions(whole: ImageClassifier, tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError):
        fit(tmp_path, At(2, tell(signal.SIGTERM)))
    with pytest.raises(RunInterruptedError):
        fit(tmp_path, At(7, tell(signal.SIGINT)), resume=True)
    assert same(fit(tmp_path, resume=True), whole)


def killed(folder: str, step: int, resume: bool) -> None:
    fit(Path(folder), At(step, tell(signal.SIGKILL)), resume=resume, every_n_steps=3)


def kill(folder: Path, step: int, resume: bool = False) -> None:
    """Let a process of its own train and be killed."""
    process = multiprocessing.get_context("fork").Process(target=killed, args=(str(folder), step, resume))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_what_was_killed_goes_on_from_the_last_checkpoint(whole: ImageClassifier, tmp_path: Path) -> None:
    kill(tmp_path, 5)
    assert same(fit(tmp_path, resume=True), whole)


def test_killed_again_and_again(whole: ImageClassifier, tmp_path: Path) -> None:
    kill(tmp_path, 4)
    kill(tmp_path, 7, resume=True)
    kill(tmp_path, 11, resume=True)
    assert same(fit(tmp_path, resume=True), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RunInterruptedError):
        fit(tmp_path, At(2, tell(signal.SIGTERM)))
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        run = ResumableRun(tmp_path)
        run._note(signal.SIGINT, None)
        run._note(signal.SIGINT, None)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_a_full_disk_leaves_the_checkpoint_before(whole: ImageClassifier, tmp_path: Path, monkeypatch: Any) -> None:
    save, calls = L.Trainer.save_checkpoint, []

    def run_full(trainer: L.Trainer, path: Path, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half a check")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, path, **options)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", run_full)
    message = (
        r"the checkpoint .*last\.ckpt cannot be written: .*No space left on device; .*last\.ckpt is the one before"
    )
    with pytest.raises(OSError, match=message):
        fit(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert same(fit(tmp_path, resume=True), whole)


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"checkpoints cannot be written to .*file/inside: .*; choose another folder"):
        fit(tmp_path / "file/inside")


def test_other_splits_are_refused(tmp_path: Path, make_trainer: Any) -> None:
    with pytest.raises(RunInterruptedError):
        fit(tmp_path, At(2, tell(signal.SIGTERM)))
    data = ImageData("sklearn:digits", image_size=16, seed=3)
    model = ImageClassifier("test_resnet", 10, weights=None, head=dropout_head)
    with pytest.raises(ValueError, match=r"the checkpoint was trained on other splits \(hash .*; resume with the same"):
        make_trainer().fit(model, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    # Measuring it on other images is another matter.
    make_trainer(limit_test_batches=1).test(model, datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False)


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"every_n_steps": 0}])
def test_numbers_below_one(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"every_n_epochs and every_n_steps must be at least 1, got"):
        ResumableRun("never", **options)
