"""``nc-finetune predict MODEL FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from nc_finetune.cli.options import Images, NewFile, Pixels, Share
from nc_finetune.cli.own_inputs import refuse_overwriting

_NAME = ("metavar", "NAME")


def predict(
    model: Path,
    folder: str,
    *,
    image_size: Pixels | None = None,
    trust: bool = False,
    out: NewFile = Path("predictions.csv"),
    batch_size: Images = 32,
    coverage: Share | None = None,
    unlabelled_report: NewFile | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    image_column: Annotated[str | None, _NAME] = None,
    label_column: Annotated[str | None, _NAME] = None,
) -> int:
    """Write class, probabilities and doubts of each image of a folder to a CSV file.

    label, its probability, set (classes that hold the right one as often as --coverage says), unlike (share of the
    training images that lie further out), stranger (yes beyond 95 %), and the probability of every class, headed by its
    name, or "class NAME" where NAME is another column. Classes of a set are divided by |; a | of a name has a
    backslash before it. Models of a fit without KeepStatistics know no doubts: of them prediction, and the
    probabilities.

    Of tables, archives or a data set of the hub those images that have no label, or all where each has one.

    Args:
        model: a delta (.safetensors), a checkpoint (.ckpt), a folder of nc-finetune tune, or hub:user/name, extra hub
        folder: images, in any depth; or tables, archives, a table of labels, an id of the hub
        image_size: default: what the model was fine-tuned on
        trust: let the file name classes of other packages, whose code then runs; only for files whose origin you know
        out: file to write, a line an image
        batch_size: images a batch
        coverage: how often the set is to hold the right class; default: 0.9, where the model knows sets
        unlabelled_report: HTML page to write, of the strangest images and those of which the model is least sure
        on_bad_image: stop at an image that does not decode, or leave it out and name it at the end
        image_column: column of the images in a table (default: found)
        label_column: column of the labels in a table, by which images without one are told (default: found)

    Examples:
        nc-finetune predict delta.safetensors photos --out predictions.csv --on-bad-image skip
        nc-finetune predict tuned/model.safetensors photos --coverage 0.95 --unlabelled-report page.html
        nc-finetune predict tuned new.csv --image-column photo
    """
    from nc_finetune._common.atomic_files import write_text_atomically
    from nc_finetune._common.quiet import quietly
    from nc_finetune._common.terminal import say
    from nc_finetune.deployment import predict_images
    from nc_finetune.doubt.state import NO_STATISTICS
    from nc_finetune.report import check_report_extra
    from nc_finetune.report.unlabelled_page import describe_predictions, render_unlabelled_page

    refuse_overwriting([out, unlabelled_report], model, folder)
    if unlabelled_report is not None:
        check_report_extra()
        if unlabelled_report.resolve() == out.resolve():
            raise ValueError(f"the page would take the place of the table, both are {out}; give one another name")
    with quietly() as notes:
        found = predict_images(
            model,
            folder,
            out,
            image_size=image_size,
            batch_size=batch_size,
            coverage=coverage,
            trust=trust,
            on_bad_image=on_bad_image,
            progress=True,
            need_doubts=unlabelled_report is not None,
            image_column=image_column,
            label_column=label_column,
        )
    for note in notes:
        say(f"note: {note}")
    if found.skipped:
        say(f"Skipped {len(found.skipped)} images: {', '.join(found.skipped)}")
    if not found.knows_doubts and not found.multilabel:
        say(f"No sets, and no word on strangers: {NO_STATISTICS}")
    elif found.knows_doubts and any(one.in_set is None for one in found.predictions):
        say("No sets: the fit of the model had no images that it was not trained on")
    if found.knows_doubts and any(one.stranger is None for one in found.predictions):
        say("No word on strangers: the model keeps no distances, for which its fit had too few images a class")
    if unlabelled_report is not None:
        page = describe_predictions(found, f"What {model.name} says of {folder}")
        write_text_atomically(unlabelled_report, render_unlabelled_page(page))
        print(f"Page: {unlabelled_report}")  # noqa: T201
    print(f"Predictions: {out}")  # noqa: T201
    return 0
