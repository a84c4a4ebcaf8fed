"""Kill a real benchmark with SIGKILL at random moments, start it again each time, and look at what is left.

    python benchmarks/robustness/kill_grid.py --kills 20

It ends with exit status 0 if the folder then holds exactly the cells of the grid, each a valid result, and no cell was
run again after its result was there.
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

from nc_finetune.benchmark.grid import Grid, read_grid
from nc_finetune.benchmark.results import read_result

GRID = """\
backbones: [{name: test_resnet, weights: null, key_layer: [layer1.0, layer2.0]}]
datasets: [{source: "sklearn:digits", name: digits, image_size: 32, val_size: 40, test_size: 50}]
methods:
  - {method: LinearProbe, learning_rates: [1.0e-3]}
  - {method: LayerFinetuning, learning_rates: [1.0e-3]}
samples_per_class: [3, 5]
seeds: [0, 1, 2, 3, 4]
settings: {epochs: 4}
"""


def start(grid: Path, out: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from nc_finetune.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "benchmark", str(grid), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}


def kill_at_random(grid: Path, out: Path, kills: int, longest: float, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    for number in range(kills):
        before = times(out)
        process = start(grid, out)
        time.sleep(chance.uniform(0.0, longest))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        changed = [name for name, moment in before.items() if times(out).get(name) != moment]
        print(f"kill {number + 1}: {len(times(out))} results; {len(changed)} written twice or lost", flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=25.0, help="seconds from start to kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        grid, out = Path(folder) / "grid.yaml", Path(folder) / "out"
        grid.write_text(GRID, encoding="utf-8")
        kill_at_random(grid, out, options.kills, options.longest, options.seed)
        if start(grid, out).wait() != 0:
            raise SystemExit("the last run did not end with exit status 0")
        check(read_grid(grid), out)


if __name__ == "__main__":
    main()
