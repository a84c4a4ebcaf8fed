"""The key layer of a cell, where short trials choose it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from nc_finetune.data import ImageData
from nc_finetune.run.cell import Cell
from nc_finetune.run.specs import HeadSpec, LossSpec
from nc_finetune.selection import KeyLayerChoice, best_device, choose_key_layer, simple_rules


@lru_cache(maxsize=1)
def _choices(data: ImageData) -> dict[str, KeyLayerChoice]:
    """Return what was chosen on a sample, by the run it was chosen for but for its head and loss."""
    return {}


def choose_once(cell: Cell, data: ImageData) -> tuple[KeyLayerChoice, bool]:
    """Choose the key layer of a cell by short trials on its sample, once for all heads and losses.

    Args:
        cell: One whose key layer is ``"auto"``.
        data: Its sample.

    Returns:
        The choice, with what simpler rules would have chosen, and whether it was known already.
    """
    found, name = _choices(data), replace(cell, head=HeadSpec(), loss=LossSpec()).run_id
    known = name in found
    if not known:
        found[name] = _choose_by_trials(cell, data)
    return found[name], known


def _choose_by_trials(cell: Cell, data: ImageData) -> KeyLayerChoice:
    backbone = cell.build_backbone().to(best_device())
    rates = sorted(cell.method.learning_rates)
    choice = choose_key_layer(
        backbone,
        data,
        lambda layer: cell.with_key_layer(layer).build_method(),
        epochs=cell.settings.epochs,
        learning_rate=rates[(len(rates) - 1) // 2],
        head_learning_rate=cell.settings.head_learning_rate,
        seed=cell.seed,
        folds=cell.choice.folds if cell.choice.by_folds else None,
    )
    return replace(choice, other_rules=simple_rules(backbone, data, cell.seed))
