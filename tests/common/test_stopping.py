"""Ctrl-C and SIGTERM reach every process of a command: what each command then does, and what it leaves."""

import signal
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quick_first
from own_group import run_in_own_group as run
from PIL import Image

from nc_finetune import ImageClassifier, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.cli import main

BOTH = (signal.SIGINT, signal.SIGTERM)
SMALL = ["--model.backbone", "test_resnet", "--model.weights", "null", "--data.image_size", "16"]
FIT = [
    "fit",
    "digits/efficientnet_lite0_linear_probe",
    *SMALL,
    *("--data.samples_per_class", "4", "--data.batch_size", "8", "--data.val_size", "24", "--data.num_workers", "2"),
    *("--trainer.max_epochs", "2", "--trainer.logger", "false", "--trainer.accelerator", "cpu"),
    *("--run.folder", "run"),
]
GRID = """\
backbones: [{name: test_resnet, weights: null, key_layer: layer2.0}]
datasets: [{source: "sklearn:digits", name: digits, image_size: 16, val_size: 40, test_size: 50}]
methods: [{method: LinearProbe, learning_rates: [1.0e-3]}, {method: FullFinetuning, learning_rates: [1.0e-3]}]
samples_per_class: [3]
settings: {epochs: 1, batch_size: 8, num_workers: 2}
"""
DATA = ["sklearn:digits", "--image-size", "16", "--samples-per-class", "4"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(folder: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(Path(folder) / "last.ckpt", weights_only=True)["state_dict"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert (
        main([*FIT, "--run.folder", str(folder), "--trainer.default_root_dir", str(folder), "--data.num_workers", "0"])
        == 0
    )
    return weights(str(folder))


TRAINING_STEP = "nc_finetune.classifier:ImageClassifier.training_step"
VALIDATION_STEP = "nc_finetune.classifier:ImageClassifier.validation_step"


@pytest.mark.parametrize(
    ("target", "call", "signals"),
    quick_first(
        2,
        [
            (TRAINING_STEP, 3, BOTH[:1]),
            (VALIDATION_STEP, 3, BOTH[1:]),
            (TRAINING_STEP, 7, [signal.SIGTERM, signal.SIGTERM]),
        ],
    ),
)
def test_a_fit_leaves_a_checkpoint_and_goes_on(
    whole: dict[str, Any], target: str, call: int, signals: Sequence[signal.Signals]
) -> None:
    status, said = run([*FIT, "--trainer.num_sanity_val_steps", "0"], target, call, signals)
    assert status == 128 + signals[0]
    assert f"stopped by {signals[0].name} after step" in said
    assert "Traceback" not in said
    assert main([*FIT, "--ckpt_path", "last"]) == 0
    assert all(torch.equal(value, whole[name]) for name, value in weights().items())


def make_model() -> None:
    torch.manual_seed(0)
    torch.save(TimmBackbone("test_resnet", None).model.state_dict(), "base.pt")
    save_delta(ImageClassifier(TimmBackbone("test_resnet", "base.pt"), 2).eval(), "it.safetensors", ["cat", "dog"])
    for index in range(6):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), index, dtype=np.uint8)).save(f"photos/{index}.png")


MODEL = "nc_finetune.classifier:ImageClassifier.predict_step"
WRITE = "nc_finetune._common.atomic_files:write_atomically"
STOPS = {
    "a fit while it reads the source": (FIT, "nc_finetune.data.image_data:load_source", 1),
    "a fit while images are compared": (FIT, "nc_finetune.data.splits.summary:find_duplicates", 1),
    "a fit in its sanity check": (FIT, VALIDATION_STEP, 1),
    "a test": (["test", *FIT[1:-2]], "nc_finetune.classifier:ImageClassifier.test_step", 2),
    "predictions of a recipe": (["predict", *FIT[1:-2]], MODEL, 2),
    "predictions of a folder": (["predict", "it.safetensors", "photos", "--batch-size", "2"], MODEL, 2),
    "an export": (
        ["export", "it.safetensors", "--to", "program", "--out", "it.pt2"],
        "nc_finetune.deployment.export:torch.export.export",
        1,
    ),
    "a ranking": (
        ["rank", *DATA, "--backbones", "test_resnet=null"],
        "nc_finetune.selection.backbone_scores:score_features",
        1,
    ),
    "a profile": (
        ["profile", "test_resnet", *DATA, "--weights", "null", "--epochs", "1"],
        "nc_finetune.selection._trials.block_trial:BlockTrial.advance",
        2,
    ),
    "a check of data": (["data", "check", "photos", "--workers", "2"], "nc_finetune.data.check:BadImage", 1),
}


# Both signals take one way: each command gets one of them, in turn.
@pytest.mark.parametrize(("name", "signum"), zip(STOPS, cycle(BOTH), strict=False))
def test_whatever_is_told_to_end_says_so_in_a_line(name: str, signum: signal.Signals) -> None:
    make_model()
    words, target, call = STOPS[name]
    if name == "a check of data":
        for kind in ("a", "b"):
            for index in range(6):
                path = Path("photos", kind, f"{index}.png")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"none")
    there = set(Path().rglob("*"))
    status, said = run(words, target, call, [signum])
    assert status == 128 + signum
    assert f"nc-finetune: stopped by {signum.name}; what was written before is whole" in said
    assert "Traceback" not in said
    written = {path.name for path in set(Path().rglob("*")) - there if path.is_file()}
    assert written <= {"stderr.txt", "config.yaml"}


@pytest.mark.parametrize(
    ("signals", "call"), quick_first(1, [(BOTH[1:], 6), (BOTH[:1], 2), ([signal.SIGTERM, signal.SIGTERM], 6)])
)
def test_a_benchmark_goes_on_with_what_is_missing(signals: Sequence[signal.Signals], call: int) -> None:
    Path("grid.yaml").write_text(GRID)
    words = ["benchmark", "grid.yaml", "--out", "out"]
    status, said = run(words, TRAINING_STEP, call, signals)
    assert status == 128 + signals[0]
    assert "; finished runs stay in out/results; the same command goes on with what is missing" in said
    assert "Traceback" not in said
    finished = {path.name: path.read_bytes() for path in Path("out/results").glob("*")}
    assert len(finished) == (call > 4)  # steps of the first run
    assert main(words) == 0
    assert len(list(Path("out/results").glob("*.json"))) == 2
    assert all(Path("out/results", name).read_bytes() == content for name, content in finished.items())
