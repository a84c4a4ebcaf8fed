"""Kill a benchmark with SIGKILL at random moments, start it again each time, and look at what is left.

    python benchmarks/robustness/kill_grid.py --kills 20
    python benchmarks/robustness/kill_grid.py --kills 20 --real

It ends with exit status 0 if the folder then holds exactly the cells of the grid, each a valid result, and no cell was
run again after its result was there. A kill comes at a random moment of the whole of a run: one in four while the
program starts, the others within the time of --window cells after its first one began, in whatever the cells do then.
How long a cell takes is measured first, in a run that is killed, too.

Without --real: a tiny network with random weights, fits of a second. With --real: EfficientNet-Lite0 with its ImageNet
weights (extra offline) at 64 px, a probe, layer FT and SCL-FT, a few seconds a cell: 20 kills take about 7 minutes on
a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nc_finetune.results.result import read_result
from nc_finetune.run.grid import Grid, read_grid

TINY = """\
backbones: [{{name: test_resnet, weights: null, key_layer: [layer1.0, layer2.0]}}]
datasets: [{{source: "sklearn:digits", name: digits, image_size: 32, val_size: 40, test_size: 50}}]
methods:
  - {{method: LinearProbe, learning_rates: [1.0e-3]}}
  - {{method: LayerFinetuning, learning_rates: [1.0e-3]}}
samples_per_class: [3]
seeds: {seeds}
settings: {{epochs: 4}}
"""
REAL = """\
backbones: [{{name: tf_efficientnet_lite0, weights: package, key_layer: blocks.4.2}}]
datasets: [{{source: "sklearn:digits", name: digits, image_size: 64, val_size: 100}}]
methods:
  - {{method: LinearProbe, learning_rates: [3.0e-3]}}
  - {{method: LayerFinetuning, learning_rates: [3.0e-3]}}
  - {{method: SkipConnectionFinetuning, learning_rates: [3.0e-3]}}
samples_per_class: [5]
seeds: {seeds}
settings: {{epochs: 3}}
"""
# The command as it is, but it says when a cell begins.
COMMAND = """\
import sys
from nc_finetune.run import runner
from nc_finetune.cli import main
run_cell = runner.run_cell
def announced(cell, *rest):
    print("begin", cell.run_id, flush=True)
    return run_cell(cell, *rest)
runner.run_cell = announced
sys.exit(main(sys.argv[1:]))
"""
DURING_START = 4  # one kill in so many
TIMED = 3  # cells


def start(grid: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "benchmark", str(grid), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603


def wait_for_cells(process: subprocess.Popen[str], number: int) -> list[float]:
    """Wait until some cells have begun; return when each did."""
    moments: list[float] = []
    while len(moments) < number and process.stdout and (line := process.stdout.readline()):
        if line.startswith("begin "):
            moments.append(time.monotonic())
    return moments


def cell_seconds(grid: Path, out: Path) -> float:
    """Time cells from the second on; the first has to fill caches."""
    process = start(grid, out)
    moments = wait_for_cells(process, TIMED + 2)
    kill(process)
    return (moments[-1] - moments[1]) / TIMED


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}


def kill(process: subprocess.Popen[str]) -> str:
    """Kill it, unless it has ended; return the cell that was running."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    begun = [line.split()[1] for line in process.stdout or () if line.startswith("begin ")]
    if process.wait() == 0:
        raise SystemExit("the grid was finished before its last kill: give it more --seeds")
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run ended by itself, with exit status {process.returncode}")
    return begun[-1] if begun else "the same cell"


def kill_at_random(grid: Path, out: Path, kills: int, window: float, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    longest_start = 0.0
    for number in range(1, kills + 1):
        before, begin = times(out), time.monotonic()
        process = start(grid, out)
        if number % DURING_START == 0:
            moment = chance.uniform(0.0, longest_start)
            time.sleep(moment)
            where = f"{moment:.1f} s after the start"
        else:
            wait_for_cells(process, 1)
            longest_start = max(longest_start, time.monotonic() - begin)
            moment = chance.uniform(0.0, window)
            time.sleep(moment)
            where = f"{moment:.1f} s after the first cell began"
        where += f", in {kill(process)}"
        after = times(out)
        changed = [name for name, moment in before.items() if after.get(name) != moment]
        print(f"kill {number}: {where}; {len(after)} results, {len(after) - len(before)} of them new", flush=True)
        if changed:
            raise SystemExit(f"run again or lost: {changed}")


def check(grid: Grid, out: Path) -> None:
    expected = {f"{cell.run_id}.json" for cell in grid.cells()}
    found = {path.name for path in (out / "results").iterdir()}
    if found != expected:
        raise SystemExit(f"missing {sorted(expected - found)}, too many {sorted(found - expected)}")
    if bad := [name for name in found if read_result(out / "results" / name).status != "ok"]:
        raise SystemExit(f"not ok: {bad}")
    print(f"exactly the {len(expected)} cells of the grid, all valid")


def finish(grid: Path, out: Path) -> None:
    process = start(grid, out)
    process.communicate()
    if process.returncode != 0:
        raise SystemExit("the last run did not end with exit status 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--real", action="store_true", help="fits of a pre-trained network")
    parser.add_argument("--window", type=float, default=3.0, help="cells from the first one to a kill, at most")
    parser.add_argument("--seeds", type=int, help="seeds of the grid (default: twice as many as kills)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    seeds = list(range(options.seeds or 2 * options.kills))
    with tempfile.TemporaryDirectory() as folder:
        grid, out = Path(folder) / "grid.yaml", Path(folder) / "out"
        grid.write_text((REAL if options.real else TINY).format(seeds=seeds), encoding="utf-8")
        seconds = cell_seconds(grid, out)
        print(f"a cell takes {seconds:.1f} s", flush=True)
        kill_at_random(grid, out, options.kills, options.window * seconds, options.seed)
        finish(grid, out)
        check(read_grid(grid), out)


if __name__ == "__main__":
    main()
