"""The grid of the slides runs as it is written where its weights and data are: here on stand-ins of the same form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image

from nc_finetune.cli import main
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.results.result import read_results

CLASSES, SIDE = 3, 64


def stand_in(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write images into the columns that the grid names, and return the data set with its place."""
    random, names = np.random.default_rng(0), [f"class {number}" for number in range(CLASSES)]
    features = Features({spec["image_column"]: Image(), spec["label_column"]: ClassLabel(names=names)})
    for split, number in (("train", 24), ("test", 9)):
        labels = [row % CLASSES for row in range(number)]
        shades = [random.integers(80 * label, 80 * label + 80, (SIDE, SIDE, 3), dtype=np.uint8) for label in labels]
        table = Dataset.from_dict({spec["image_column"]: shades, spec["label_column"]: labels}, features=features)
        (folder / spec["name"]).mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / spec["name"] / f"{split}.parquet"))
    return spec | {"source": str(folder / spec["name"]), "image_size": SIDE}


@pytest.mark.slow
def test_a_column_of_the_slides_comes_to_its_printed_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = yaml.safe_load(find_recipe("benchmarks/slides_table").read_text(encoding="utf-8"))
    grid["backbones"] = [grid["backbones"][0] | {"weights": None}]
    grid["datasets"] = [stand_in(grid["datasets"][1], tmp_path / "data")]
    grid["seeds"] = grid["seeds"][:1]
    grid["settings"] |= {"epochs": 1, "num_workers": 0, "batch_size": 8}
    for method in grid["methods"]:
        method["learning_rates"] = method["learning_rates"][:1]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    assert main(["benchmark", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    runs = read_results(tmp_path / "runs/results")
    assert {run.method: run.key_layer for run in runs if run.key_layer} == {
        "layer_ft": "layer3.0",
        "scl_ft": "layer3.0",
    }
    for label in ("linear probe", "layer FT", "SCL-FT", "full FT"):
        assert label in printed
    assert all(run.accuracy is not None and run.nc1 is not None for run in runs)
    assert (tmp_path / "runs/report.html").is_file()
