"""What is shown: names as they are, whole at any width, and progress where there is no terminal."""

import io
import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from rich.table import Table

from nc_finetune import ImageClassifier, ImageData
from nc_finetune._common.terminal import open_console, shown_steps
from nc_finetune.callbacks import ProgressLines
from nc_finetune.cli.data import print_data_report
from nc_finetune.data import DataReport
from nc_finetune.functional import SeparationLaw
from nc_finetune.run.folder import FolderState
from nc_finetune.run.plan import Plan, plan_table
from nc_finetune.selection.backbone_scores import BackboneScores
from nc_finetune.selection.presentation import Profile, profile_table, rank_table
from nc_finetune.selection.profile import BlockMeasures

ODD_NAMES = ["[red]", "[/]", "[/red] x", "photos[2024]", ":smile:", "[link=x]y", "\\[b]", "a[bold]b"]
LONG_NAMES = [f"a_very_long_name_of_a_network_{'x' * 60}_patch{size}" for size in (16, 32)]


def scores(names: list[str]) -> Table:
    return rank_table([BackboneScores(name=name, weights=name, nc1=1.234, seconds=12.0) for name in names])


def profile(names: list[str]) -> Table:
    law = SeparationLaw(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0))
    measures = [BlockMeasures(block=name, nc1=1.0, trace_ratio=1.0, ncc_accuracy=0.5) for name in names]
    return profile_table(Profile("net", measures, [], law))


def plan(names: list[str]) -> Table:
    from nc_finetune.cli.recipes import find_recipe
    from nc_finetune.run.grid import read_grid

    cell, cells = read_grid(find_recipe("quickstart")).cells()[0], []
    for name in names:
        from dataclasses import replace

        cells.append(replace(cell, dataset=replace(cell.dataset, name=name)))
    return plan_table(Plan(cells, FolderState(), []))


def data_report(names: list[str], console: Console) -> None:
    for name in names:
        counts = {"train": [3, 2]}
        report = DataReport(
            **{field: {} for field in DataReport.__dataclass_fields__}
            | {
                "source": name,
                "class_names": (name, "other"),
                "images": {"train": 5},
                "class_counts": counts,
                "modes": {name: 5},
                "widths": (1, 2, 3),
                "heights": (1, 2, 3),
                "small": 0,
                "multi_label": False,
                "broken": [],
                "duplicates": [],
                "rare_classes": {name: 1},
                "unlabelled": 0,
                "groups": None,
                "left_out": [f"{name}.gif"],
                "left_out_text": f"left out {name}.gif",
            }
        )
        print_data_report(report, console)


def table_of(make: Callable[[list[str]], Table]) -> Callable[[list[str], Console], None]:
    return lambda names, console: console.print(make(names))


SHOWN = {"rank": table_of(scores), "profile": table_of(profile), "plan": table_of(plan), "data": data_report}


def render(kind: str, names: list[str], width: int) -> str:
    text = io.StringIO()
    SHOWN[kind](names, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("kind", SHOWN)
def test_names_are_no_markup(kind: str) -> None:
    found = render(kind, ODD_NAMES, 160)
    assert all(name in found for name in ODD_NAMES)


@pytest.mark.parametrize("kind", SHOWN)
@pytest.mark.parametrize("width", [80, 120])
def test_long_names_are_folded_and_not_cut(kind: str, width: int) -> None:
    found = render(kind, LONG_NAMES, width)
    assert "…" not in found
    assert max(map(len, found.splitlines())) <= max(width, 150)  # sentences are left to the terminal
    found = "".join(line.split("  ")[0].strip() for line in found.splitlines())
    assert all(re.search("".join(f"{letter}[^_]*?" for letter in f"patch{size}"), found) for size in (16, 32))


def test_a_pipe_is_as_wide_as_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console()
    console.print(scores(LONG_NAMES))
    console.print("[bold] :smile: stays")
    printed = capsys.readouterr().out
    assert all(name in printed for name in LONG_NAMES)
    assert "[bold] :smile: stays" in printed


@pytest.mark.parametrize("colour", [False, True])
def test_without_a_terminal_progress_is_lines(colour: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    if colour:  # as on many servers for continuous integration
        monkeypatch.setenv("FORCE_COLOR", "1")
    with shown_steps("fits", 4) as steps:
        steps.advance(1)
        assert capsys.readouterr().err == ""
        steps.finish(2, "run 1 of 2, [red], seed 0: ok")
        printed = capsys.readouterr().err
        steps.finish(4, "run 2 of 2")
    assert re.fullmatch(
        r"fits: 2 of 4, 0 s, about 0 s left; run 1 of 2, \[red\], seed 0: ok\n", re.sub(r"\x1b\[[0-9;]*m", "", printed)
    )
    assert colour or "\x1b" not in printed
    assert "\r" not in printed


def test_on_a_terminal_progress_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    with shown_steps("fits", 2, Console(file=file, force_terminal=True, width=100)) as steps:
        steps.finish(2, "[red]")
    assert "━" in file.getvalue()
    assert "[red]" in file.getvalue()


def test_a_fit_says_a_line_an_epoch(make_trainer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageData("sklearn:digits", image_size=8, samples_per_class=2, val_size=20)
    model = ImageClassifier("test_resnet", 10, weights=None)
    trainer: L.Trainer = make_trainer(ProgressLines(), max_epochs=2, enable_progress_bar=True)
    trainer.fit(model, datamodule=data)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert re.match(r"epoch 2 of 2: .*train/loss [\d.]+.*; \d+ s, about 0 s left", lines[1])
    assert "val/accuracy 0." in lines[1]


@pytest.mark.parametrize("stage", ["train", "test", "predict"])
def test_long_loops_say_how_far_they_are(stage: str, make_trainer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageData("sklearn:digits", image_size=8, samples_per_class=4, val_size=20, max_test_images=None)
    model = ImageClassifier("test_resnet", 10, weights=None)
    trainer: L.Trainer = make_trainer(ProgressLines(every_seconds=1e-9), enable_progress_bar=True)
    {"train": trainer.fit, "test": trainer.test, "predict": trainer.predict}[stage](model, datamodule=data)
    said = capsys.readouterr().err
    batches = {"train": "epoch 1 of 1: 1 of 2", "test": "test: 1 of 12", "predict": "predict: 1 of 12"}[stage]
    assert f"{batches} batches; 0 s" in said
