"""``nc-finetune data check``, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from nc_finetune.cli.options import Images, NewFile, NonNegativeInt
from nc_finetune.cli.own_inputs import refuse_overwriting

if TYPE_CHECKING:
    from rich.console import Console

    from nc_finetune.data import DataReport

_SHOWN = 20
_NAME = ("metavar", "NAME")


def check(
    source: str,
    *,
    image_column: Annotated[str | None, _NAME] = None,
    label_column: Annotated[str | None, _NAME] = None,
    group: Annotated[str | None, _NAME] = None,
    min_per_class: Images = 5,
    workers: Annotated[NonNegativeInt, ("metavar", "N")] = 0,
    out: Annotated[NewFile | None, ("metavar", "FILE")] = None,
) -> int:
    """Decode every image; count classes, sizes and modes; find broken, doubled and rare ones.

    Splits are those that the source brings along; of a source without any, all images are in train. Exit status 1 where
    images do not decode, have two labels, images or groups are in two splits, or classes are too rare.

    Args:
        source: a folder, a table of labels, a short name or a hub id
        image_column: column of the images in a table (default: found)
        label_column: column of the labels in a table (default: found)
        group: column of the groups, or pattern of file names: groups may not be in two splits (default: none)
        min_per_class: a class with fewer is rare
        workers: processes that decode (default: 0, this one alone)
        out: write everything that was found as JSON, too

    Examples:
        nc-finetune data check photos
        nc-finetune data check labels.csv --image-column file --label-column breed --out check.json
    """
    import json

    from nc_finetune._common.atomic_files import write_text_atomically
    from nc_finetune._common.quiet import quietly
    from nc_finetune._common.terminal import open_console, say
    from nc_finetune.data import check_data
    from nc_finetune.data.check import undivided

    refuse_overwriting([out], source)
    with quietly() as notes:
        data = undivided(source, image_column=image_column, label_column=label_column, group=group)
        report = check_data(data, min_per_class=min_per_class, num_workers=workers)
    for note in notes:
        if not report.left_out_text or report.left_out_text not in note:  # which the report says
            say(f"note: {note}")
    if out is not None:
        write_text_atomically(out, json.dumps(report.to_json(), indent=2) + "\n")
    print_data_report(report, open_console())
    return int(bool(report.faults))


def print_data_report(report: DataReport, console: Console) -> None:
    """Print counts, sizes and modes, and then every fault with its first examples."""
    from rich.text import Text

    from nc_finetune._common.terminal import as_text, name_table

    table = name_table(["split", "smallest class", "largest class"], ["images", "classes"], title=report.source)
    for split, number in report.images.items():
        if not number:
            continue
        counts = report.class_counts[split]
        named = [(count, name) for count, name in zip(counts, report.class_names, strict=True) if count]
        ends = [f"{count} ({name})" for count, name in (min(named), max(named))] if named else ["-", "-"]
        table.add_row(*as_text([split, *ends, f"{number:,}", str(len(named))]))
    console.print(table)
    faults = [Text(fault, "red") for fault in report.faults] or [Text("no faults", "green")]
    lines = [*map(Text, _remarks(report)), *faults, *map(Text, _examples(report))]
    console.print(*lines, sep="\n", soft_wrap=True)


def _remarks(report: DataReport) -> Iterator[str]:
    """Say what is no fault, and should be known."""
    yield f"{len(report.class_names)} classes, {'several labels' if report.multi_label else 'one label'} an image"
    sizes = " x ".join(f"{low}-{high} (median {middle})" for low, middle, high in (report.widths, report.heights))
    yield f"pixels: {sizes}; {report.small:,} images have a side below 32"
    yield f"modes: {', '.join(f'{mode} {number:,}' for mode, number in report.modes.items())}"
    if report.left_out_text and report.left_out_text not in report.faults:
        yield report.left_out_text
    for split, names in report.absent_classes.items():
        yield f"no image in {split}: {', '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}"
    if report.unlabelled:
        yield f"{report.unlabelled:,} images have no label: they are in no split, and for predicting"
    if copies := len(report.copies) - len(report.torn):
        yield f"{copies:,} images are copies of another one of their split and class"
    if report.groups is not None:
        yield f"{report.groups:,} groups"


def _examples(report: DataReport) -> Iterator[str]:
    """Name the first of each kind of fault."""
    for found in (
        report.broken,
        report.duplicates,
        report.torn,
        [f"{name}: {number}" for name, number in report.rare_classes.items()],
        [f"{name}: {' and '.join(splits)}" for name, splits in report.shared_groups.items()],
    ):
        yield from (f"  {one}" for one in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield f"  and {len(found) - _SHOWN} more; --out FILE lists all"
