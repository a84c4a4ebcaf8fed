"""How good a classifier is: what is measured of its logits, for one label a sample or several."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from nc_finetune.metrics.balanced_accuracy import BalancedAccuracy

# What is looked at first: one of them is there, whatever the labels are.
MAIN_METRICS = ("accuracy", "average_precision")


def classification_metrics(num_classes: int, multilabel: bool = False) -> nn.ModuleDict:
    """Build the metrics of a split, by the names under which they are logged.

    Of samples with one label they are ``accuracy``, the share of right decisions, and ``balanced_accuracy``, the mean
    of that share over classes. Of samples with several it is ``average_precision`` ("mAP"): how well the samples of a
    class are ranked before the others, the mean over classes; it needs no threshold. All lie in ``[0, 1]``, 1 is best.

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
        return nn.ModuleDict({"average_precision": MultilabelAveragePrecision(num_classes, validate_args=False)})
    accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
    return nn.ModuleDict({"accuracy": accuracy, "balanced_accuracy": BalancedAccuracy(num_classes)})


def check_targets(targets: Tensor, num_samples: int, num_classes: int, multilabel: bool = False) -> Tensor:
    """Return targets as int64, or refuse what is none; values are looked at on the CPU alone, where it is free.

    Args:
        targets: Shape ``(N,)``, integers in ``[0, K)``; for several labels a sample ``(N, K)``, 0 or 1, of any dtype.
        num_samples: N.
        num_classes: K.
        multilabel: Which of both.

    Raises:
        ValueError: If the shape is another, or a value is out of range.

    Example:
        >>> import torch
        >>> check_targets(torch.tensor([[True, False]]), 1, 2, multilabel=True)
        tensor([[1, 0]])
    """
    shape = (num_samples, num_classes) if multilabel else (num_samples,)
    if tuple(targets.shape) != shape or (targets.is_floating_point() and not multilabel):
        wanted = "0 or 1 for each class" if multilabel else "integers"
        several = f" (for several labels a sample, {(num_samples, num_classes)}, use PickAllLabelsLoss)"
        raise ValueError(
            f"labels must be {wanted} of shape {shape}, got {targets.dtype} of shape {tuple(targets.shape)}"
            f"{'' if multilabel else several}"
        )
    if targets.device.type != "cpu" or not targets.numel():
        return targets.long()
    if multilabel and not ((targets == 0) | (targets == 1)).all():
        raise ValueError(f"labels must be 0 or 1, got values from {targets.min().item()} to {targets.max().item()}")
    if not multilabel and not 0 <= targets.min() <= targets.max() < num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {int(targets.min())} to {int(targets.max())};"
            " set num_classes to the number of classes in the data"
        )
    return targets.long()
