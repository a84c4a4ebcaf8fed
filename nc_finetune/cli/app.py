"""The command ``nc-finetune``: which command is meant, errors in words, signals, exit status."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

from nc_finetune._common.stopping import ToldToEnd, told_to_end
from nc_finetune.cli.benchmark import benchmark
from nc_finetune.cli.data import check
from nc_finetune.cli.export import export
from nc_finetune.cli.labels import labels
from nc_finetune.cli.options import CommandParser, add_command
from nc_finetune.cli.predict import predict
from nc_finetune.cli.profile import profile
from nc_finetune.cli.push import push
from nc_finetune.cli.rank import rank
from nc_finetune.cli.recipes import is_recipe, recipes
from nc_finetune.cli.report import report
from nc_finetune.cli.tune import tune

_TRAINER_COMMANDS = {
    "fit": "fine-tune a model by a recipe",
    "validate": "measure accuracy on the validation split",
    "test": "measure accuracy on the test split",
    "predict": "write class probabilities to a CSV file: of a recipe's test split, or MODEL FOLDER",
}
_MODEL_FILES = (".safetensors", ".ckpt")
_RECIPE_FILES = (".yaml", ".yml", ".json", "")
_FLAGS = ("--trust", "--help", "-h", "--")  # any other option of `predict` has a word after it
_EPILOG = """\
examples:
  nc-finetune tune photos                                 from a folder of images to a model, with a report
  nc-finetune benchmark quickstart                        four methods on real digits, with a report
  nc-finetune fit digits/efficientnet_lite0_scl_ft        one recipe; any key can follow: --trainer.max_epochs 3
  nc-finetune fit backbones/resnet50 datasets/dtd methods/scl_ft     a recipe of three parts
  nc-finetune profile tf_efficientnet_lite0 photos --weights package     which block to tune
  nc-finetune rank photos --backbones resnet50 vit_base_patch32_224      which backbone to take
  nc-finetune recipes                                     what there is; --copy NAME takes one home
  nc-finetune data check photos                           counts, classes, broken and doubled images
  nc-finetune data labels photos                          labels that are probably wrong, worst first
  nc-finetune predict delta.safetensors photos --out predictions.csv   class names and probabilities of a folder
  nc-finetune export delta.safetensors --to onnx --out model.onnx      for other programs
  nc-finetune push tuned user/flowers                     share it on the Hugging Face hub, with a card
  nc-finetune fit --help                                  every key of a recipe

