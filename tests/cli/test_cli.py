import contextlib
import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.backbones._weights.state_dicts import hub_failure
from nc_finetune.cli import main
from nc_finetune.cli.app import _names_a_model
from nc_finetune.cli.recipes import list_recipes
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.heads import HEAD_NAMES
from nc_finetune.losses import LOSS_NAMES
from nc_finetune.methods import METHOD_NAMES
from nc_finetune.run._cell.recording import EpochTimer

FIT_RECIPES = sorted(name for name in list_recipes() if name.startswith("digits/"))
SMALL = ["--model.backbone", "test_resnet", "--model.weights", "null", "--data.image_size", "32"]
QUIET = [
    "--trainer.logger",
    "false",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_checkpointing",
    "false",
]
GRID = """\
backbones: [{name: test_resnet, weights: null, key_layer: layer2.0}]
datasets: [{source: "sklearn:digits", name: digits, image_size: 32, val_size: 40, test_size: 50}]
methods:
  - {method: LinearProbe, learning_rates: [1.0e-3]}
  - {method: SkipConnectionFinetuning, learning_rates: [1.0e-3]}
samples_per_class: [3]
settings: {epochs: 1}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("recipe", FIT_RECIPES)
def test_every_recipe_runs_as_it_stands(recipe: str) -> None:
    assert main(["fit", recipe, "--trainer.fast_dev_run", "true", *QUIET]) == 0


def test_recipes_are_found_as_files_too(tmp_path: Path) -> None:
    assert main(["recipes", "--copy", "digits/efficientnet_lite0_linear_probe", "--to", str(tmp_path / "mine")]) == 0
    path = tmp_path / "mine" / "efficientnet_lite0_linear_probe.yaml"
    assert main(["fit", "--config", str(path), *SMALL, "--trainer.fast_dev_run", "true", *QUIET]) == 0


RECIPE = "digits/efficientnet_lite0_linear_probe"
FIT_SMALL = [*SMALL, "--data.test_size", "30", "--data.val_size", "20", "--data.samples_per_class", "4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit for an epoch, once for all tests that look at what comes of it."""
    folder = tmp_path_factory.mktemp("fit")
    words = [*FIT_SMALL, "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1"]
    assert main(["fit", RECIPE, *words, "--trainer.default_root_dir", str(folder)]) == 0
    (found,) = folder.rglob("*.ckpt")
    return found


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_of_fit_is_measured_again(
    command: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FIT_SMALL, "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    assert main([command, RECIPE, *words, "--ckpt_path", str(checkpoint)]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_predict_writes_class_names_and_probabilities(tmp_path: Path) -> None:
    recipe = "digits/efficientnet_lite0_linear_probe"
    assert main(["predict", recipe, *SMALL, *QUIET, "--data.test_size", "30", "--predictions.path", "out.csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 30
    assert rows[0]["prediction"] in {str(digit) for digit in range(10)}
    assert sum(float(rows[0][str(digit)]) for digit in range(10)) == pytest.approx(1, abs=1e-4)


def make_photos(folder: Path) -> None:
    (folder / "inner").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("b.png", "a.png", "inner/c.png"):
        Image.fromarray(generator.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")


def make_delta(path: Path) -> ImageClassifier:
    """Save a delta on weights from a file, so that it can be built from what it says."""
    torch.manual_seed(0)
    torch.save(TimmBackbone("test_resnet", None).model.state_dict(), path.with_name("base.pt"))
    model = ImageClassifier(TimmBackbone("test_resnet", str(path.with_name("base.pt"))), 3).eval()
    save_delta(model, path, ["cat", "dog", "owl"])
    return model


def test_predict_takes_a_delta_and_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_delta(tmp_path / "it.safetensors")
    make_photos(tmp_path / "photos")
    assert main(["predict", "it.safetensors", "photos", "--out", "out.csv", "--batch-size", "2"]) == 0
    assert [record.getMessage() for record in caplog.records if record.name.startswith("lightning")] == []
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["file"] for row in rows] == ["a.png", "b.png", "inner/c.png"]
    decode = DecodeAndResize(model.backbone.preprocessing.image_size)
    for row in rows:
        image = decode({"bytes": None, "path": str(tmp_path / "photos" / row["file"])})
        with torch.no_grad():
            expected = model(image[None]).softmax(1)[0].tolist()
        found = [float(row[name]) for name in ("cat", "dog", "owl")]
        assert found == pytest.approx(expected, abs=1e-5)
        assert row["prediction"] == ("cat", "dog", "owl")[found.index(max(found))]


def test_predict_takes_a_checkpoint_of_fit_as_it_was_trained(checkpoint: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    assert main(["predict", str(checkpoint), "photos"]) == 0
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert list(rows[0]) == ["file", "prediction", *map(str, range(10))]
    assert main(["predict", str(checkpoint), "photos", "--image-size", "32", "--out", "same.csv"]) == 0
    assert (tmp_path / "same.csv").read_text() == (tmp_path / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.safetensors", "photos"], "no delta at nowhere.safetensors"),
        (["empty", "photos"], "no delta at empty/model.safetensors"),
        (["photos/a.png", "photos"], "a.png is no model: a model is a .safetensors, a .ckpt, a folder of nc-finetune"),
        (["it.safetensors", "nowhere"], "no folder of images at nowhere"),
        (["it.safetensors", "empty"], "holds no images"),
        (["it.safetensors", "photos", "--batch-size", "0"], "at least 1"),
        (["it.safetensors", "broken"], "broken/x.png does not decode"),
    ],
)
def test_predict_says_what_is_wrong(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_delta(tmp_path / "it.safetensors")
    make_photos(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"nothing")
    assert main(["predict", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "predictions.csv").exists()


def test_a_folder_of_a_tuning_is_a_model_to_predict_and_export(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    make_delta(tmp_path / "tuned" / "model.safetensors")
    make_photos(tmp_path / "photos")
    assert main(["predict", "tuned", "photos", "--image-size", "32"]) == 0
    assert (tmp_path / "predictions.csv").read_text().startswith("file,prediction,cat,dog,owl")
    assert main(["export", "tuned", "--to", "state-dict", "--out", "weights.safetensors"]) == 0
    assert load_delta("tuned").num_classes == 3


def test_a_folder_that_is_called_as_a_recipe_is_none(tmp_path: Path) -> None:
    (tmp_path / RECIPE).mkdir(parents=True)
    (tmp_path / "tuned").mkdir()
    assert (_names_a_model(RECIPE), _names_a_model("tuned")) == (False, True)


def test_export_writes_weights_that_timm_loads(tmp_path: Path) -> None:
    model = make_delta(tmp_path / "it.safetensors")
    assert main(["export", "it.safetensors", "--to", "state-dict", "--out", "plain.safetensors"]) == 0
    plain = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(tmp_path / "plain.safetensors")).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(model.backbone.normalize(images)), model(images), rtol=0, atol=1e-5)


def test_export_writes_a_program(tmp_path: Path) -> None:
    model = make_delta(tmp_path / "it.safetensors")
    words = ["export", "it.safetensors", "--to", "program", "--out", "it.pt2", "--image-size", "32", "--uint8"]
    assert main(words) == 0
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    program = torch.export.load(tmp_path / "it.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-5)


def test_number_of_classes_comes_from_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "digits/efficientnet_lite0_linear_probe", "--model.num_classes", "7"]) == 2
    assert "num_classes" in capsys.readouterr().err


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run a grid, once for all tests that look at what comes of it; return its folder and what was printed."""
    folder, printed = tmp_path_factory.mktemp("benchmark"), io.StringIO()
    (folder / "grid.yaml").write_text(GRID)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        assert main(["benchmark", "grid.yaml", "--out", "out"]) == 0
    return folder / "out", printed.getvalue()


def test_benchmark_runs_a_grid_and_leaves_a_report(benchmarked: tuple[Path, str]) -> None:
    folder, printed = benchmarked
    assert "SCL-FT" in printed
    assert "Report: out/report.html" in printed
    assert len(list((folder / "results").glob("*.json"))) == 2
    assert (folder / "report.md").is_file()


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    """Undo what Ray has left in this process: a handler that exits."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.usefixtures("default_sigterm")
def test_a_benchmark_that_is_asked_to_stop_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(EpochTimer, "on_train_start", stop, raising=False)
    assert main(["benchmark", "quickstart", "--out", str(tmp_path)]) == 143
    assert "the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "results").glob("*.json"))


def test_benchmark_with_a_failed_run_says_so_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(20):
        for name in ("cat", "dog"):
            path = tmp_path / "broken" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image")
    text = GRID.replace('source: "sklearn:digits"', "source: ./broken").replace("val_size: 40, test_size: 50", "")
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["benchmark", "grid.yaml", "--out", "out"]) == 1
    printed = capsys.readouterr().out.replace("\n", "")
    assert "does not decode" in printed
    assert "2 failed; --retry-failed runs them again" in printed


def test_everything_that_a_grid_misnames_is_listed_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GRID.replace("layer2.0", "layer9.0").replace("LinearProbe", "LinearProb").replace(":digits", ":digit")
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["benchmark", "grid.yaml", "--out", "out"]) == 2
    printed = capsys.readouterr().err
    assert all(name in printed for name in ("'layer9.0'", "'LinearProb'", "'sklearn:digit'", "for 3 reasons"))
    assert not (tmp_path / "out").exists()


def test_dry_run_shows_the_plan_with_an_estimate_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    assert main(["benchmark", "grid.yaml", "--out", "out", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"2 cells, 2 to run with 2 fits, about \d+ s", printed)
    assert "SCL-FT" in printed
    assert not (tmp_path / "out").exists()


def test_report_of_an_empty_folder_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", "empty"]) == 2
    assert "there are no results in empty/results; run the benchmark first" in capsys.readouterr().err


def test_report_is_written_again_from_results(benchmarked: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(benchmarked[0] / "results", tmp_path / "out" / "results")
    assert main(["report", "out"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_benchmark_is_started_from_anywhere_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "quikstart"]) == 2
    assert "unknown recipe 'quikstart'; did you mean 'quickstart'?" in capsys.readouterr().err


def test_recipes_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in list_recipes())
    assert "Four ways to fine-tune" in printed


def test_help_lists_the_names_of_methods_heads_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    words = capsys.readouterr().out.split()
    assert not {*METHOD_NAMES, *HEAD_NAMES, *LOSS_NAMES} - set(words)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    listed = {line.split()[0] for line in printed.splitlines() if line.startswith("    ")}
    assert {"fit", "validate", "test", "predict", "benchmark", "report", "recipes", "export", "push", "data"} <= listed


def test_bad_input_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "digits/efficientnet_lite0_linear_probe"
    assert main(["fit", recipe, "--model.backbone", "resnet999", *QUIET]) == 2
    error = capsys.readouterr().err
    assert "nc-finetune: unknown timm backbone 'resnet999'" in error
    assert "Traceback" not in error


def test_command_is_installed() -> None:
    command = Path(sys.executable).with_name("nc-finetune")
    finished = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("usage: nc-finetune")


@pytest.mark.parametrize("name", ["LinearProb", "nc_finetune.methods.LinearProb"])
def test_unknown_method_lists_the_valid_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "digits/efficientnet_lite0_linear_probe", "--model.method", name]) == 2
    listed = "Valid methods: AdapterTuning, Control, FullFinetuning, LayerFinetuning, LinearProbe"
    assert listed in capsys.readouterr().err


