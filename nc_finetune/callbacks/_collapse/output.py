"""Where a callback's history goes: CSV, figures, loggers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
from nc_finetune.callbacks._collapse.figures import figure_png
from nc_finetune.callbacks._collapse.history import Row, history_csv, is_by_class, join_histories, read_history
from nc_finetune.callbacks._collapse.loggers import log_figure, log_folder, log_table, rich_loggers


class HistoryOutput:
    """Writes the table after each measurement and the figures at the end, on the first process alone.

    A table that is there already, of an earlier run or process, keeps its rows.

    Args:
        name: Name of the CSV file, without its suffix.
        folder: Where files go; ``None`` is the log folder of the first logger, if there is one.
        figure: Whether figures are drawn.
        strict: Whether a failure to write is raised rather than warned of.
    """

    def __init__(self, name: str, folder: Path | None, figure: bool, strict: bool) -> None:
        self.name = name
        self.folder = folder
        self.figure = figure
        self.strict = strict
        self._warned: set[str] = set()
        self._found: dict[Path, list[Row]] = {}
        self._resumed = False

    def begin_run(self, resumed: bool = False) -> None:
        """Look anew at what is there, and say whether it is what this run goes on from."""
        self._found.clear()
        self._resumed = resumed

    def write_table(self, trainer: L.Trainer, owner: L.Callback, history: Sequence[Row]) -> None:
        """Write the CSV file."""
        folder = self._folder(trainer)
        if folder is not None:
            file = folder / f"{self._stem(trainer, owner)}.csv"
            self._guard(lambda: write_text_atomically(file, history_csv(self._with_rows_of(file, history))))

    def hand_over_table(self, trainer: L.Trainer, owner: L.Callback, history: Sequence[Row]) -> None:
        """Hand the table to the loggers, some of which have no folder of their own; thousands of classes stay out."""
        loggers = rich_loggers(trainer.loggers) if _may_write(trainer) else []
        if loggers:
            rows = [{key: value for key, value in row.items() if not is_by_class(key)} for row in history]
            name, step = f"{self._stem(trainer, owner)}/history", int(history[-1]["step"])
            self._guard(lambda: log_table(loggers, name, rows, step))

    def write_figures(
        self, trainer: L.Trainer, owner: L.Callback, step: int, draw: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Write the figures as PNG and hand them to the loggers."""
        folder = self._folder(trainer)
        loggers = rich_loggers(trainer.loggers) if _may_write(trainer) else []
        if not self.figure or (folder is None and not loggers):
            return

        def write() -> None:
            stem = self._stem(trainer, owner)
            for name, figure in draw().items():
                if folder is not None:
                    write_atomically(folder / f"{stem}_{name.replace('/', '_')}.png", figure_png(figure))
                log_figure(loggers, f"{stem}/{name}", figure, step)

        self._guard(write)

    def _with_rows_of(self, file: Path, history: Sequence[Row]) -> list[Row]:
        if file not in self._found:
            self._found[file] = read_history(file.read_text(encoding="utf-8")) if file.exists() else []
        return join_histories(self._found[file], history, self._resumed)

    def _folder(self, trainer: L.Trainer) -> Path | None:
        return (self.folder or log_folder(trainer.loggers)) if _may_write(trainer) else None

    def _stem(self, trainer: L.Trainer, owner: L.Callback) -> str:
        """Number the files of a second callback of the same kind."""
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        alike = [other for other in callbacks if type(other) is type(owner)]
        number = alike.index(owner) if owner in alike else 0
        return f"{self.name}_{number}" if number else self.name

    def _guard(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # of a disk, a logger or a missing extra: a training must not end for a picture
            if self.strict:
                raise
            if str(error) not in self._warned:
                self._warned.add(str(error))
                warnings.warn(f"{self.name} could not be written: {error}", stacklevel=2)


def _may_write(trainer: L.Trainer) -> bool:
    return trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)
