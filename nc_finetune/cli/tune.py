"""``nc-finetune tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from nc_finetune.cli.options import Images, NonNegativeFloat, NonNegativeInt, Pixels, PositiveFloat, check_executor

_NAME = ("metavar", "NAME")


def tune(
    source: str,
    *,
    out: Path = Path("tuned"),
    backbones: Annotated[list[str] | None, ("metavar", "NAME[=WEIGHTS]")] = None,
    minutes: PositiveFloat | None = None,
    test: Annotated[str | None, ("metavar", "SIZE_OR_SOURCE")] = None,
    image_size: Pixels | None = None,
    batch_size: Images = 32,
    seed: NonNegativeInt = 0,
    image_column: Annotated[str | None, _NAME] = None,
    label_column: Annotated[str | None, _NAME] = None,
    group: Annotated[str | None, _NAME] = None,
    force: bool = False,
    executor: Literal["serial", "ray"] = "serial",
    ray_address: Annotated[str | None, ("metavar", "HOST:PORT")] = None,
    cpus: PositiveFloat = 1,
    gpus: NonNegativeFloat = 0,
    push_to_hub: Annotated[str | None, ("metavar", "USER/NAME")] = None,
) -> int:
    """Turn labelled images into a classifier, the best one that there is in the time; no label is wasted.

    After one forward pass there is an answer, which is saved at once. Then larger images and ways to tune the network
    are tried, each judged on folds of the training images, and the best is fitted to all of them. The test split, if
    there is one, is touched once. Interrupted, the same command goes on where it was.

    Args:
        source: a folder with one folder a class, a table of labels, sklearn:digits, or a hub id
        out: folder of model.safetensors, report.html, facts.json, and predictions.csv of images without a label
        backbones: pre-trained networks to choose from; weights are a tag, a file, package, or null for random ones (default: tf_efficientnet_lite0=package)
        minutes: how long it may take (default: as long as 15 epochs of full fine-tuning, 10 at most)
        test: share or number of images to hold out, or another source of the same classes (default: the test split of the source, if there is one)
        image_size: height and width (default: several are tried)
        batch_size: images a step
        seed: one seed, one result, as far as time does not decide
        image_column: column of the images in a table (default: found)
        label_column: column of the labels in a table (default: found)
        group: column, or pattern of file names, of images that belong together (default: none)
        force: go on where images would spoil the model or its test
        executor: candidates one after the other in this process, or as tasks of Ray, extra ray
        ray_address: an existing Ray cluster (default: start one on this machine)
        cpus: CPUs that a candidate reserves with --executor ray
        gpus: GPUs that a candidate reserves with --executor ray, e.g. 0.5 for two a GPU
        push_to_hub: private repository of the Hugging Face hub to make for the model, extra hub (default: none)

    Examples:
        nc-finetune tune photos
        nc-finetune tune photos --minutes 30 --test 0.2 --backbones resnet50 tf_efficientnet_lite0=package
    """  # noqa: E501
    from nc_finetune._common.terminal import open_console
    from nc_finetune.run.ray_tasks import RayTasks
    from nc_finetune.tuning import DEFAULT_BACKBONE
    from nc_finetune.tuning import tune as run

    check_executor(executor, ray_address, cpus, gpus)
    console = open_console()
    run(
        source,
        out,
        backbones=backbones or [DEFAULT_BACKBONE],
        minutes=minutes,
        test=test,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        image_column=image_column,
        label_column=label_column,
        group=group,
        force=force,
        executor=None if executor == "serial" else RayTasks(ray_address, cpus=cpus, gpus=gpus),
        push_to_hub=push_to_hub,
        tell=lambda line: console.print(line, soft_wrap=True),
    )
    return 0
