import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TrainerFactory
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from PIL import Image
from plain_module import PlainModule, make_loader

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.callbacks._collapse.figures import draw_layers, draw_measures
from nc_finetune.callbacks._collapse.history import history_csv
from nc_finetune.callbacks._collapse.loggers import log_figure, log_folder, log_table

ROWS = [{"epoch": epoch, "step": 5 * epoch, "nc1/a": 10.0 / (epoch + 1), "nc1/b": 0.1} for epoch in range(3)]
KEYS = {"a": "nc1/a", "b": "nc1/b"}


def fit(make_trainer: TrainerFactory, *callbacks: Any, **options: Any) -> None:
    make_trainer(*callbacks, **options).fit(PlainModule(), make_loader(), make_loader(16))


def test_table_and_picture_are_in_the_log_folder(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    callback = LayerwiseNC1(split=["train", "val"])
    fit(make_trainer, callback, logger=CSVLogger(tmp_path, name="run"), max_epochs=2)
    folder = tmp_path / "run" / "version_0"
    with (folder / "layerwise_nc1.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == callback.history
    for name in ("layerwise_nc1_nc1.png", "layerwise_nc1_val_nc1.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300


def test_a_second_callback_has_files_of_its_own(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    fit(make_trainer, LayerwiseNC1(folder=tmp_path), LayerwiseNC1(layers=1, folder=tmp_path, figure=False))
    names = {path.name for path in tmp_path.glob("layerwise*")}
    assert names == {"layerwise_nc1.csv", "layerwise_nc1_nc1.png", "layerwise_nc1_1.csv"}


def test_nothing_is_written_without_a_logger(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    fit(make_trainer, LayerwiseNC1(), CollapseMonitor())
    assert list(tmp_path.rglob("*.csv")) == list(tmp_path.rglob("*.png")) == []


def test_the_table_is_there_without_matplotlib(
    make_trainer: TrainerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match=r"could not be written: .*pip install .nc-finetune\[plot\]"):
        fit(make_trainer, LayerwiseNC1(folder=tmp_path))
    assert [path.name for path in tmp_path.glob("layerwise*")] == ["layerwise_nc1.csv"]


def test_a_folder_that_cannot_be_written_to_ends_no_training(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    callback = LayerwiseNC1(folder=tmp_path / "taken")
    with pytest.warns(UserWarning, match="layerwise_nc1 could not be written"):
        fit(make_trainer, callback)
    assert len(callback.history) == 1


def test_a_line_an_epoch_on_a_logarithmic_scale() -> None:
    [axes] = draw_layers(ROWS, KEYS, "nc1").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[10.0, 0.1], [5.0, 0.1], [10 / 3, 0.1]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["epoch 0", "epoch 1", "epoch 2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert axes.get_yscale() == "log"


def test_long_histories_and_deep_networks_stay_readable() -> None:
    keys = {f"layer{i}": f"nc1/layer{i}" for i in range(101)}
    rows = [{"epoch": i, "step": i, **dict.fromkeys(keys.values(), 1.0)} for i in range(60)]
    [axes] = draw_layers(rows, keys, "nc1").axes
    assert len(axes.lines) == 60
    assert len(axes.get_legend().get_texts()) <= 8
    assert len(axes.get_xticklabels()) <= 40


def test_undefined_values_leave_gaps() -> None:
    nan = float("nan")
    rows = [{"epoch": 0, "step": 1, "nc1/a": nan, "nc1/b": 0.0}, {"epoch": 0, "step": 2, "nc1/a": 1.0}]
    [axes] = draw_layers(rows, KEYS, "nc1").axes
    assert [[value == value for value in line.get_ydata()] for line in axes.lines] == [[False, False], [True, False]]
    assert axes.get_legend().get_texts()[1].get_text() == "epoch 0, step 2"


def test_measures_have_a_panel_each_and_scales_of_their_own() -> None:
    rows = [{"epoch": 0, "step": 1, "nc1": 0.5, "slope": -1.0, "ncc_accuracy": 0.9}]
    scales = [axes.get_yscale() for axes in draw_measures(rows, ["nc1", "slope", "ncc_accuracy"]).axes]
    assert scales == ["log", "linear", "linear"]


def test_columns_are_those_of_all_rows() -> None:
    text = history_csv([{"epoch": 0, "step": 1, "a": 1.0}, {"epoch": 1, "step": 2, "b": 2.0}])
    assert text.splitlines() == ["epoch,step,a,b", "0,1,1.0,", "1,2,,2.0"]


class FakeWandb(WandbLogger):
    def __init__(self) -> None:
        self.given: list[Any] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
        self.given.append((key, images, step))

    def log_table(self, key: str, columns: Any = None, data: Any = None, step: int | None = None, **_: Any) -> None:
        self.given.append((key, columns, data, step))


class FakeMlflow(MLFlowLogger):
    def __init__(self) -> None:
        self.given: list[Any] = []

    @property
    def experiment(self) -> Any:
        return self

    @property
    def run_id(self) -> str:
        return "run"

    def log_figure(self, *given: Any) -> None:
        self.given.append(given)

    log_text = log_figure


def test_wandb_and_mlflow_get_the_picture_their_own_way() -> None:
    figure, wandb, mlflow = draw_layers(ROWS, KEYS, "nc1"), FakeWandb(), FakeMlflow()
    log_figure([wandb, mlflow, CSVLogger("logs")], "nc1", figure, 7)
    assert wandb.given == [("nc1", [figure], 7)]
    assert mlflow.given == [("run", figure, "nc1_step_7.png")]


def test_wandb_and_mlflow_get_the_table_their_own_way() -> None:
    wandb, mlflow = FakeWandb(), FakeMlflow()
    rows = [{"epoch": 0, "step": 5, "nc1/a": 2.0}, {"epoch": 1, "step": 9, "nc1/a": 1.0, "nc1/b": 0.5}]
    log_table([wandb, mlflow, CSVLogger("logs")], "nc1/history", rows, 9)
    columns = ["epoch", "step", "nc1/a", "nc1/b"]
    assert wandb.given == [("nc1/history", columns, [[0, 5, 2.0, None], [1, 9, 1.0, 0.5]], 9)]
    assert mlflow.given == [("run", history_csv(rows), "nc1/history.csv")]


def test_loggers_without_a_folder_of_their_own_get_one_a_run() -> None:
    class Remote(CSVLogger):
        log_dir = None  # type: ignore[assignment]

    assert log_folder([Remote("logs", name="runs", version="abc")]) == Path("logs/runs/abc")
    assert log_folder([]) is None


def test_a_logger_without_any_folder_gets_the_picture(make_trainer: TrainerFactory) -> None:
    class RemoteMlflow(FakeMlflow):
        name = version = save_dir = None  # type: ignore[assignment]

        def log_metrics(self, *_: Any, **__: Any) -> None:
            pass

        log_hyperparams = log_graph = after_save_checkpoint = finalize = save = log_metrics  # type: ignore[assignment]

    logger = RemoteMlflow()
    fit(make_trainer, LayerwiseNC1(), logger=logger)
    assert [given[2] for given in logger.given] == ["layerwise_nc1/history.csv", "layerwise_nc1/nc1_step_5.png"]
