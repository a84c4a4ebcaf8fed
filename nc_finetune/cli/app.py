"""The command ``nc-finetune``."""

from __future__ import annotations

import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from nc_finetune._common.stopping import ToldToEnd, told_to_end
from nc_finetune.cli.parser import TRAINER_COMMANDS, command_parser, folder_parser

if TYPE_CHECKING:
    from rich.console import Console

    from nc_finetune.run.grid import Grid
    from nc_finetune.run.runner import Executor

TRUST = "--trust"
MODEL_FILES = (".safetensors", ".ckpt")


def _names_a_model(words: Sequence[str]) -> bool:
    """Tell ``predict MODEL FOLDER`` from ``predict RECIPE``."""
    return words[0] == "predict" and len(words) > 1 and Path(words[1]).suffix in MODEL_FILES


def _with_config(words: Sequence[str]) -> list[str]:
    """Turn recipes that are given by name, before any option, into one ``--config FILE`` each; later ones win."""
    from nc_finetune.cli.recipes import find_recipe

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
    from nc_finetune._common.trust import only_known_classes

    with only_known_classes(trust=TRUST in words):
        _run_trainer(command, [word for word in words if word != TRUST])


def _run_trainer(command: str, words: Sequence[str]) -> None:
    """Run it on an ImageClassifier and ImageData."""
    from jsonargparse import ArgumentError
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from nc_finetune._common.lightning_internals import OF_CLI, require
    from nc_finetune._common.trust import untrusted
    from nc_finetune.callbacks import PredictionWriter, ProgressLines, ResumableRun
    from nc_finetune.classifier import ImageClassifier
    from nc_finetune.data import ImageData
    from nc_finetune.methods import METHOD_NAMES
    from nc_finetune.selection import ChooseKeyLayer

    require(LightningCLI, *OF_CLI)

    class FinetuneCLI(LightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """Prepare this command alone: what the others take is not asked for, and takes long to find out."""
            return {command: LightningCLI.subcommands()[command]}

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

        def before_fit(self) -> None:
            """Name the checkpoint before the fit begins: a key layer is not chosen anew then."""
            given = self.config_init[command]
            self.trainer.ckpt_path, given["ckpt_path"] = given["ckpt_path"], None

        def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
            if config.get("enable_progress_bar") is None and not sys.stderr.isatty():
                callbacks = [*callbacks, ProgressLines()]
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
    from nc_finetune._common.terminal import open_console
    from nc_finetune._common.trust import only_known_classes
    from nc_finetune.cli.recipes import find_recipe
    from nc_finetune.report.report import check_report_extra, print_summary, write_report
    from nc_finetune.run.grid import read_grid
    from nc_finetune.run.runner import run_grid

    path = find_recipe(grid)
    out = out or Path("runs") / path.stem
    console = open_console()
    with only_known_classes(trust):
        plan = read_grid(path)
    if dry_run:
        return _dry_run(plan, out, retry_failed, console)
    check_report_extra()
    try:
        results = run_grid(plan, out, retry_failed=retry_failed, executor=_executor(executor, **cluster))
    except ToldToEnd as reason:
        reason.advice = f"finished runs stay in {out / 'results'}; the same command goes on with what is missing"
        raise
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
    from nc_finetune.run.runner import run_serially

    if name == "serial":
        return run_serially
    from nc_finetune.run.ray_executor import RayExecutor

    return RayExecutor(ray_address, cpus=cpus, gpus=gpus)


def _dry_run(grid: Grid, out: Path, retry_failed: bool, console: Console) -> int:
    from nc_finetune._common.terminal import duration
    from nc_finetune.run.plan import plan_grid, plan_table

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
    for path, difference in plan.state.outdated.items():
        console.print(f"to be set aside: {path} {difference}", markup=False, soft_wrap=True)
    for problem in plan.state.problems:
        console.print(problem, markup=False, soft_wrap=True)
    return 0


def _report(folders: list[Path], out: Path | None) -> int:
    from nc_finetune.report.report import write_report
    from nc_finetune.results.merging import merge_results

    results, problems = merge_results(folders)
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)  # noqa: T201
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
    from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
    from nc_finetune._common.terminal import open_console, say
    from nc_finetune.backbones import create_backbone
    from nc_finetune.data import ImageData
    from nc_finetune.run.specs import MethodSpec
    from nc_finetune.selection import best_device, presentation, profile_backbone

    images = ImageData(data.pop("source"), **data)
    network = create_backbone(backbone, None if weights == "null" else weights).to(best_device())
    spec = MethodSpec(method=method)
    found = profile_backbone(
        network, images, spec.build if trials else None, epochs=epochs, learning_rate=learning_rate, report=say
    )
    console = open_console()
    write_text_atomically(out / "profile.csv", presentation.profile_csv(found))
    write_atomically(out / "profile.png", presentation.profile_png(found))
    console.print(presentation.profile_table(found))
    console.print(found.recommendation, soft_wrap=True)
    console.print(f"Profile: {out / 'profile.png'}", soft_wrap=True, markup=False)
    return 0


