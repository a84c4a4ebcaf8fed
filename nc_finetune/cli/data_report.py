"""Tables of what is in a source of images, for a terminal."""

from __future__ import annotations

from rich.console import Console

from nc_finetune._common.terminal import as_text, name_table
from nc_finetune.data.check import DataReport

_SHOWN = 20


def print_data_report(report: DataReport, console: Console) -> None:
    """Print counts, sizes and modes, and then every fault with its first examples.

    Args:
        report: What was found.
        console: Where to.
    """
    table = name_table(["split", "smallest class", "largest class"], ["images", "classes"], title=report.source)
    for split, number in report.images.items():
        counts = report.class_counts[split]
        named = [(count, name) for count, name in zip(counts, report.class_names, strict=True) if count]
        ends = [f"{count} ({name})" for count, name in (min(named), max(named))] if named else ["-", "-"]
        table.add_row(*as_text([split, *ends, f"{number:,}", str(len(named))]))
    console.print(table)
    kind = "several labels an image" if report.multi_label else "one label an image"
    console.print(f"{len(report.class_names)} classes, {kind}", highlight=False, soft_wrap=True)
    sizes = " x ".join(f"{low}-{high} (median {middle})" for low, middle, high in (report.widths, report.heights))
    console.print(f"pixels: {sizes}; {report.small:,} images have a side below 32", highlight=False, soft_wrap=True)
    modes = ", ".join(f"{mode} {number:,}" for mode, number in report.modes.items())
    console.print(f"modes: {modes}", highlight=False, markup=False, soft_wrap=True)
    if report.left_out_text and report.left_out_text not in report.faults:
        console.print(report.left_out_text, markup=False, highlight=False, soft_wrap=True)
    for line in _remarks(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _print_faults(report, console)


def _remarks(report: DataReport) -> list[str]:
    """Say what is no fault, and should be known."""
    lines = [
        f"no image in {split}: {', '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}"
        for split, names in report.absent_classes.items()
    ]
    if report.unlabelled:
        lines.append(f"{report.unlabelled:,} images have no label: they are in no split, and for predicting")
    if report.groups is not None:
        lines.append(f"{report.groups:,} groups")
    return lines


def _print_faults(report: DataReport, console: Console) -> None:
    if not report.faults:
        console.print("no faults", style="green")
    for line in report.faults:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    parts = (
        report.broken,
        report.duplicates,
        [f"{name}: {number}" for name, number in report.rare_classes.items()],
        [f"{name}: {' and '.join(splits)}" for name, splits in report.shared_groups.items()],
    )
    for found in parts:
        for one in found[:_SHOWN]:
            console.print(f"  {one}", markup=False, highlight=False, soft_wrap=True)
        if len(found) > _SHOWN:
            console.print(f"  and {len(found) - _SHOWN} more; --out FILE lists all", highlight=False, soft_wrap=True)
