"""The command ``nc-finetune``."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from nc_finetune.benchmark import Grid
    from nc_finetune.benchmark.runner import Executor

TRAINER_COMMANDS = {
    "fit": "fine-tune a model by a recipe",
    "validate": "measure accuracy on the validation split",
    "test": "measure accuracy on the test split",
    "predict": "write class probabilities to a CSV file: of a recipe's test split, or MODEL FOLDER",
}
TRUST = "--trust"
MODEL_FILES = (".safetensors", ".ckpt")
EXPORT_FORMATS = ("state-dict", "program", "onnx")
EPILOG = """\
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
  methods   ZeroShot LinearProbe SkipProbe LayerFinetuning SkipConnectionFinetuning FullFinetuning ProbeFirst
            BiasTuning NormTuning AdapterTuning
  heads     torch.nn.Linear CosineHead SimplexETFHead OrthogonalFrameHead BottleneckHead ZeroShotHead
  losses    torch.nn.CrossEntropyLoss FocalLoss RescaledMSELoss DotRegressionLoss PickAllLabelsLoss
            ClassBalanced
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nc-finetune",
        description="Fine-tune a pre-trained image backbone by changing as little of it as possible.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    benchmark = commands.add_parser("benchmark", help="run a grid of methods and write a report")
    benchmark.add_argument("grid", help="name of a recipe, or path of a YAML file")
    benchmark.add_argument("--out", type=Path, help="folder of results and report (default: runs/<name of the grid>)")
    benchmark.add_argument("--dry-run", action="store_true", help="show the plan and about how long it takes")
    benchmark.add_argument("--retry-failed", action="store_true", help="run what failed or diverged again")
    _add_trust(benchmark)
    benchmark.add_argument("--executor", choices=("serial", "ray"), default="serial", help="where cells run")
    benchmark.add_argument("--ray-address", metavar="HOST:PORT", help="an existing cluster (default: start one here)")
    benchmark.add_argument("--cpus", type=float, default=1, help="of a cell, with --executor ray")
    benchmark.add_argument("--gpus", type=float, default=0, help="of a cell, with --executor ray; shares are allowed")
    report = commands.add_parser("report", help="write one report of the finished runs of one or several benchmarks")
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="what --out of a benchmark was")
    report.add_argument("--out", type=Path, help="where the report goes (default: the first DIR)")
    _add_profile(commands.add_parser("profile", help="measure every block of a backbone, and recommend one to tune"))
    _add_rank(commands.add_parser("rank", help="score many pre-trained backbones on some data by forward passes"))
    recipes = commands.add_parser("recipes", help="list the recipes, or copy one")
    recipes.add_argument("--copy", metavar="NAME", help="the recipe to copy")
    recipes.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")
    _add_data_check(commands.add_parser("data", help="look at a source of images before training on it"))
    _add_export(commands.add_parser("export", help="turn a delta or a checkpoint into a model for other programs"))
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="let the file name classes of other packages")


def _add_profile(profile: argparse.ArgumentParser) -> None:
    profile.add_argument("backbone", help="name of a timm or open_clip network")
    _add_data(profile)
    profile.add_argument("--weights", default="default", help="as for a recipe; default: default")
    profile.add_argument("--method", default="SkipConnectionFinetuning", help="what the block is for")
    profile.add_argument("--epochs", type=int, default=15, help="of the fine-tuning that the block is for")
    profile.add_argument("--learning-rate", type=float, help="of the block (default: the method's)")
    profile.add_argument("--no-trials", dest="trials", action="store_false", help="measure alone, recommend nothing")
    profile.add_argument("--out", type=Path, default=Path("profile"), help="folder of profile.csv and profile.png")


def _add_rank(rank: argparse.ArgumentParser) -> None:
    _add_data(rank)
    rank.add_argument("--backbones", nargs="+", required=True, metavar="NAME[=WEIGHTS]", help="what to score")
    rank.add_argument("--by", default="probe_accuracy", help="measure to sort by: nc1, vci, cdnv, h_score, logme, ...")
    rank.add_argument("--max-images", type=int, default=5000, metavar="N", help="of each split")
    rank.add_argument("--results", type=Path, nargs="*", default=[], metavar="DIR", help="benchmarks to compare with")
    rank.add_argument("--out", type=Path, default=Path("rank.csv"), help="default: rank.csv")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of images, id of the hub, or sklearn:digits")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--samples-per-class", type=int, metavar="N", help="training images (default: all)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images a batch")
    parser.add_argument("--seed", type=int, default=0, help="which images")


