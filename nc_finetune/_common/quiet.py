"""Fits among many: without what Lightning says of each, and with what is said about the data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nc_finetune.errors import DataWarning


@contextmanager
def quietly() -> Iterator[dict[str, None]]:
    """Keep Lightning's advice for single runs out of the progress of many; collect what is said about the data.

    Example:
        >>> with quietly() as notes:
        ...     warnings.warn("two images are the same", DataWarning)
        >>> list(notes)
        ['two images are the same']
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.simplefilter("always", DataWarning)  # whoever calls ImageData, it is not advice
            show, notes = warnings.showwarning, dict[str, None]()

            def note(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
                if issubclass(category, DataWarning):
                    notes[str(message)] = None
                else:
                    show(message, category, *where, **more)

            warnings.showwarning = note
            yield notes
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