def test_unknown_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "digits/efficientnet_lite0_linear_probe", "--data.image_sise", "3"]) == 2
    error = capsys.readouterr().err
    assert "image_sise" in error
    assert "nc-finetune fit --help" in error


@pytest.mark.slow
def test_one_fit_runs_on_two_processes(tmp_path: Path) -> None:
    """Lightning starts the second process from the command line of the first; both choose the same key layer."""
    command = Path(sys.executable).with_name("nc-finetune")
    small = [*SMALL, "--data.val_size", "60", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    words = [
        "fit",
        "digits/efficientnet_lite0_layer_ft",
        "strategies/ddp",
        *small,
        *quiet,
        "--model.method.init_args.key_layer",
        "auto",
    ]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [command, *words], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "Starting with 2 processes" in finished.stdout + finished.stderr
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    assert content["global_step"] == 4  # 200 images, two batches of 32 a step
    assert content["nc_finetune"]["method"]["init_args"]["key_layer"].startswith("layer")


def test_predict_may_skip_broken_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_delta(tmp_path / "it.safetensors")
    make_photos(tmp_path / "photos")
    (tmp_path / "photos" / "aa.png").write_bytes(b"nothing")
    assert main(["predict", "it.safetensors", "photos", "--on-bad-image", "skip"]) == 0
    assert "Skipped 1 images: aa.png" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [row["file"] for row in rows] == ["a.png", "b.png", "inner/c.png"]


def test_a_recipe_takes_the_prefix_cache_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ["--trainer.callbacks+=nc_finetune.callbacks.PrefixCache", "--trainer.callbacks.folder", str(tmp_path)]
    small = [*SMALL, "--model.method.init_args.key_layer", "layer2.0", "--data.samples_per_class", "2"]
    words = ["fit", "digits/efficientnet_lite0_scl_ft", *cache, *small, "--trainer.max_epochs", "1", *QUIET]
    assert main([*words, "--data.val_size", "20", "--data.pixel_cache", str(tmp_path / "pixels")]) == 0
    assert len(list(tmp_path.glob("*-1of1"))) == 2
    assert len(list((tmp_path / "pixels").iterdir())) == 1


def test_weights_that_cannot_be_had_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def build(name: str, weights: str | None) -> None:
        raise hub_failure(name, str(weights), "no route to host")

    monkeypatch.setattr("nc_finetune.tuning.first_answers.create_backbone", build)
    assert main(["tune", "sklearn:digits", "--backbones", "resnet50", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nc-finetune: the pre-trained weights 'default' of resnet50 could not be had")
    assert "weights='package'" in said
    assert said.count("\n") == 1
