"""How good a classifier is: what is measured of its logits, for one label a sample or several."""

from __future__ import annotations

from torch import nn

from nc_finetune.metrics.accuracy import Accuracy
from nc_finetune.metrics.average_precision import AveragePrecision
from nc_finetune.metrics.balanced_accuracy import BalancedAccuracy

# What is looked at first: one of them is there, whatever the labels are.
MAIN_METRICS = ("accuracy", "average_precision")


def classification_metrics(num_classes: int, multilabel: bool = False) -> nn.ModuleDict:
    """Build the metrics of a split, by the names under which they are logged.

    Of samples with one label they are ``accuracy``, the share of right decisions, and ``balanced_accuracy``, the mean
    of that share over classes. Of samples with several it is ``average_precision`` ("mAP"): how well the samples of a
    class are ranked before the others, the mean over the classes that occur; it needs no threshold. All lie in
    ``[0, 1]``, 1 is best, and are ``nan``, with a warning, without samples or where predictions are not finite.

    Args:
        num_classes: K.
        multilabel: Targets have shape ``(N, K)``, 0 or 1.

    Returns:
        Metrics to be updated with class probabilities and targets.

    Example:
        >>> import torch
        >>> metrics = classification_metrics(2, multilabel=True)
        >>> metrics["average_precision"](torch.tensor([[0.6, 0.4], [0.1, 0.9]]), torch.tensor([[1, 0], [1, 1]]))
        tensor(1.)
    """
    if multilabel:
        return nn.ModuleDict({"average_precision": AveragePrecision(num_classes)})
    return nn.ModuleDict({"accuracy": Accuracy(num_classes), "balanced_accuracy": BalancedAccuracy(num_classes)})
