"""torchmetrics over the functions of :mod:`nc_finetune.functional`."""

from nc_finetune.metrics.neural_collapse import NeuralCollapse as NeuralCollapse
