"""The script of the kill table itself; what it looks for has quick tests in tests/callbacks/test_resumable_run.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_a_fit_survives_kills_at_random_moments() -> None:
    kills = 5
    command = [sys.executable, "benchmarks/robustness/kill_fit.py", "--kills", str(kills), "--seed", str(kills)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"{kills} kills, \d+ runs to the end, 0 differences", run.stdout)
    assert len(re.findall(r"^\| \d+ \|", run.stdout, re.MULTILINE)) == kills
