"""Lightning callbacks: they measure collapse, save or solve while others train."""

from nc_finetune.callbacks._collapse.callback import CollapseCallback as CollapseCallback
from nc_finetune.callbacks._collapse.measurement import MeasurementError as MeasurementError
from nc_finetune.callbacks.average_epochs import AverageEpochs as AverageEpochs
from nc_finetune.callbacks.best_epoch import BestEpoch as BestEpoch
from nc_finetune.callbacks.collapse_monitor import CollapseMonitor as CollapseMonitor
from nc_finetune.callbacks.compile_blocks import CompileBlocks as CompileBlocks
from nc_finetune.callbacks.delta_checkpoint import DeltaCheckpoint as DeltaCheckpoint
from nc_finetune.callbacks.head_alignment import HeadAlignment as HeadAlignment
from nc_finetune.callbacks.keep_statistics import KeepStatistics as KeepStatistics
from nc_finetune.callbacks.layerwise_nc1 import LayerwiseNC1 as LayerwiseNC1
from nc_finetune.callbacks.prediction_writer import Prediction as Prediction
from nc_finetune.callbacks.prediction_writer import PredictionWriter as PredictionWriter
from nc_finetune.callbacks.prefix_cache import PrefixCache as PrefixCache
from nc_finetune.callbacks.probe_path import ProbePath as ProbePath
from nc_finetune.callbacks.progress_lines import ProgressLines as ProgressLines
from nc_finetune.callbacks.readout_solver import ReadoutSolver as ReadoutSolver
from nc_finetune.callbacks.resumable_run import ResumableRun as ResumableRun
from nc_finetune.callbacks.resumable_run import RunInterruptedError as RunInterruptedError
from nc_finetune.callbacks.solve_head import HeadScore as HeadScore
from nc_finetune.callbacks.solve_head import SolveHead as SolveHead
