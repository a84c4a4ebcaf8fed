"""The command that looks for wrong labels of some images, or mends them."""

from __future__ import annotations

from shlex import quote

from nc_finetune.data import ImageData


def label_command(data: ImageData, **options: object) -> str:
    """Return the command by which the same images are looked at.

    Args:
        data: The images; source and columns are taken from them.
        options: Further options of ``nc-finetune data labels``; those that are ``None`` are left out.

    Example:
        >>> label_command(ImageData("my photos", label_column="kind"), image_size=96, backbone=None)
        "nc-finetune data labels 'my photos' --label-column kind --image-size 96"
    """
    image_column, label_column = data.columns
    given = {"image_column": image_column, "label_column": label_column} | options
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
    words = ["nc-finetune", "data", "labels", data.source, *(word for pair in pairs for word in pair)]
    return " ".join(map(quote, words))
