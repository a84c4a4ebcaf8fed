"""What importing the package and asking the command for help cost: nothing that is not used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nc_finetune

OPTIONAL = ("altair", "datasets", "matplotlib", "onnx", "onnxscript", "open_clip", "pandas", "peft", "ray", "sklearn")
HEAVY = (*OPTIONAL, "jsonargparse", "lightning", "timm", "torch", "torchmetrics", "torchvision")


def imported(command: str, *names: str) -> set[str]:
    """Return which of some modules a process of its own has after a command."""
    code = f"{command}\nimport sys; print('imported:', *set({names!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


COMMANDS = """\
import nc_finetune
from nc_finetune.cli import main
for words in (["--help"], ["benchmark", "--help"], ["recipes"]):
    try:
        main(words)
    except SystemExit:
        pass
"""


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    assert imported(COMMANDS, *HEAVY) == set()


def test_the_model_and_the_data_import_no_optional_package_of_their_own() -> None:
    others = f"import sys, lightning, torchmetrics, timm; before = set({OPTIONAL!r}) & set(sys.modules)"
    ours = "from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1, TimmBackbone"
    forget = "for name in before: sys.modules.pop(name)"
    assert imported("; ".join((others, ours)) + f"\n{forget}", *OPTIONAL) == set()


def test_every_public_name_is_there() -> None:
    tree = ast.parse(Path(str(nc_finetune.__file__)).read_text())
    (block,) = [part for part in tree.body if isinstance(part, ast.If)]
    declared = {(part.module, name.name) for part in block.body for name in part.names}  # type: ignore[attr-defined]
    assert declared == {(f"nc_finetune.{home}", name) for name, home in nc_finetune._HOMES.items()}
    for _, name in declared:
        assert getattr(nc_finetune, name).__name__ == name
        assert name in dir(nc_finetune)
    assert nc_finetune.methods.LinearProbe.name == "linear_probe"


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Classifier'"):
        _ = nc_finetune.Classifier
