"""Several labels an image, from a folder with a table to the report."""

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nc_finetune.cli import main
from nc_finetune.functional import multilabel_collapse, nc1
from nc_finetune.report.content import build_report
from nc_finetune.report.report import write_report
from nc_finetune.results.result import Result, read_results
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, LossSpec, MethodSpec

TAGS = ("blue", "green", "red")


def write_tagged(folder: Path, copies: int = 12, alone: bool = True) -> str:
    """Write images in which each tag lights up a channel, one tag or two each, and their table."""
    sets = [tags for size in (1, 2) for tags in itertools.combinations(TAGS, size) if alone or tags != ("red",)]
    rows = ["file,tags"]
    folder.mkdir(parents=True, exist_ok=True)
    for number, tags in enumerate(sets * copies):
        noise = np.random.default_rng(number).integers(80, size=(16, 16, 3))
        lit = np.array(["red" in tags, "green" in tags, "blue" in tags]) * 170
        Image.fromarray((noise + lit).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(tags)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


def make_grid(source: str, **changes: Any) -> Grid:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        "datasets": [DatasetSpec(source=source, name="tags", image_size=32, val_size=20, test_size=20)],
        "methods": [MethodSpec(method="LayerFinetuning", learning_rates=[1e-5, 1e-2])],
        "settings": Settings(epochs=4, batch_size=8),
    }
    return Grid(**{**parts, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tagged(tmp_path_factory.mktemp("tagged"))


@pytest.fixture(scope="module")
def finished(folder: str) -> Result:
    (cell,) = make_grid(folder).cells()
    return run_cell(cell)


def test_a_run_is_judged_by_its_average_precision(finished: Result) -> None:
    assert (finished.status, finished.error, finished.loss) == ("ok", None, "pick_all_labels_loss")
    assert (finished.measure, finished.score) == ("average precision", finished.average_precision)
    assert finished.score is not None
    assert finished.score > 70  # 1/2 of the images have a tag
    assert (finished.accuracy, finished.balanced_accuracy, finished.val_accuracy) == (None, None, None)
    assert finished.confusion == []


def test_the_rate_is_chosen_by_the_average_precision_on_validation_images(finished: Result) -> None:
    rates = {rate: score or 0.0 for rate, score in finished.learning_rates.items()}
    assert finished.val_average_precision == max(rates.values()) > min(rates.values())
    assert rates[f"{finished.learning_rate:g}"] == max(rates.values())


def test_collapse_is_that_of_sets_of_labels_and_of_images_with_one(folder: str, finished: Result) -> None:
    (cell,) = make_grid(folder, methods=[MethodSpec(method="LinearProbe", learning_rates=[1e-5])]).cells()
    result = run_cell(cell)
    data = cell.dataset.build(None, 0, 8, 0)
    L.seed_everything(cell.seed, verbose=False)  # the network has random weights
    model = cell.build_model(cell.build_backbone(), data, 1e-5).eval()
    batches = list(data.eval_dataloader("train"))
    with torch.no_grad():
        features = torch.cat([model.features(images) for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    expected = multilabel_collapse(features, labels)
    alone = labels.sum(dim=1) == 1
    assert result.nc1 == pytest.approx(nc1(features[alone], labels[alone].argmax(dim=1)).item(), rel=1e-4)
    for name, value in expected._asdict().items():
        assert result.collapse[f"multilabel_{name}"] == pytest.approx(value.item(), rel=1e-4)
    assert set(finished.nc1_layers) == {"stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate"}


def test_a_label_that_never_stands_alone_leaves_the_collapse_open(tmp_path: Path) -> None:
    (cell,) = make_grid(write_tagged(tmp_path, alone=False), settings=Settings(epochs=1)).cells()
    with pytest.warns(UserWarning, match="class.* 2"):
        result = run_cell(cell)
    assert (result.status, result.error) == ("ok", None)
    assert result.average_precision is not None
    assert math.isnan(result.nc1 or math.nan)
    assert not any(name.startswith("multilabel") for name in result.collapse)


def test_a_loss_for_one_label_is_refused(folder: str) -> None:
    (cell,) = make_grid(folder, losses=[LossSpec(loss="FocalLoss")]).cells()
    assert "have several labels each, and FocalLoss takes one; leave losses out" in str(run_cell(cell).error)
    (digits,) = make_grid("sklearn:digits", losses=[LossSpec(loss="PickAllLabelsLoss")]).cells()
    assert "have one label each, and PickAllLabelsLoss takes several" in str(run_cell(digits).error)


def test_the_key_layer_is_not_chosen_by_trials(folder: str) -> None:
    (cell,) = make_grid(folder, backbones=[BackboneSpec(name="test_resnet", weights=None, key_layer="auto")]).cells()
    result = run_cell(cell)
    assert result.status == "failed"
    assert "trials of blocks compare images with one label each, those of" in str(result.error)


def mixed(finished: Result, seeds: int = 3) -> list[Result]:
    """Return runs on the tags and on digits, two methods each."""
    runs = []
    for seed, method in itertools.product(range(seeds), ("scl_ft", "full_ft")):
        names: dict[str, Any] = {"run_id": f"t{method}{seed}", "method": method, "seed": seed}
        runs.append(replace(finished, **names, average_precision=71.5 + seed))
        digits = {"run_id": f"d{method}{seed}", "dataset": "digits", "accuracy": 93.25 + seed}
        runs.append(replace(finished, **{**names, **digits}, average_precision=None))
    return runs


def charts_of(page: Path) -> dict[str, Any]:
    data = page.read_text().partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    found: dict[str, Any] = json.loads(data)["charts"]
    return found


def test_reports_never_mix_the_measures(finished: Result, tmp_path: Path) -> None:
    files = write_report(mixed(finished), tmp_path)
    other = tmp_path / "average_precision"
    for folder, measure, absent, value in (
        (tmp_path, "accuracy", "average precision", "94.25"),
        (other, "average precision", "accuracy", "72.50"),
    ):
        text = (folder / "report.md").read_text()
        assert f"| {measure} % |" in text
        assert f"the highest mean {measure} is that of" in text
        assert f"**{value}" in text
        assert f"{absent} %" not in text
        charts = charts_of(folder / "report.html")
        assert charts["nc1"]["title"] == f"{measure.capitalize()} against NC1"
        scored = [chart for name, chart in charts.items() if name in ("nc1", "cost", "sizes")]
        assert all(measure in point and absent not in point for chart in scored for point in chart["values"])
    assert "6 runs on images with several labels; see average_precision/report.html" in files.markdown.read_text()
    rows = list(csv.DictReader((other / "results.csv").open()))
    assert {(row["dataset"], row["accuracy"]) for row in rows} == {("tags", "")}


def test_one_report_of_both_measures_is_refused(finished: Result) -> None:
    with pytest.raises(ValueError, match="accuracy and average precision do not go into one report"):
        build_report(mixed(finished))


def test_a_benchmark_from_a_folder_to_its_report(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {
        "backbones": [{"name": "test_resnet", "weights": None, "key_layer": "layer2.0"}],
        "datasets": [{"source": "${TAGGED}", "name": "tags", "image_size": 32, "val_size": 20, "test_size": 20}],
        "methods": [
            {"method": "LinearProbe", "learning_rates": [1e-3]},
            {"method": "SkipConnectionFinetuning", "learning_rates": [1e-3]},
        ],
        "settings": {"epochs": 1, "batch_size": 8},
    }
    monkeypatch.setenv("TAGGED", folder)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    assert main(["benchmark", str(tmp_path / "grid.yaml"), "--out", str(tmp_path)]) == 0
    assert "average precision" in capsys.readouterr().out
    results = read_results(tmp_path / "results")
    assert [result.measure for result in results] == ["average precision"] * 2
    text = (tmp_path / "report.md").read_text()
    assert "average precision %" in text
    assert "accuracy %" not in text
