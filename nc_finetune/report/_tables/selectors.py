"""How well rules for the key layer did, where every block was tried, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from nc_finetune.report._tables.groups import group_of
from nc_finetune.report._tables.tables import NOTHING, Entry, Table, number
from nc_finetune.report._tables.variants import variant_of
from nc_finetune.results.result import Result

TRIALS = "short trials"
BRUTE_FORCE = "brute force"


def _key(run: Result) -> tuple[object, ...]:
    """What runs share that differ in the key layer alone."""
    return group_of(run), replace(variant_of(run), key_layer=None), run.seed


def selector_regrets(runs: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """Compare what rules chose with the best of all blocks.

    A task is a data set, backbone, training size, method and seed of which one run chose its key layer by trials, and
    others, one a block, tell what each choice would have come to. Brute force takes the block with the best
    validation accuracy, for which every block has to be tuned; its regret is what choosing on validation costs.

    Args:
        runs: Finished runs, as :func:`~nc_finetune.report._tables.summary.finished_runs` gives them.

    Returns:
        By rule ``"regret"`` (points of test accuracy below the best block of the task) and ``"cost"`` (time of the
        choice in whole runs of the chosen block with one learning rate), a value a task.
    """
    by_task: dict[tuple[object, ...], dict[str, Result]] = {}
    for run in runs:
        if not run.selection and run.key_layer and run.accuracy is not None:
            by_task.setdefault(_key(run), {})[run.key_layer] = run
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        blocks = by_task.get(_key(run), {})
        if run.selection and len(blocks) > 1:
            _add_task(found, run, blocks)
    return found


def _add_task(found: dict[str, dict[str, list[float]]], run: Result, blocks: dict[str, Result]) -> None:
    best = max(other.accuracy or 0.0 for other in blocks.values())
    on_validation = max(blocks, key=lambda block: blocks[block].val_accuracy or 0.0)
    choices = {TRIALS: run.selection["block"], **run.selection["other_rules"], BRUTE_FORCE: on_validation}
    costs = {TRIALS: _cost_of_trials(run, blocks), BRUTE_FORCE: float(len(blocks))}
    for rule, block in choices.items():
        entry = found.setdefault(rule, {"regret": [], "cost": []})
        if block in blocks:
            entry["regret"].append(best - (blocks[block].accuracy or 0.0))
            if (cost := costs.get(rule)) is not None:
                entry["cost"].append(cost)


def _cost_of_trials(run: Result, blocks: Mapping[str, Result]) -> float | None:
    chosen = blocks.get(run.selection["block"])
    if chosen is None or not chosen.run_seconds:
        return None
    fits = max(len(chosen.learning_rates), 1)
    if chosen.choice.get("by") == "folds":
        fits = fits * int(chosen.choice["folds"]) + 1
    return float(run.selection["seconds"]) * fits / chosen.run_seconds


def selector_table(runs: Sequence[Result]) -> Table:
    """Tabulate the regrets of rules for the key layer, the smallest mean first.

    Returns:
        The table; empty where no task has both a choice by trials and a run of every block.
    """
    found = {rule: values for rule, values in selector_regrets(runs).items() if values["regret"]}
    means = {rule: fmean(values["regret"]) for rule, values in found.items()}
    others = [mean for rule, mean in means.items() if rule != BRUTE_FORCE]
    rows = []
    for rule in sorted(found, key=means.__getitem__):
        regret, cost = found[rule]["regret"], found[rule]["cost"]
        rows.append(
            (
                Entry(rule),
                Entry(f"{means[rule]:.2f}", rule != BRUTE_FORCE and means[rule] == min(others), means[rule]),
                number(max(regret)),
                Entry(f"{fmean(cost):.2f}" if cost else NOTHING),
                Entry(str(len(regret))),
            )
        )
    return Table(("rule", "mean regret", "largest regret", "cost in fine-tunings", "tasks"), tuple(rows))
