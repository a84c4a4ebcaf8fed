"""The notebooks run from end to end, and are committed with what a reader is to see alone."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def name(path: Path) -> str:
    return path.stem


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    where = tmp_path / "docs" / "notebooks"
    where.mkdir(parents=True)
    done = NotebookClient(nbformat.read(path, 4), timeout=180, resources={"metadata": {"path": str(where)}}).execute()
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_is_small_and_shows_what_it_prints(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 2
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # warnings name places of a machine
    assert path.stat().st_size < 100_000
