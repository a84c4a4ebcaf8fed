"""How far the probabilities of a run are from shares of right answers, before and after one temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from nc_finetune.callbacks import ReadoutSolver, SolveHead
from nc_finetune.functional import temperature
from nc_finetune.metrics import calibration_error
from nc_finetune.run._cell.recording import HeadWatcher

Judged = tuple[Tensor, Tensor]


class Calibration(NamedTuple):
    """What a result says of it, errors in per cent."""

    error: float | None = None
    tempered_error: float | None = None
    temperature: float | None = None


class HeadLogits(HeadWatcher):
    """Keep logits and labels of the last validation and of the test, on the CPU."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Judged]] = {}
        self._loop = ""

    def of(self, loop: str) -> Judged | None:
        """Return logits ``(N, K)`` and labels ``(N,)`` of the last ``"validation"`` or ``"test"``, if there was one."""
        parts = self._seen.get(loop)
        return (torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])) if parts else None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from nothing."""
        self._begin(pl_module, "validation")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from nothing."""
        self._begin(pl_module, "test")

    def _begin(self, pl_module: L.LightningModule, loop: str) -> None:
        self._watch(pl_module)
        self._loop, self._seen[loop] = loop, []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch."""
        self._seen[self._loop].append((self._logits.float().cpu(), batch[1].cpu()))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the head alone."""
        self._handle.remove()

    on_test_end = on_validation_end


def found_temperature(judged: Judged | None, callbacks: Sequence[L.Callback]) -> tuple[float | None, float]:
    """Find the temperature of a model that was fitted, from images that it was not fitted to.

    Args:
        judged: What such images came to, of the validation split or of folds; ``None`` where there are none.
        callbacks: Of the fit: a head that was solved has its temperature already.

    Returns:
        What to divide logits by, ``None`` where nothing says; and by what they have been divided already.
    """
    for part in callbacks:
        if isinstance(part, SolveHead) and part.taken in ("solved", "mean"):
            score = part.scores.get(part.taken)
            return (None, 1.0) if score is None else (1.0, score.temperature)
        if isinstance(part, ReadoutSolver) and part.solved is not None and part.leaves_its_head:
            return 1.0, part.solved.temperature
    if judged is None or not judged[0].isfinite().all(1).any():
        return None, 1.0
    return temperature(*judged).item(), 1.0


def calibrated(judged: Judged | None, found: float | None, done: float) -> Calibration:
    """Say what a result says of calibration.

    Args:
        judged: Logits and labels of the test split; ``None`` where there are none.
        found: What to divide them by, as :func:`found_temperature` says.
        done: By what they have been divided already.
    """
    if judged is None:
        return Calibration()
    before = 100 * calibration_error(*judged, temperature=1 / done)
    if found is None:
        return Calibration(before)
    return Calibration(before, 100 * calibration_error(*judged, temperature=found), found * done)