def _add_data_check(data: argparse.ArgumentParser) -> None:
    check = data.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser(
        "check", help="decode every image; count classes, sizes and modes; find broken, doubled and rare ones"
    )
    check.add_argument("source", help="a folder, a table of labels, a short name or a hub id")
    check.add_argument("--image-column", metavar="NAME", help="default: found")
    check.add_argument("--label-column", metavar="NAME", help="default: found")
    check.add_argument("--min-per-class", type=int, default=5, metavar="N", help="default: 5")
    check.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode (default: 0)")
    check.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON, too")


def _add_export(export: argparse.ArgumentParser) -> None:
    _add_model(export)
    export.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="timm's own weights, .pt2, or ONNX")
    export.add_argument("--out", required=True, type=Path, help="file to write")
    export.add_argument("--uint8", action="store_true", help="images come as uint8 in 0...255, not as floats in 0...1")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a delta (.safetensors) or a checkpoint (.ckpt)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: what the model was fine-tuned on")
    _add_trust(parser)


def _folder_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nc-finetune predict", description="Class probabilities of a folder.")
    _add_model(parser)
    parser.add_argument("folder", type=Path, help="images, in any depth")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images a batch")
    parser.add_argument("--on-bad-image", choices=("raise", "skip"), default="raise", help="default: raise")
    return parser


def _names_a_model(words: Sequence[str]) -> bool:
    """Tell ``predict MODEL FOLDER`` from ``predict RECIPE``."""
    return words[0] == "predict" and len(words) > 1 and Path(words[1]).suffix in MODEL_FILES


def _with_config(words: Sequence[str]) -> list[str]:
    """Turn recipes that are given by name, before any option, into one ``--config FILE`` each; later ones win."""
    from nc_finetune.recipes import find_recipe

    names = list(takewhile(lambda word: not word.startswith("-"), words))
    return [part for name in names for part in ("--config", str(find_recipe(name)))] + list(words[len(names) :])


def _last_checkpoint(folder: str | None) -> str | None:
    """Return the last checkpoint of a run; a run that has none yet begins."""
    from nc_finetune.callbacks.resumable_run import LAST

    if folder is None:
        raise ValueError("--ckpt_path last needs to know the run: give --run.folder, the same as when it began")
    path = Path(folder) / LAST
    print(f"{'Going on from' if path.is_file() else 'Beginning: there is no'} {path}", file=sys.stderr)  # noqa: T201
    return str(path) if path.is_file() else None


def _trainer_command(command: str, words: Sequence[str]) -> None:
    """Run one of Lightning's subcommands, on a recipe that may name known classes alone unless it is trusted."""
    from nc_finetune.trust import only_known_classes

    with only_known_classes(trust=TRUST in words):
        _run_trainer(command, [word for word in words if word != TRUST])


def _run_trainer(command: str, words: Sequence[str]) -> None:
    """Run it on an ImageClassifier and ImageData."""
    from jsonargparse import ArgumentError
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from nc_finetune.callbacks import PredictionWriter, ResumableRun
    from nc_finetune.classifier import ImageClassifier
    from nc_finetune.data import ImageData
    from nc_finetune.methods import METHOD_NAMES
    from nc_finetune.selection import ChooseKeyLayer
    from nc_finetune.trust import untrusted

    class FinetuneCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            """Take the number of classes from the data, write predictions, and be ready to resume."""
            parser.add_lightning_class_args(PredictionWriter, "predictions")
            parser.add_lightning_class_args(ChooseKeyLayer, "key_layer_choice")
            parser.add_lightning_class_args(ResumableRun, "run")
            parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

        def before_instantiate_classes(self) -> None:
            """Find the last checkpoint of a run, and load none with pickle."""
            config = self.config[command]
            if config.get("ckpt_path") == "last":
                config["ckpt_path"] = _last_checkpoint(config["run"]["folder"])
            if "weights_only" in config and config["weights_only"] is None:
                config["weights_only"] = True

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
            # Lightning refuses callbacks that write checkpoints where none are wanted.
            wanted = config.get("enable_checkpointing") is not False
            return super()._instantiate_trainer(
                config, [callback for callback in callbacks if wanted or not isinstance(callback, ResumableRun)]
            )

    # Lightning expects to read the command line itself; ours names recipes, which it does not know.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    try:
        FinetuneCLI(
            ImageClassifier,
            ImageData,
            args=[command, *_with_config(words)],
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},  # a run that goes on writes it again
            parser_kwargs={"exit_on_error": False, command: {"exit_on_error": False}},
        )
    except ArgumentError as error:
        if refused := re.search(r"Importing '(.+?)' is not allowed", str(error)):
            raise ValueError(untrusted(refused[1])) from error
        hint = f"\nValid methods: {', '.join(METHOD_NAMES)}" if "model.method" in str(error) else ""
        raise ValueError(f"{error}{hint}\nnc-finetune {command} --help lists every key") from error