names, for recipes (--model.method nc_finetune.methods.LinearProbe) and grids ({method: LinearProbe}):
  methods   ZeroShot LinearProbe SkipProbe LayerFinetuning SkipConnectionFinetuning SideFinetuning FullFinetuning
            ProbeFirst BiasTuning NormTuning AdapterTuning LayerReadout Control
  heads     torch.nn.Linear CosineHead SimplexETFHead OrthogonalFrameHead BottleneckHead DiscriminantHead
            MeanHead ZeroShotHead
  losses    torch.nn.CrossEntropyLoss FocalLoss RescaledMSELoss DotRegressionLoss PickAllLabelsLoss
            ClassBalanced
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run ``nc-finetune``.

    Args:
        args: The words after the command's name; ``None`` takes those of the process.

    Returns:
        The exit status: 0; 1 if a run of a benchmark failed, data have faults, or training could not go on; 2 for input
        that cannot be used, or had, as from a hub out of reach; 130 and 143 after Ctrl-C and SIGTERM, of a fit with a
        checkpoint.
    """
    try:
        with told_to_end(), _data_in_words():
            return _run(list(sys.argv[1:] if args is None else args))
    except ToldToEnd as reason:
        if args is None:  # the process ends: a second SIGTERM changes nothing
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _report_stop(reason)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError, UnpicklingError) as error:
        return _report_error(error)


@contextmanager
def _data_in_words() -> Iterator[None]:
    """Say what is to be known of the data without the place in the code that Python adds."""
    from nc_finetune.errors import DataWarning

    with warnings.catch_warnings():
        show = warnings.showwarning

        def in_words(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                print(f"note: {message}", file=sys.stderr)  # noqa: T201
            else:
                show(message, category, *where, **more)

        warnings.showwarning = in_words
        yield


def _run(words: Sequence[str]) -> int:
    if words and words[0] in _TRAINER_COMMANDS and not (words[0] == "predict" and _predicts_by_a_model(words[1:])):
        from nc_finetune.cli.trainer import run_trainer

        return run_trainer(words[0], words[1:])
    options = vars(_parser().parse_args(words))
    return int(options.pop("run")(**options))


def _predicts_by_a_model(words: Sequence[str]) -> bool:
    """Tell `predict MODEL FOLDER`, which is a command of its own, from `predict RECIPE`, which is one of Lightning's.

    Raises:
        FileNotFoundError: If it is of a folder or a file, and there is nothing to predict by.
    """
    places = [
        word
        for before, word in zip(["--", *words], words, strict=False)
        if word[:1] != "-" and (before[:1] != "-" or before in _FLAGS or "=" in before)
    ]
    if not places or _names_a_model(places[0]):
        return bool(places)
    if is_recipe(places[0]) or not any(map(_names_a_model, places[1:])):
        return False
    if not Path(places[0]).is_file():
        raise FileNotFoundError(
            f"there is no model or recipe at {places[0]}: give the folder that nc-finetune tune wrote, its"
            " model.safetensors, a .ckpt, or hub:user/name; nc-finetune recipes lists what there is without a model"
        )
    return True


def _names_a_model(word: str) -> bool:
    """Tell a model, or what is taken for one by mistake, from a recipe and an option."""
    path = Path(word)
    if path.suffix in _MODEL_FILES or word.startswith("hub:"):
        return True
    if word and path.is_dir():
        return not is_recipe(word)
    return path.is_file() and path.suffix not in _RECIPE_FILES


def _parser() -> CommandParser:
    """Build the parser of every command but Lightning's own, which it lists."""
    parser = CommandParser(
        prog="nc-finetune",
        description="Fine-tune a pre-trained image backbone by changing as little of it as possible.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,  # no argument of a command
        help="print the versions of this and of what it rests on",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in _TRAINER_COMMANDS.items():
        commands.add_parser(name, help=purpose, function=predict if name == "predict" else None)
    for function in (tune, benchmark, report, profile, rank, recipes, export, push):
        add_command(commands, function)
    data = commands.add_parser("data", help="look at a source of images before training on it")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    add_command(actions, check)
    add_command(actions, labels)
    return parser


class _Version(argparse.Action):
    """Print what a report of a fault should say; torch is not imported."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        packages = ("nc-finetune", "torch", "lightning", "timm", "open_clip_torch")
        found = [f"{name} {version(name)}" for name in packages]
        print("\n".join([*found, f"python {platform.python_version()}"]))  # noqa: T201
        parser.exit()


def _report_stop(reason: ToldToEnd) -> int:
    """Say what stopped the command, or of two signals what the first has led to; return the exit status."""
    from nc_finetune.errors import TrainingStoppedError

    cause = reason.__context__
    while cause is not None and not isinstance(cause, TrainingStoppedError):
        cause = cause.__context__
    print(f"nc-finetune: {cause or f'{reason}; {reason.advice}'}", file=sys.stderr)  # noqa: T201
    return 128 + reason.signal


def _report_error(error: Exception) -> int:
    """Print what went wrong, without a traceback where that would tell nothing more; return the exit status."""
    from nc_finetune._common.explain import explain
    from nc_finetune.errors import TrainingStoppedError, UnavailableError

    message = explain(error)
    if isinstance(error, UnpicklingError):
        message = "the checkpoint holds more than tensors and plain values; it was not unpickled, which could run code"
    expected = isinstance(error, TrainingStoppedError | UnavailableError)
    if message is None and isinstance(error, RuntimeError) and not expected:
        raise error
    print(f"nc-finetune: {message or error}", file=sys.stderr)  # noqa: T201
    signum = getattr(error, "signal", None)
    if signum is not None:
        return 128 + int(signum)
    if isinstance(error, UnavailableError):
        return 2
    return 1 if isinstance(error, (RuntimeError, MemoryError)) else 2
