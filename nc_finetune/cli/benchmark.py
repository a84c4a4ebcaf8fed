"""``nc-finetune benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from nc_finetune._common.stopping import ToldToEnd
from nc_finetune.cli.options import NonNegativeFloat, PositiveFloat, check_executor
from nc_finetune.cli.recipes import find_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from nc_finetune.run.grid import Grid


def benchmark(
    grid: str,
    *,
    out: Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    trust: bool = False,
    executor: Literal["serial", "ray"] = "serial",
    ray_address: Annotated[str | None, ("metavar", "HOST:PORT")] = None,
    cpus: PositiveFloat = 1,
    gpus: NonNegativeFloat = 0,
) -> int:
    """Run a grid of methods and write a report.

    A grid is a YAML file of backbones, data sets, methods, heads, training sizes, seeds and learning rates.
    Each combination is a cell: trained at every rate, chosen on the validation split or by folds of the
    training images (choice: folds), tested once. Killed at any moment, the same command goes on with what is
    missing. Exit status 1 if a cell failed.

    Args:
        grid: name of a recipe (see nc-finetune recipes), or path of a YAML file
        out: folder of results and report (default: runs/<name of the grid>)
        dry_run: show what would run and about how long it takes; nothing is written
        retry_failed: run cells again that failed or diverged (default: leave them)
        trust: let the file name classes of other packages, whose code then runs; only for files whose origin you know
        executor: one cell after the other in this process, or as tasks of Ray, extra ray
        ray_address: an existing Ray cluster (default: start one on this machine)
        cpus: CPUs that a cell reserves with --executor ray
        gpus: GPUs that a cell reserves with --executor ray, e.g. 0.5 for two cells a GPU

    Examples:
        nc-finetune benchmark quickstart
        nc-finetune benchmark mine.yaml --out runs/mine --dry-run
        nc-finetune benchmark mine.yaml --out runs/mine --executor ray --cpus 2 --gpus 0.5
    """
    from nc_finetune._common.terminal import open_console
    from nc_finetune._common.trust import only_known_classes
    from nc_finetune.report.report import check_report_extra, print_summary, write_report
    from nc_finetune.run.grid import read_grid
    from nc_finetune.run.ray_executor import RayExecutor
    from nc_finetune.run.runner import run_grid, run_serially

    check_executor(executor, ray_address, cpus, gpus)
    path = find_recipe(grid)
    out = out or Path("runs") / path.stem
    console = open_console()
    with only_known_classes(trust):
        plan = read_grid(path)
    if dry_run:
        return _dry_run(plan, out, retry_failed, console)
    check_report_extra()
    run_cells = run_serially if executor == "serial" else RayExecutor(ray_address, cpus=cpus, gpus=gpus)
    try:
        results = run_grid(plan, out, retry_failed=retry_failed, executor=run_cells)
    except ToldToEnd as reason:
        reason.advice = f"finished runs stay in {out / 'results'}; the same command goes on with what is missing"
        raise
    for result in results:
        if result.status != "ok":
            console.print(f"{result.status}: {result.run_id}: {result.error}", style="red")
    files = write_report(results, out)
    print_summary(results, console)
    console.print(f"Report: {files.page}", soft_wrap=True)
    failed = sum(result.status == "failed" for result in results)
    if failed:
        console.print(f"{failed} failed; --retry-failed runs them again")
    return int(failed > 0)


def _dry_run(grid: Grid, out: Path, retry_failed: bool, console: Console) -> int:
    """Print what would run, and what is in the way."""
    from nc_finetune._common.terminal import duration
    from nc_finetune.run.plan import plan_grid, plan_table

    plan = plan_grid(grid, out, retry_failed)
    console.print(plan_table(plan))
    fits = sum(item.cell.fits for item in plan.planned)
    lines = [
        f"{len(plan.cells)} cells, {len(plan.planned)} to run with {fits} fits, about {duration(plan.seconds)}",
        *dict.fromkeys(f"no estimate: {item.reason}" for item in plan.planned if item.reason),
        *(f"no result of this version, to be set aside: {path}" for path in plan.state.unreadable),
        *(f"to be set aside: {path} {difference}" for path, difference in plan.state.outdated.items()),
        *plan.state.problems,
    ]
    console.print(*lines, sep="\n", soft_wrap=True)
    return 0
