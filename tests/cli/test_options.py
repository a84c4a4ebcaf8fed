"""Options and help of the commands: words, defaults, and one line for what cannot be."""

import re
from collections.abc import Callable

import pytest

from nc_finetune.cli import main
from nc_finetune.cli.benchmark import benchmark
from nc_finetune.cli.data import check
from nc_finetune.cli.export import export
from nc_finetune.cli.options import CommandParser
from nc_finetune.cli.predict import predict
from nc_finetune.cli.profile import profile
from nc_finetune.cli.rank import rank
from nc_finetune.cli.recipes import recipes
from nc_finetune.cli.report import report


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "benchmark",
            ["--dry-run show what", "{serial,ray} one cell", "(default: serial)", "(default: 1)", "(default: 0)"],
        ),
        ("report", ["DIR [DIR ...]", "--out OUT folder that the report goes to (default: the first DIR) examples:"]),
        (
            "profile",
            [
                "--image-size PIXELS height and width (default: 224)",
                "are taken (default: 0)",
                "--no-trials",
                "(default: 15)",
            ],
        ),
        ("rank", ["--backbones NAME[=WEIGHTS] [NAME[=WEIGHTS] ...]", "[--results [DIR ...]]", "(default: rank.csv)"]),
        ("recipes", ["--copy NAME", "--to DIR", "(default: here)", "nc-finetune recipes --copy quickstart --to mine"]),
        ("data check", ["--label-column NAME", "--workers N", "(default: 0, this one alone)", "--out FILE"]),
        ("data labels", ["--backbone NAME[=WEIGHTS]", "--most N", "(default: 100)", "--apply CSV", "--out DIR"]),
        (
            "push",
            ["model repo", "user/name, which must not exist yet", "--card-only FILE", "--licence NAME", "--public let"],
        ),
        ("export", ["--to {state-dict,program,onnx}", "[--uint8]", "model a delta", "--out OUT"]),
        (
            "predict x.ckpt",
            ["--batch-size N images a batch (default: 32)", "{raise,skip}", "(default: predictions.csv)"],
        ),
    ],
)
def test_help_says_words_and_defaults(command: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"usage: nc-finetune {command.removesuffix(' x.ckpt')} [-h]")
    assert [words for words in said if words not in printed] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rank x --backbones a --max-images -5", "--max-images: must be a whole number of at least 1, got -5"),
        ("rank x --backbones a --max-images many", "--max-images: must be a whole number of at least 1, got many"),
        ("rank x --backbones a --image-size 0", "--image-size: must be a whole number of at least 1, got 0"),
        ("profile a x --epochs 0", "--epochs: must be a whole number of at least 1, got 0"),
        ("profile a x --learning-rate -1", "--learning-rate: must be above 0, got -1"),
        ("profile a x --learning-rate nan", "--learning-rate: must be above 0, got nan"),
        ("profile a x --samples-per-class 0", "--samples-per-class: must be a whole number of at least 1, got 0"),
        ("profile a x --batch-size -2", "--batch-size: must be a whole number of at least 1, got -2"),
        ("profile a x --seed -1", "--seed: must be a whole number of at least 0, got -1"),
        ("benchmark quickstart --cpus 0", "--cpus: must be above 0, got 0"),
        ("benchmark quickstart --gpus inf", "--gpus: must be at least 0, got inf"),
        ("data check x --workers -1", "--workers: must be a whole number of at least 0, got -1"),
        ("data check x --min-per-class 0", "--min-per-class: must be a whole number of at least 1, got 0"),
        ("data labels x --most 0", "--most: must be a whole number of at least 1, got 0"),
        (
            "export x.ckpt --to onnx --out y --image-size -1",
            "--image-size: must be a whole number of at least 1, got -1",
        ),
        ("predict x.ckpt y --batch-size 0.5", "--batch-size: must be a whole number of at least 1, got 0.5"),
        ("benchmark none --gpus 1", "--gpus is of tasks of Ray, and there are none; say --executor ray"),
        ("tune x --cpus 2", "--cpus is of tasks of Ray"),
        ("tune x --ray-address head:1", "--ray-address is of tasks of Ray"),
        ("export x.ckpt --to state-dict --out y --uint8", "weights alone, which --uint8 changes nothing of"),
        ("export x.ckpt --to state-dict --out y --image-size 9", "weights alone, which --image-size changes"),
        ("push x user/x --card-only card.md --public", "--card-only pushes nothing, and --public is for pushing"),
        ("push x user/x --card-only .", "a file is written, and . is a folder"),
        ("data check x --out .", "a file is written, and . is a folder"),
        ("rank x --backbones a --out .", "a file is written, and . is a folder"),
        ("predict x.ckpt y --out .", "a file is written, and . is a folder"),
        ("predict x.ckpt y --unlabelled-report .", "a file is written, and . is a folder"),
        ("predict x.ckpt y --out p --unlabelled-report ./p", "the page would take the place of the table"),
        ("recipes --to mine", "--to is where --copy NAME puts a recipe, and none is named; say --copy, too"),
        ("profile none nowhere --method Nonsense", "unknown method 'Nonsense'"),
        ("profile a x --no-trials --method LinearProbe", "--method is of the trials, which --no-trials leaves out"),
        ("profile a x --no-trials --epochs 15", "--epochs is of the trials, which --no-trials leaves out"),
        ("profile a x --no-trials --learning-rate 1", "--learning-rate is of the trials, which --no-trials leaves out"),
        ("report", "the following arguments are required: DIR"),
        ("bench quickstart", "invalid choice: 'bench'"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    printed = capsys.readouterr().out
    assert all(
        re.search(rf"^{name} \d+\.\d+", printed, re.M) for name in ("nc-finetune", "torch", "lightning", "python")
    )


@pytest.mark.parametrize("command", [benchmark, check, export, predict, profile, rank, recipes, report])
def test_every_option_has_help(command: Callable[..., int]) -> None:
    assert [action.dest for action in CommandParser(command)._actions if not action.help] == []
