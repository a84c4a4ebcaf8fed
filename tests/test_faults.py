"""What the machine does to a run: one clear line each, and what was written stays."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nc_finetune import ImageClassifier
from nc_finetune.cli import main
from nc_finetune.faults import explain

FIT = [
    *("fit", "digits/efficientnet_lite0_linear_probe", "--model.backbone", "test_resnet", "--model.weights", "null"),
    *("--data.image_size", "32", "--data.samples_per_class", "4", "--data.val_size", "20", "--trainer.max_epochs", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--run.folder", "run"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Let something happen in a training step, once."""
    train, calls = ImageClassifier.training_step, []

    def training_step(model: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        if len(calls) == step:
            act()
        return train(model, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)


def raising(error: Exception) -> Any:
    def act() -> None:
        raise error

    return act


def weights() -> dict[str, Any]:
    content: dict[str, Any] = torch.load("run/last.ckpt", weights_only=True)["state_dict"]
    return content


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_can_be_given_again(
    signum: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FIT) == 0
    whole = weights()
    (tmp_path / "run/last.ckpt").unlink()
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda: os.kill(os.getpid(), signum))
        assert main([*FIT, "--ckpt_path", "last"]) == 128 + signum
    printed = capsys.readouterr().err
    assert "Beginning: there is no run/last.ckpt" in printed
    assert f"nc-finetune: stopped by {signum.name} after step 3; go on with the checkpoint run/last.ckpt" in printed
    assert main([*FIT, "--ckpt_path", "last"]) == 0
    assert "Going on from run/last.ckpt" in capsys.readouterr().err
    assert all(torch.equal(value, whole[name]) for name, value in weights().items())


def test_last_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT[:-2], "--ckpt_path", "last"]) == 2
    assert "--ckpt_path last needs to know the run: give --run.folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
            "the memory of the device is full: CUDA out of memory. Tried to allocate 2.00 GiB. Lower --data.batch_size",
        ),
        (MemoryError("Unable to allocate 8 GiB"), "the memory of the computer is full: Unable to allocate 8 GiB"),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
            "the memory of the computer is full",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk: [Errno 28] No space left"),
    ],
)
def test_a_machine_that_gives_out(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 3, raising(error))
        assert main([*FIT, "--run.every_n_steps", "1"]) in (1, 2)
    printed = capsys.readouterr().err
    assert f"nc-finetune: {message}" in printed
    assert "Traceback" not in printed
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_loss_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train, calls = ImageClassifier.training_step, []

    def training_step(model: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        calls.append(batch_idx)
        images, labels = batch
        return train(model, (images.float() * (float("nan") if len(calls) > 2 else 1), labels), batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    assert main(FIT) == 1
    assert "the training loss was not finite in epoch 1: lower the learning rate" in capsys.readouterr().err
    assert all(value.isfinite().all() for value in weights().values())  # of the epoch before


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 1, raising(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(FIT)


def test_full_shared_memory_names_the_way_out() -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's")
    assert "Set --data.num_workers 0, or enlarge /dev/shm" in str(explain(error))


def test_what_speaks_for_itself_is_left_alone() -> None:
    assert explain(ValueError("images must have shape (N, 3, H, W)")) is None
