"""Benchmarks: grids of runs, their results, and reports of them."""

from nc_finetune.benchmark.grid import Grid as Grid
from nc_finetune.benchmark.grid import read_grid as read_grid
from nc_finetune.benchmark.results import Result as Result
from nc_finetune.benchmark.results import read_results as read_results
from nc_finetune.benchmark.runner import run_grid as run_grid
