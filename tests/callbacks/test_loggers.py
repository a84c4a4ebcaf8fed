"""TensorBoard, W&B and MLflow as users have them, without account and network: figures, tables and history arrive."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from plain_module import PlainModule, make_loader

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseMonitor

EPOCHS = 2
FIGURES = {"layerwise_nc1/nc1", "layerwise_nc1/val/nc1", "collapse/measures"}
TABLES = {"layerwise_nc1/history", "collapse/history"}
Fit = Callable[[Logger], tuple[LayerwiseNC1, CollapseMonitor]]


@pytest.fixture
def fit(make_trainer: Callable[..., L.Trainer]) -> Fit:
    """Fit under a logger with both callbacks, and return them."""

    def run(logger: Logger) -> tuple[LayerwiseNC1, CollapseMonitor]:
        callbacks = LayerwiseNC1(split=["train", "val"]), CollapseMonitor()
        make_trainer(*callbacks, logger=logger, max_epochs=EPOCHS).fit(PlainModule(), make_loader(), make_loader(16))
        return callbacks

    return run


def history(callback: LayerwiseNC1 | CollapseMonitor, key: str) -> list[float]:
    return [row[key] for row in callback.history if key in row]


@pytest.mark.slow
def test_tensorboard(fit: Fit, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    layers, monitor = fit(TensorBoardLogger(tmp_path, name="run"))
    events = EventAccumulator(str(tmp_path / "run" / "version_0"), size_guidance={"tensors": 0}).Reload()
    assert set(events.Tags()["images"]) == FIGURES
    for callback, key in ((layers, "nc1/penultimate"), (layers, "val/nc1/stem"), (monitor, "collapse/nc1")):
        assert [event.value for event in events.Scalars(key)] == pytest.approx(history(callback, key))
    assert {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]} >= TABLES
    (text,) = events.Tensors("layerwise_nc1/history/text_summary")
    head, _line, *rows = text.tensor_proto.string_val[0].decode().splitlines()
    column = [cell.strip() for cell in head.split("|")].index("nc1/penultimate")
    shown = [row.split("|")[column].strip() for row in rows]
    assert shown == [f"{value:.6g}" for value in history(layers, "nc1/penultimate")]


@pytest.fixture(name="wandb")
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """W&B in offline mode, with all of its folders elsewhere."""
    import wandb

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.finish()
    wandb.teardown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb(fit: Fit, wandb: Any, tmp_path: Path) -> None:
    logger = WandbLogger(project="collapse", save_dir=tmp_path, offline=True)
    layers, monitor = fit(logger)
    summary = dict(logger.experiment.summary)
    assert summary["nc1/penultimate"] == pytest.approx(history(layers, "nc1/penultimate")[-1])
    assert summary["collapse/nc1"] == pytest.approx(history(monitor, "collapse/nc1")[-1])
    assert {key for key, value in summary.items() if "images" in str(getattr(value, "_type", value))} >= FIGURES
    media = Path(logger.experiment.dir) / "media"
    assert len(list((media / "images").rglob("*.png"))) == len(FIGURES)
    (file,) = (media / "table" / "layerwise_nc1").glob("history*.table.json")
    table = json.loads(file.read_text())
    column = table["columns"].index("val/nc1/penultimate")
    assert [row[column] for row in table["data"]] == pytest.approx(history(layers, "val/nc1/penultimate"))


@pytest.mark.slow
def test_mlflow(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # later ones prefer a database
    logger = MLFlowLogger("collapse", tracking_uri=f"file:{tmp_path / 'store'}")
    layers, monitor = fit(logger)
    client, run = logger.experiment, logger.run_id
    for callback, key in ((layers, "nc1/penultimate"), (layers, "val/nc1/stem"), (monitor, "collapse/nc1")):
        found = [metric.value for metric in client.get_metric_history(run, key)]
        assert found == pytest.approx(history(callback, key))
    pictures = {f"{name}_step_{layers.history[-1]['step']:.0f}.png" for name in FIGURES}
    folder = Path(client.get_run(run).info.artifact_uri.removeprefix("file://"))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        *pictures,
        *(f"{name}.csv" for name in TABLES),
    }
    for name in pictures:
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
    with (folder / "layerwise_nc1" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nc1/penultimate"]) for row in rows] == history(layers, "nc1/penultimate")
