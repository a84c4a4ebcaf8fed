"""Grids of runs: read, planned and run, one result file each."""

from nc_finetune.run._cell.run import run_cell as run_cell
from nc_finetune.run.grid import Grid as Grid
from nc_finetune.run.grid import read_grid as read_grid
from nc_finetune.run.runner import run_grid as run_grid
