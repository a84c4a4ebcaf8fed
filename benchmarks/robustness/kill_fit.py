"""SIGKILL at random moments: a fit that is started again until it ends.

    PYTHONPATH=. python benchmarks/robustness/kill_fit.py [--kills 50]

Prints a table of the kills, and compares with a run that was left alone: weights bit for bit, test accuracy, and what
lies in the folder. The fit has random augmentation and dropout, and tunes everything, batch norm included. Children are
forked from a process that has imported everything, so that a kill costs no start. It ends with exit status 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.callbacks import ResumableRun
from nc_finetune.callbacks.resumable_run import LAST
from nc_finetune.methods import FullFinetuning

EPOCHS = 6


def head(width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(width, num_classes))


def brighten(image: Tensor) -> Tensor:
    return (image * (0.5 + 0.5 * torch.rand(()))).to(torch.uint8)


def quietly(work: Callable[..., Any], *args: Any) -> None:
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        work(*args)


def fit(folder: Path) -> None:
    """Train from the last checkpoint, if there is one, to the end; augmentation and dropout draw random numbers."""
    L.seed_everything(0, verbose=False)
    data = ImageData(
        "sklearn:digits",
        image_size=16,
        batch_size=16,
        samples_per_class=12,
        val_size=60,
        test_size=120,
        transform=brighten,
    )
    rates = {"learning_rate": 1e-2, "head_learning_rate": 1e-2}
    method = FullFinetuning(batch_norm="train")  # its statistics are part of the state, too
    model = ImageClassifier("test_resnet", 10, weights=None, head=head, method=method, **rates)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=EPOCHS, callbacks=[ResumableRun(folder, every_n_steps=5)], **quiet)
    last = folder / LAST
    trainer.fit(model, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    torch.save({"weights": model.state_dict(), "accuracy": scores["test/accuracy"]}, folder / "done.pt")


def attempt(work: Callable[[Path], None], folder: Path, seconds: float | None) -> tuple[bool, float]:
    """Run in a child, killed after some seconds; tell whether it ended by itself, and after what time."""
    child = multiprocessing.get_context("fork").Process(target=quietly, args=(work, folder))
    start = time.perf_counter()
    child.start()
    child.join(seconds)
    if child.exitcode is None and child.pid is not None:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child ended with {child.exitcode}")
    return child.exitcode == 0, time.perf_counter() - start


def progress(folder: Path) -> str:
    last = folder / LAST
    if last.is_file():
        content = torch.load(last, weights_only=True)
        return f"epoch {content['epoch']:2}, step {content['global_step']:3}"
    return "nothing"


def killed_until_done(
    work: Callable[[Path], None], folder: Path, kills: int, alone: float, moments: random.Random
) -> int:
    """Start again after every kill; the moments are random, drawn so that there is some progress between them."""
    number = 0
    print("| kill | after s | found on the disk afterwards |\n| ---: | ---: | --- |")
    while number < kills:
        ended, seconds = attempt(work, folder, moments.uniform(0.02, 0.3) * alone)
        if ended:  # all is done before the kills are: begin a new one in the same way
            return number
        number += 1
        print(f"| {number} | {seconds:.2f} | {progress(folder)} |", flush=True)
    attempt(work, folder, None)
    return number


def differences(first: Path, second: Path) -> list[str]:
    """Say in what a run that was killed differs from one that was left alone."""
    one, two = (torch.load(folder / "done.pt", weights_only=True) for folder in (first, second))
    weights = [name for name, value in one["weights"].items() if not torch.equal(value, two["weights"][name])]
    accuracy = [] if one["accuracy"] == two["accuracy"] else [f"accuracy {two['accuracy']}"]
    return [*weights, *accuracy, *sorted({path.name for path in second.iterdir()} - {LAST, "done.pt"})]


def warm_up() -> None:
    """Import what children would import: threads do not survive a fork, so that nothing is trained here."""
    torch.set_num_threads(1)
    data = ImageData("sklearn:digits", image_size=16)
    data.train_set[0]
    ImageClassifier("test_resnet", 10, weights=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    known = parser.parse_args()
    moments = random.Random(known.seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name, "alone")
        alone.mkdir()
        warm_up()
        _, seconds = attempt(fit, alone, None)
        left_alone = torch.load(alone / "done.pt", weights_only=True)
        accuracy = 100 * left_alone["accuracy"]
        print(f"Left alone: {seconds:.1f} s, test accuracy {accuracy:.2f} %, {len(left_alone['weights'])} tensors.\n")
        total, found = 0, []
        rounds = 0
        while total < known.kills:
            folder = Path(name, f"killed{rounds}")
            folder.mkdir()
            killed = killed_until_done(fit, folder, known.kills - total, seconds, moments)
            different = differences(alone, folder)
            print(f"\nEnded after {killed} kills; differs in: {', '.join(different) or 'nothing'}.\n", flush=True)
            total, rounds, found = total + killed, rounds + 1, [*found, *different]
    print(f"{total} kills, {rounds} runs to the end, {len(found)} differences from the run that was left alone.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
