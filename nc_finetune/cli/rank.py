"""``nc-finetune rank``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from nc_finetune.cli.options import Images, NewFile, NonNegativeInt, Pixels
from nc_finetune.cli.own_inputs import refuse_overwriting


def rank(
    source: str,
    *,
    image_size: Pixels = 224,
    samples_per_class: Images | None = None,
    batch_size: Images = 32,
    seed: NonNegativeInt = 0,
    backbones: Annotated[list[str], ("metavar", "NAME[=WEIGHTS]")],
    by: str = "probe_accuracy",
    max_images: Images = 5000,
    results: Annotated[list[Path] | None, ("nargs", "*"), ("metavar", "DIR")] = None,
    out: NewFile = Path("rank.csv"),
) -> int:
    """Score many pre-trained backbones on some data by forward passes.

    Nothing is trained but a quick probe on features. With --results of benchmarks on the same data, the rank
    correlation of each score with measured fine-tuning is printed: how far to trust it.

    Args:
        source: folder of images, id of the hub, or sklearn:digits
        image_size: height and width
        samples_per_class: training images of each class (default: all there are)
        batch_size: images a batch
        seed: which images are taken
        backbones: what to score; weights as for a recipe: a tag, a file, package, or null for random ones
        by: measure to sort by: probe_accuracy, readout_accuracy, ncc_accuracy, nc1, vci, cdnv, h_score, logme
        max_images: images of each split, with at least two of every class
        results: benchmarks on the same data to compare with
        out: file to write, a line a backbone

    Examples:
        nc-finetune rank photos --backbones resnet50 vit_base_patch32_224 --image-size 224
        nc-finetune rank sklearn:digits --backbones tf_efficientnet_lite0=package tf_efficientnet_lite1=package --by logme
    """  # noqa: E501
    from nc_finetune._common.atomic_files import write_text_atomically
    from nc_finetune._common.terminal import open_console, say, shown_steps
    from nc_finetune.data import ImageData
    from nc_finetune.errors import check_name
    from nc_finetune.report import best_by_network
    from nc_finetune.results.merging import merge_results
    from nc_finetune.selection import backbone_scores, presentation

    refuse_overwriting([out], source, *(word.partition("=")[2] or None for word in backbones))
    check_name("measure", by, backbone_scores.MEASURES)
    runs, problems = merge_results(results) if results else ([], [])
    for problem in problems:
        say(f"note: {problem}")
    measured = best_by_network(runs)
    images = ImageData(
        source, image_size=image_size, samples_per_class=samples_per_class, batch_size=batch_size, seed=seed
    )
    console = open_console()
    scores = []
    with shown_steps("backbones", len(backbones)) as steps:
        for name, equals, weights in (word.partition("=") for word in backbones):
            tag = None if weights == "null" else (weights if equals else "default")
            scores.append(backbone_scores.score_backbone(name, tag, images, max_images))
            steps.finish(len(scores), f"{name}: {scores[-1].error or 'scored'}")
    scores = backbone_scores.ranked(scores, by)
    write_text_atomically(out, presentation.rank_csv(scores))
    console.print(presentation.rank_table(scores))
    failed = [found for found in scores if found.error]
    for found in failed:
        console.print(f"{found.name}: {found.error}", style="red", soft_wrap=True)
    if measured:
        console.print("Rank correlation with measured fine-tuning:", backbone_scores.correlations(scores, measured))
    console.print(f"Scores: {out}", soft_wrap=True)
    return int(bool(failed))
