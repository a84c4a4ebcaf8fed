"""What the runs of a report were trained and tested on: sizes, doubled images, classes without any, what was noted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nc_finetune.report._tables.groups import Group, group_of, grouped, setting_names
from nc_finetune.report._tables.tables import NOTHING, Entry, Table
from nc_finetune.results.result import Result

_SPLITS = ("train", "val", "test")
_MOST_NAMES = 5


def _range(numbers: Iterable[int]) -> Entry:
    """Write the numbers of all seeds."""
    found = sorted(set(numbers))
    if not found:
        return Entry(NOTHING)
    text = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return Entry(text, value=found[-1])


def _names(found: Sequence[str]) -> Entry:
    more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
    return Entry(", ".join(found[:_MOST_NAMES]) + more or NOTHING, value=len(found))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def data_table(runs: Sequence[Result]) -> Table:
    """Tabulate what each setting was trained and tested on, over its seeds.

    Returns:
        The table; empty where no run has recorded it.
    """
    recorded = [run for run in runs if run.split_sizes]
    names = setting_names(map(group_of, runs))
    lines = [_line(names[group], members) for group, members in grouped(recorded, group_of).items()]
    sizes = ("training images", "validation images", "test images")
    return Table(("on", "classes", *sizes, "images in two splits", "classes without a training image"), tuple(lines))


def _line(name: str, runs: Sequence[Result]) -> tuple[Entry, ...]:
    sizes = [_range(run.split_sizes[split] for run in runs if split in run.split_sizes) for split in _SPLITS]
    doubled = _range(run.doubled_images for run in runs if run.doubled_images is not None)
    untrained = _names(_distinct(name for run in runs for name in run.untrained_classes))
    return Entry(name), _range(len(run.class_names) for run in runs), *sizes, doubled, untrained


def notes_table(runs: Sequence[Result]) -> Table:
    """List what was noted of the data, each once a setting, and the first images that are in two splits.

    Returns:
        The table; empty where there is nothing to say.
    """
    names: dict[Group, str] = setting_names(map(group_of, runs))
    found = [(names[group_of(run)], note) for run in runs for note in _notes_of(run)]
    return Table.of_texts(("on", "note"), dict.fromkeys(found))


def _notes_of(run: Result) -> list[str]:
    # Its warning, where it was given, names the rows of one seed: one line for all of them says as much.
    examples = f"images in two splits, e.g. {'; '.join(run.doubled_examples)}" if run.doubled_examples else ""
    return [*run.notes, *([examples] if examples and not run.notes else [])]
