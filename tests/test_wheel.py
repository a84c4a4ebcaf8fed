"""The wheel has everything that the package needs: it runs where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BARE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, and install it into an environment that has what the package depends on, and no checkout."""
    pytest.importorskip("build", reason="the extra dev builds wheels")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=True)
    python = folder / "env/bin/python"
    (wheel,) = folder.glob("*.whl")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # A path in a .pth file brings the packages of this environment along, but not what its own .pth files bring:
    # the checkout that is installed here.
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    where = "import nc_finetune; print(nc_finetune.__file__)"
    found = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True, cwd=folder, env=BARE)
    assert str(site) in found.stdout
    return folder / "env/bin/nc-finetune"


def run(command: Path, *words: str, folder: Path) -> str:
    found = subprocess.run([str(command), *words], capture_output=True, text=True, cwd=folder, env=BARE)
    assert found.returncode == 0, found.stderr
    return found.stdout


GRID = """
backbones: [{name: test_resnet, weights: null}]
datasets: [{source: "sklearn:digits", image_size: 32, val_size: 50}]
methods: [{method: LayerReadout}, {method: LinearProbe, options: {solver: lbfgs}}]
samples_per_class: [4]
"""


@pytest.mark.slow
def test_the_wheel_tunes_lists_recipes_benchmarks_and_reports(command: Path, tmp_path: Path) -> None:
    assert "methods/scl_ft" in run(command, "recipes", folder=tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID, encoding="utf-8")
    run(command, "benchmark", "grid.yaml", "--out", "grid", folder=tmp_path)
    run(command, "report", "grid", folder=tmp_path)
    assert (tmp_path / "grid/report.html").stat().st_size > 10_000
    options = ("--minutes", "0.01", "--image-size", "32", "--out", "tuned")
    run(command, "tune", "sklearn:digits", *options, folder=tmp_path)
    assert (tmp_path / "tuned/model.safetensors").is_file()
    assert (tmp_path / "tuned/report.html").is_file()
