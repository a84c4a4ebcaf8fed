"""What Lightning warns of, and is meant."""

from __future__ import annotations

import warnings
from typing import Any

_FROZEN_PARTS = r"Found \d+ module\(s\) in eval mode"
_NO_OPTIMIZER = "`LightningModule.configure_optimizers` returned `None`"


class ExpectedWarnings:
    """Leaves warnings out that Lightning gives before training starts: of frozen parts, and of no optimizer."""

    def __init__(self) -> None:
        self._filters: list[Any] = []

    def expect(self, has_optimizer: bool) -> None:
        """Leave them out until :meth:`forget`."""
        for message in (_FROZEN_PARTS,) if has_optimizer else (_FROZEN_PARTS, _NO_OPTIMIZER):
            warnings.filterwarnings("ignore", message=message)
            self._filters.append(warnings.filters[0])

    def forget(self) -> None:
        """Let Lightning warn again."""
        for entry in self._filters:
            if entry in warnings.filters:
                warnings.filters.remove(entry)  # type: ignore[attr-defined]
        self._filters.clear()
