"""Metrics: collapse, over the functions of :mod:`nc_finetune.functional`, and the quality of classifiers."""

from nc_finetune.metrics.accuracy import Accuracy as Accuracy
from nc_finetune.metrics.average_precision import AveragePrecision as AveragePrecision
from nc_finetune.metrics.balanced_accuracy import BalancedAccuracy as BalancedAccuracy
from nc_finetune.metrics.calibration import calibration_error as calibration_error
from nc_finetune.metrics.classification import MAIN_METRICS as MAIN_METRICS
from nc_finetune.metrics.classification import classification_metrics as classification_metrics
from nc_finetune.metrics.neural_collapse import NeuralCollapse as NeuralCollapse
from nc_finetune.metrics.targets import check_targets as check_targets
from nc_finetune.metrics.weighted_mean import WeightedMean as WeightedMean
