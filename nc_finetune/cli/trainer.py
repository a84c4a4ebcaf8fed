"""``nc-finetune fit``, ``validate``, ``test`` and ``predict`` on a recipe: Lightning's subcommands."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from nc_finetune._common.lightning_internals import OF_CLI, require
from nc_finetune._common.terminal import say
from nc_finetune._common.trust import only_known_classes, untrusted
from nc_finetune.callbacks import PredictionWriter, ProgressLines, ResumableRun
from nc_finetune.callbacks.resumable_run import LAST
from nc_finetune.classifier import ImageClassifier
from nc_finetune.cli.own_inputs import refuse_overwriting
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.data import ImageData
from nc_finetune.methods import METHOD_NAMES
from nc_finetune.selection import ChooseKeyLayer

_TRUST = "--trust"


class FinetuneCLI(LightningCLI):
    """Lightning's command, of an :class:`ImageClassifier` and :class:`ImageData`.

    Args:
        command: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        words: Its options.
    """

    def __init__(self, command: str, words: Sequence[str]) -> None:
        require(LightningCLI, *OF_CLI)
        self.command = command
        super().__init__(
            ImageClassifier,
            ImageData,
            args=[command, *words],
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},  # a run that goes on writes it again
            parser_kwargs={"exit_on_error": False, command: {"exit_on_error": False}},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Prepare this command alone: what the others take is not asked for, and takes long to find out."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the number of classes from the data, write predictions, and be ready to resume."""
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(ChooseKeyLayer, "key_layer_choice")
        parser.add_lightning_class_args(ResumableRun, "run")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Find the last checkpoint of a run, and load none with pickle; predictions take the place of nothing read."""
        config = self.config[self.command]
        if config.get("ckpt_path") == "last":
            config["ckpt_path"] = _last_checkpoint(config["run"]["folder"])
        if "weights_only" in config and config["weights_only"] is None:
            config["weights_only"] = True
        if self.command == "predict":
            read = [config["data"]["source"], config.get("ckpt_path"), *map(str, config.get("config") or ())]
            refuse_overwriting([Path(config["predictions"]["path"])], *read)

    def before_fit(self) -> None:
        """Name the checkpoint before the fit begins: a key layer is not chosen anew then."""
        given = self.config_init["fit"]
        self.trainer.ckpt_path, given["ckpt_path"] = given["ckpt_path"], None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        if config.get("enable_progress_bar") is None and not sys.stderr.isatty():
            callbacks = [*callbacks, ProgressLines()]
        if config.get("enable_checkpointing") is False:  # where Lightning refuses callbacks that write checkpoints
            callbacks = [callback for callback in callbacks if not isinstance(callback, ResumableRun)]
        return super()._instantiate_trainer(config, callbacks)


def run_trainer(command: str, words: Sequence[str]) -> int:
    """Run one of Lightning's subcommands on recipes, which are named before any option; later ones win.

    A recipe may name known classes alone, unless it is trusted.
    """
    options = [word for word in words if word != _TRUST]
    names = list(takewhile(lambda word: not word.startswith("-"), options))
    recipes = [part for name in names for part in ("--config", str(find_recipe(name)))]
    # Lightning expects to read the command line itself; ours names recipes, which it does not know.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    try:
        with only_known_classes(trust=_TRUST in words):
            FinetuneCLI(command, [*recipes, *options[len(names) :]])
    except ArgumentError as error:
        if refused := re.search(r"Importing '(.+?)' is not allowed", str(error)):
            raise ValueError(untrusted(refused[1])) from error
        hint = f"\nValid methods: {', '.join(METHOD_NAMES)}" if "model.method" in str(error) else ""
        raise ValueError(f"{error}{hint}\nnc-finetune {command} --help lists every key") from error
    return 0


def _last_checkpoint(folder: str | None) -> str | None:
    """Return the last checkpoint of a run; a run that has none yet begins."""
    if folder is None:
        raise ValueError("--ckpt_path last needs to know the run: give --run.folder, the same as when it began")
    path = Path(folder) / LAST
    say(f"{'Going on from' if path.is_file() else 'Beginning: there is no'} {path}")
    return str(path) if path.is_file() else None
