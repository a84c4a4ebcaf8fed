"""``nc-finetune data labels``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from nc_finetune.cli.options import Images, Pixels

_NAME = ("metavar", "NAME")
_NAMED = 10


def labels(
    source: str,
    *,
    backbone: Annotated[str | None, ("metavar", "NAME[=WEIGHTS]")] = None,
    image_size: Pixels | None = None,
    most: Images | None = None,
    batch_size: Images | None = None,
    image_column: Annotated[str | None, _NAME] = None,
    label_column: Annotated[str | None, _NAME] = None,
    group: Annotated[str | None, _NAME] = None,
    apply: Annotated[Path | None, ("metavar", "CSV")] = None,
    out: Annotated[Path | None, ("metavar", "DIR")] = None,
) -> int:
    """Find labels that are probably wrong, or write the tables of a source with corrected ones.

    One pass through a frozen network, in which nothing is trained: each image of every split is judged by what all
    others teach, or with --group, and of copies of an image, by what those outside of its fold teach. The least
    probable labels come first. The column "corrected" of suspects.csv holds what is
    suggested: write another class there, or nothing where the label is right, and give the table back by --apply. That
    writes new tables; the images and their tables stay as they are.

    Args:
        source: a folder with one folder a class, a table of labels, a short name or a hub id
        backbone: pre-trained network; weights are a tag, a file, package, or null for random ones (default: tf_efficientnet_lite0=package)
        image_size: height and width (default: that of typical images, from 64 to 128)
        most: images in the table, of which the page shows up to 200 (default: 100)
        batch_size: images a step (default: 32)
        image_column: column of the images in a table (default: found)
        label_column: column of the labels in a table (default: found)
        group: column, or pattern of file names, of images that do not judge each other (default: none)
        apply: write tables with the labels of the column "corrected" of this one, in place of looking for wrong ones
        out: new folder of suspects.csv and suspects.html, or of the corrected tables (default: labels, and with --apply corrected)

    Examples:
        nc-finetune data labels photos
        nc-finetune data labels photos --apply labels/suspects.csv --out photos_corrected
    """  # noqa: E501
    given: dict[str, Any] = {"backbone": backbone, "image_size": image_size, "most": most}
    given |= {"batch_size": batch_size, "group": group}
    given = {name: value for name, value in given.items() if value is not None}
    if apply is not None:
        _refuse(given)
        return _apply(source, apply, out or Path("corrected"), image_column, label_column)
    from nc_finetune._common.terminal import open_console
    from nc_finetune.tuning import check_labels

    console = open_console()
    found = check_labels(
        source,
        out or Path("labels"),
        image_column=image_column,
        label_column=label_column,
        tell=lambda line: console.print(line, soft_wrap=True),
        **given,
    )
    for image in found.suspected[:_NAMED]:
        console.print(
            f"  {image.file}, {image.split}: labelled {image.label} ({100 * image.given:.2g} %), looks like"
            f" {image.suggested} ({100 * image.probability:.0f} %)",
            soft_wrap=True,
        )
    table = "Table, to be edited and applied" if found.suspected else "Table, with nothing to correct"
    console.print(f"Page: {found.page}\n{table}: {found.table}", soft_wrap=True)
    return 0


def _refuse(given: dict[str, Any]) -> None:
    if given:
        raise ValueError(
            f"--{next(iter(given)).replace('_', '-')} is for looking for wrong labels, and --apply writes those of a"
            " table; leave one of them out"
        )


def _apply(source: str, table: Path, out: Path, image_column: str | None, label_column: str | None) -> int:
    from nc_finetune.data.corrections import apply_corrections

    done = apply_corrections(source, table, out, image_column=image_column, label_column=label_column)
    print(f"{done.changed:,} of {done.images:,} images have another label in {done.out}")  # noqa: T201
    return 0