def _benchmark(
    grid: str, out: Path | None, dry_run: bool, retry_failed: bool, trust: bool, executor: str, **cluster: Any
) -> int:
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from rich.console import Console

    from nc_finetune.benchmark.grid import read_grid
    from nc_finetune.benchmark.report import check_report_extra, print_summary, write_report
    from nc_finetune.benchmark.runner import run_grid
    from nc_finetune.recipes import find_recipe
    from nc_finetune.trust import only_known_classes

    path = find_recipe(grid)
    out = out or Path("runs") / path.stem
    console = Console()
    with only_known_classes(trust):
        plan = read_grid(path)
    if dry_run:
        return _dry_run(plan, out, retry_failed, console)
    check_report_extra()
    try:
        results = run_grid(plan, out, retry_failed=retry_failed, executor=_executor(executor, **cluster))
    except SIGTERMException:  # Lightning's own, whose exit status would be 0
        console.print("stopped by SIGTERM; the same command goes on with what is missing")
        return 128 + signal.SIGTERM
    for result in results:
        if result.status != "ok":
            console.print(f"{result.status}: {result.run_id}: {result.error}", style="red", markup=False)
    files = write_report(results, out)
    print_summary(results, console)
    console.print(f"Report: {files.page}", soft_wrap=True, markup=False)
    failed = sum(result.status == "failed" for result in results)
    if failed:
        console.print(f"{failed} failed; --retry-failed runs them again")
    return int(failed > 0)


def _executor(name: str, ray_address: str | None, cpus: float, gpus: float) -> Executor:
    from nc_finetune.benchmark.runner import run_serially

    if name == "serial":
        return run_serially
    from nc_finetune.benchmark.ray_executor import RayExecutor

    return RayExecutor(ray_address, cpus=cpus, gpus=gpus)


def _dry_run(grid: Grid, out: Path, retry_failed: bool, console: Console) -> int:
    from nc_finetune.benchmark.plan import duration, plan_grid, plan_table

    plan = plan_grid(grid, out, retry_failed)
    console.print(plan_table(plan))
    fits = sum(item.cell.method.fits for item in plan.planned)
    console.print(
        f"{len(plan.cells)} cells, {len(plan.planned)} to run with {fits} fits, about {duration(plan.seconds)}"
    )
    for reason in dict.fromkeys(item.reason for item in plan.planned if item.reason):
        console.print(f"no estimate: {reason}", markup=False, soft_wrap=True)
    for path in plan.state.unreadable:
        console.print(f"no result of this version, to be set aside: {path}", markup=False, soft_wrap=True)
    return 0


def _report(folders: list[Path], out: Path | None) -> int:
    from nc_finetune.benchmark.report import write_report
    from nc_finetune.benchmark.results import merge_results

    results, problems = merge_results(folders)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)  # noqa: T201
    files = write_report(results, out or folders[0], problems)
    print(f"Report: {files.page}")  # noqa: T201
    return 0


def _profile(
    backbone: str,
    weights: str,
    method: str,
    epochs: int,
    learning_rate: float | None,
    trials: bool,
    out: Path,
    **data: Any,
) -> int:
    from rich.console import Console

    from nc_finetune.backbones import create_backbone
    from nc_finetune.benchmark.grid import MethodSpec
    from nc_finetune.data import ImageData
    from nc_finetune.files import write_atomically, write_text_atomically
    from nc_finetune.selection import best_device, presentation, profile_backbone

    images = ImageData(data.pop("source"), **data)
    network = create_backbone(backbone, None if weights == "null" else weights).to(best_device())
    spec = MethodSpec(method=method)
    found = profile_backbone(
        network, images, spec.build if trials else None, epochs=epochs, learning_rate=learning_rate
    )
    console = Console()
    console.print(presentation.profile_table(found))
    console.print(found.recommendation, markup=False, soft_wrap=True)
    write_text_atomically(out / "profile.csv", presentation.profile_csv(found))
    write_atomically(out / "profile.png", presentation.profile_png(found))
    console.print(f"Profile: {out / 'profile.png'}", soft_wrap=True, markup=False)
    return 0