def _rank(backbones: list[str], by: str, max_images: int, results: list[Path], out: Path, **data: Any) -> int:
    from nc_finetune._common.atomic_files import write_text_atomically
    from nc_finetune._common.terminal import open_console, shown_steps
    from nc_finetune.data import ImageData
    from nc_finetune.errors import check_name
    from nc_finetune.report import best_by_network
    from nc_finetune.results.merging import merge_results
    from nc_finetune.selection import backbone_scores, presentation

    check_name("measure", by, backbone_scores.MEASURES)
    runs, problems = merge_results(results) if results else ([], [])
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)  # noqa: T201
    measured = best_by_network(runs)
    images = ImageData(data.pop("source"), **data)
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
    for found in scores:
        if found.error:
            console.print(f"{found.name}: {found.error}", style="red", markup=False, soft_wrap=True)
    if measured:
        console.print("Rank correlation with measured fine-tuning:", backbone_scores.correlations(scores, measured))
    console.print(f"Scores: {out}", soft_wrap=True, markup=False)
    return int(any(found.error for found in scores))


def _recipes(copy: str | None, to: Path) -> int:
    from nc_finetune._common.terminal import as_text, name_table, open_console
    from nc_finetune.cli.recipes import copy_recipe, list_recipes

    console = open_console()
    if copy is not None:
        console.print(copy_recipe(copy, to), soft_wrap=True, markup=False)
        return 0
    table = name_table(["recipe", "what it does"], [])
    for name, purpose in list_recipes().items():
        table.add_row(*as_text([name, purpose]))
    console.print(table)
    return 0


def _predict_folder(words: Sequence[str]) -> int:
    from nc_finetune.deployment.predict import predict_folder

    known = vars(folder_parser().parse_args(words))
    skipped = predict_folder(**known, progress=True)
    if skipped:
        print(f"Skipped {len(skipped)} images: {', '.join(skipped)}", file=sys.stderr)  # noqa: T201
    print(f"Predictions: {known['out']}")  # noqa: T201
    return 0


def _export(to: str, model: Path, out: Path, uint8: bool, image_size: int | None, trust: bool) -> int:
    from nc_finetune.deployment.export import export_onnx, export_program, export_state_dict
    from nc_finetune.deployment.load import load_model

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
    group: str | None,
    min_per_class: int,
    workers: int,
    out: Path | None,
) -> int:
    import json

    from nc_finetune._common.atomic_files import write_text_atomically
    from nc_finetune._common.terminal import open_console
    from nc_finetune.cli.data_report import print_data_report
    from nc_finetune.data import ImageData, check_data

    data = ImageData(source, image_column=image_column, label_column=label_column, group=group)
    report = check_data(data, min_per_class=min_per_class, num_workers=workers)
    if out is not None:
        write_text_atomically(out, json.dumps(report.to_json(), indent=2) + "\n")
    print_data_report(report, open_console())
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
        that cannot be used; 130 and 143 after Ctrl-C and SIGTERM, of a fit with a checkpoint.
    """
    try:
        with told_to_end():
            return _run(list(sys.argv[1:] if args is None else args))
    except ToldToEnd as reason:
        if args is None:  # the process ends: a second SIGTERM changes nothing
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _report_stop(reason)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError, UnpicklingError) as error:
        return _report_error(error)


def _run(words: Sequence[str]) -> int:
    if words and _names_a_model(words):
        return _predict_folder(words[1:])
    if words and words[0] in TRAINER_COMMANDS:
        _trainer_command(words[0], words[1:])
        return 0
    known = vars(command_parser().parse_args(words))
    return _COMMANDS[known.pop("command")](**known)


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
    from nc_finetune.errors import TrainingStoppedError

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
