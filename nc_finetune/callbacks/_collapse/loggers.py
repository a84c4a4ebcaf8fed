"""How figures and tables get to whatever logger there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from nc_finetune.callbacks._collapse.history import Row, history_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Ways(NamedTuple):
    """How a logger takes things: itself, their name, the thing, the step."""

    figure: Callable[[Any, str, Any, int], None]
    table: Callable[[Any, str, Sequence[Row], int], None]


def _figure_to_tensorboard(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.experiment.add_figure(name, figure, global_step=step)


def _table_to_tensorboard(logger: Any, name: str, rows: Sequence[Row], step: int) -> None:
    columns, cells = _cells(rows)
    lines = [columns, ["---"] * len(columns), *([_short(cell) for cell in line] for line in cells)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    logger.experiment.add_text(name, text, global_step=step)


def _figure_to_wandb(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.log_image(key=name, images=[figure], step=step)


def _table_to_wandb(logger: Any, name: str, rows: Sequence[Row], step: int) -> None:
    columns, cells = _cells(rows)
    logger.log_table(key=name, columns=columns, data=cells, step=step)


def _figure_to_mlflow(logger: Any, name: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(logger.run_id, figure, f"{name}_step_{step}.png")


def _table_to_mlflow(logger: Any, name: str, rows: Sequence[Row], step: int) -> None:
    logger.experiment.log_text(logger.run_id, history_csv(rows), f"{name}.csv")


# Lightning's interface of loggers has neither figures nor tables: each of these has a way of its own.
_WAYS: dict[type[Logger], _Ways] = {
    TensorBoardLogger: _Ways(_figure_to_tensorboard, _table_to_tensorboard),
    WandbLogger: _Ways(_figure_to_wandb, _table_to_wandb),
    MLFlowLogger: _Ways(_figure_to_mlflow, _table_to_mlflow),
}


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[float | None]]]:
    """Return columns, and their values row by row, nothing where a row has none."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[row.get(key) for key in columns] for row in rows]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def rich_loggers(loggers: Iterable[Logger]) -> list[Logger]:
    """Return the loggers that take figures and tables: TensorBoard, W&B and MLflow.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> rich_loggers([CSVLogger("logs")])
        []
    """
    return [logger for logger in loggers if isinstance(logger, tuple(_WAYS))]


def log_figure(loggers: Iterable[Logger], name: str, figure: Figure, step: int) -> None:
    """Hand a figure to every logger that takes figures (:func:`rich_loggers`); others get nothing.

    Args:
        loggers: Those of a trainer.
        name: The figure's name; the same each time, so that a logger can show how it changed.
        figure: A figure of matplotlib.
        step: The trainer's global step.
    """
    for logger, ways in _with_ways(loggers):
        ways.figure(logger, name, figure, step)


def log_table(loggers: Iterable[Logger], name: str, rows: Sequence[Row], step: int) -> None:
    """Hand a history to every logger that takes tables: as a table, as text, or as a CSV file.

    Args:
        loggers: Those of a trainer.
        name: The table's name.
        rows: The rows of a callback.
        step: The trainer's global step.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> log_table([CSVLogger("logs")], "nc1", [{"epoch": 0, "step": 5, "nc1/stem": 2.0}], 5)
    """
    for logger, ways in _with_ways(loggers):
        ways.table(logger, name, rows, step)


def _with_ways(loggers: Iterable[Logger]) -> list[tuple[Logger, _Ways]]:
    return [(logger, ways) for logger in loggers for kind, ways in _WAYS.items() if isinstance(logger, kind)]


def log_folder(loggers: Sequence[Logger]) -> Path | None:
    """Return the folder of the first logger that has one: where its own files, or Lightning's checkpoints, go.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> log_folder([CSVLogger("logs", name="runs", version=3)]).as_posix()
        'logs/runs/version_3'
    """
    for logger in loggers:
        if logger.log_dir is not None:
            return Path(logger.log_dir)
        if logger.save_dir is not None:
            version = logger.version
            number = version if isinstance(version, str) else f"version_{version}"
            return Path(logger.save_dir, str(logger.name), number)
    return None