def _rank(backbones: list[str], by: str, max_images: int, results: list[Path], out: Path, **data: Any) -> int:
    from rich.console import Console

    from nc_finetune.benchmark.results import mean_accuracies, merge_results
    from nc_finetune.data import ImageData
    from nc_finetune.errors import unknown_name
    from nc_finetune.files import write_text_atomically
    from nc_finetune.selection import backbone_scores, presentation

    if by not in backbone_scores.MEASURES:
        raise unknown_name("measure", by, backbone_scores.MEASURES)
    measured = mean_accuracies(merge_results(results)[0]) if results else {}
    images = ImageData(data.pop("source"), **data)
    console = Console()
    scores = []
    for name, equals, weights in (word.partition("=") for word in backbones):
        tag = None if weights == "null" else (weights if equals else "default")
        scores.append(backbone_scores.score_backbone(name, tag, images, max_images))
    scores = backbone_scores.ranked(scores, by)
    console.print(presentation.rank_table(scores))
    for found in scores:
        if found.error:
            console.print(f"{found.name}: {found.error}", style="red", markup=False, soft_wrap=True)
    if measured:
        console.print("Rank correlation with measured fine-tuning:", backbone_scores.correlations(scores, measured))
    write_text_atomically(out, presentation.rank_csv(scores))
    console.print(f"Scores: {out}", soft_wrap=True, markup=False)
    return int(any(found.error for found in scores))


def _recipes(copy: str | None, to: Path) -> int:
    from rich.console import Console
    from rich.table import Table

    from nc_finetune.recipes import copy_recipe, list_recipes

    console = Console()
    if copy is not None:
        console.print(copy_recipe(copy, to), soft_wrap=True, markup=False)
        return 0
    table = Table("recipe", "what it does", box=None)
    for name, purpose in list_recipes().items():
        table.add_row(name, purpose)
    console.print(table)
    return 0


def _predict_folder(words: Sequence[str]) -> int:
    from nc_finetune.predict import predict_folder

    known = vars(_folder_parser().parse_args(words))
    skipped = predict_folder(**known)
    if skipped:
        print(f"Skipped {len(skipped)} images: {', '.join(skipped)}", file=sys.stderr)  # noqa: T201
    print(f"Predictions: {known['out']}")  # noqa: T201
    return 0


def _export(to: str, model: Path, out: Path, uint8: bool, image_size: int | None, trust: bool) -> int:
    from nc_finetune.delta import load_model
    from nc_finetune.export import export_onnx, export_program, export_state_dict

    classifier, config = load_model(model, trust=trust)
    image_size = image_size or config.image_size
    if to == "state-dict":
        export_state_dict(classifier, out)
    else:
        write = {"program": export_program, "onnx": export_onnx}[to]
        write(classifier, out, image_size=image_size, uint8=uint8)
    print(f"Model: {out}")  # noqa: T201
    return 0


def _data(
    action: str,
    source: str,
    image_column: str | None,
    label_column: str | None,
    min_per_class: int,
    workers: int,
    out: Path | None,
) -> int:
    import json

    from rich.console import Console

    from nc_finetune.data import ImageData, check_data
    from nc_finetune.data_report import print_data_report
    from nc_finetune.files import write_text_atomically

    data = ImageData(source, image_column=image_column, label_column=label_column)
    report = check_data(data, min_per_class=min_per_class, num_workers=workers)
    print_data_report(report, Console())
    if out is not None:
        write_text_atomically(out, json.dumps(report.to_json(), indent=2) + "\n")
    return int(bool(report.faults))


_COMMANDS: dict[str, Callable[..., int]] = {
    "benchmark": _benchmark,
    "report": _report,
    "profile": _profile,
    "rank": _rank,
    "recipes": _recipes,
    "export": _export,
    "data": _data,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run ``nc-finetune``.

    Args:
        args: The words after the command's name; ``None`` takes those of the process.

    Returns:
        The exit status: 0; 1 if a run of a benchmark failed, data have faults, or training could not go on; 2 for input
        that cannot be used; 130 and 143 after Ctrl-C and SIGTERM, with a checkpoint.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words and _names_a_model(words):
            return _predict_folder(words[1:])
        if words and words[0] in TRAINER_COMMANDS:
            _trainer_command(words[0], words[1:])
            return 0
        known = vars(_parser().parse_args(words))
        return _COMMANDS[known.pop("command")](**known)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError, UnpicklingError) as error:
        return _report_error(error)


def _report_error(error: Exception) -> int:
    """Print what went wrong, without a traceback where that would tell nothing more; return the exit status."""
    from nc_finetune.errors import TrainingStoppedError
    from nc_finetune.faults import explain

    message = explain(error)
    if isinstance(error, UnpicklingError):
        message = "the checkpoint holds more than tensors and plain values; it was not unpickled, which could run code"
    if message is None and isinstance(error, RuntimeError) and not isinstance(error, TrainingStoppedError):
        raise error
    print(f"nc-finetune: {message or error}", file=sys.stderr)  # noqa: T201
    signum = getattr(error, "signal", None)
    if signum is not None:
        return 128 + int(signum)
    return 1 if isinstance(error, (RuntimeError, MemoryError)) else 2
