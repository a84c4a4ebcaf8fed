"""Lightning callbacks that measure collapse while others train."""

from nc_finetune.callbacks.delta_checkpoint import DeltaCheckpoint as DeltaCheckpoint
from nc_finetune.callbacks.layerwise_nc1 import LayerwiseNC1 as LayerwiseNC1
from nc_finetune.callbacks.prediction_writer import PredictionWriter as PredictionWriter
