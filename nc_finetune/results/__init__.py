"""What a run leaves behind, and the facts by which it is known again."""

from nc_finetune.results.merging import merge_results as merge_results
from nc_finetune.results.result import Result as Result
from nc_finetune.results.result import read_result as read_result
from nc_finetune.results.result import read_results as read_results
from nc_finetune.results.result import write_result as write_result
