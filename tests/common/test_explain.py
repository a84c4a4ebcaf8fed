"""What the machine does to a run: one clear line each, and what was written stays."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nc_finetune import ImageClassifier
from nc_finetune._common.explain import explain
from nc_finetune.cli import main
from nc_finetune.results.result import read_results
from nc_finetune.selection import ChooseKeyLayer, KeyLayerChoice
from nc_finetune.selection._trials.halving import Measurement, Rung

FIT = [
    *("fit", "digits/efficientnet_lite0_linear_probe", "--model.backbone", "test_resnet", "--model.weights", "null"),
    *("--data.image_size", "32", "--data.samples_per_class", "4", "--data.val_size", "20", "--trainer.max_epochs", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--run.folder", "run"),
]
GRID = """\
backbones: [{name: test_resnet, weights: null}]
datasets: [{source: "sklearn:digits", name: digits, image_size: 32, val_size: 40, test_size: 50}]
methods: [{method: FullFinetuning, learning_rates: [1.0e-3]}]
samples_per_class: [3]
seeds: [0, 1]
settings: {epochs: 1}
"""


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


@pytest.mark.parametrize(
    ("error", "cache"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "--trainer.callbacks+=nc_finetune.callbacks.PrefixCache"),
        (MemoryError("8 GiB"), "give PrefixCache a folder, or a smaller budget_gb"),
    ],
)
def test_full_memory_names_batch_size_precision_and_cache(error: Exception, cache: str) -> None:
    advice = str(explain(error))
    assert all(words in advice for words in ("--data.batch_size", "settings.batch_size", "bf16-mixed", cache))


def test_the_options_of_the_advice_are_taken(tmp_path: Path) -> None:
    words = ["--trainer.callbacks+=nc_finetune.callbacks.PrefixCache", "--trainer.precision", "bf16-mixed"]
    assert main([*FIT, "--data.batch_size", "8", "--trainer.accumulate_grad_batches", "4", *words]) == 0


def benchmark(tmp_path: Path) -> list[str]:
    (tmp_path / "grid.yaml").write_text(GRID)
    return ["benchmark", "grid.yaml", "--out", "out"]


def test_a_cell_without_memory_is_told_and_the_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 1, raising(torch.OutOfMemoryError("CUDA out of memory.")))
        assert main(benchmark(tmp_path)) == 1
    failed, done = sorted(read_results(tmp_path / "out/results"), key=lambda result: result.status)
    assert (failed.status, done.status) == ("failed", "ok")
    assert "the memory of the device is full: CUDA out of memory. Lower --data.batch_size" in str(failed.error)
    assert main([*benchmark(tmp_path), "--retry-failed"]) == 0


def test_a_full_disk_ends_a_benchmark_that_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert main(benchmark(tmp_path)) == 2
    printed = capsys.readouterr().err
    assert "no space is left on the disk: [Errno 28]" in printed
    assert "Traceback" not in printed
    (kept,) = (tmp_path / "out/results").iterdir()
    before = kept.stat().st_mtime_ns
    assert main(benchmark(tmp_path)) == 0
    assert [result.status for result in read_results(tmp_path / "out/results")] == ["ok", "ok"]
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("command", ["fit", "benchmark"])
def test_a_folder_that_cannot_be_written_is_told_at_once(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_at(monkeypatch, 1, raising(RuntimeError("it trained")))
    (tmp_path / "file").touch()
    words = [*FIT[:-1], "file/run"] if command == "fit" else [*benchmark(tmp_path)[:-1], "file/out"]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert "nc-finetune: " in printed
    assert "another folder" in printed
    assert "Traceback" not in printed


def test_a_folder_without_permission() -> None:
    assert str(explain(PermissionError(errno.EACCES, "Permission denied", "out/results"))) == (
        "[Errno 13] Permission denied: 'out/results'. Change its permissions, or name another folder; what was written"
        " before is whole"
    )


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


def test_a_run_that_goes_on_chooses_no_key_layer_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []

    def choose(self: ChooseKeyLayer, *_: object) -> KeyLayerChoice:
        chosen.append("layer1.0")
        found = Measurement(0.5, 1.0, 10)
        return KeyLayerChoice("layer1.0", [Rung(1, {"layer1.0": found}, {"layer1.0": 1.0})], 0.0)

    monkeypatch.setattr(ChooseKeyLayer, "_choose", choose)
    method = ["--model.method", "nc_finetune.methods.SideFinetuning", "--model.method.init_args.key_layer", "auto"]
    assert main([*FIT, *method, "--trainer.max_epochs", "1"]) == 0
    assert main([*FIT, *method, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    assert chosen == ["layer1.0"]
