"""``nc-finetune predict MODEL FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nc_finetune.cli.options import Images, Pixels


def predict(
    model: Path,
    folder: str,
    *,
    image_size: Pixels | None = None,
    trust: bool = False,
    out: Path = Path("predictions.csv"),
    batch_size: Images = 32,
    on_bad_image: Literal["raise", "skip"] = "raise",
) -> int:
    """Write the class and the probability of every class of each image of a folder to a CSV file.

    Of tables, archives or a data set of the hub those images that have no label, or all where each has one.

    Args:
        model: a delta (.safetensors) or a checkpoint (.ckpt)
        folder: images, in any depth; or tables, archives, a table of labels, an id of the hub
        image_size: default: what the model was fine-tuned on
        trust: let the file name classes of other packages, whose code then runs; only for files whose origin you know
        out: file to write, a line an image
        batch_size: images a batch
        on_bad_image: stop at an image that does not decode, or leave it out and name it at the end

    Examples:
        nc-finetune predict delta.safetensors photos --out predictions.csv --on-bad-image skip
    """
    from nc_finetune._common.terminal import say
    from nc_finetune.deployment import predict_folder

    skipped = predict_folder(
        model,
        folder,
        out,
        image_size=image_size,
        batch_size=batch_size,
        trust=trust,
        on_bad_image=on_bad_image,
        progress=True,
    )
    if skipped:
        say(f"Skipped {len(skipped)} images: {', '.join(skipped)}")
    print(f"Predictions: {out}")  # noqa: T201
    return 0
