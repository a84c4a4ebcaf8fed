"""Labels, as metrics and losses take them."""

from __future__ import annotations

from torch import Tensor


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
    targets = targets.long()  # torch finds no extremes of some smaller dtypes
    if not multilabel and not 0 <= targets.min() <= targets.max() < num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {int(targets.min())} to {int(targets.max())};"
            " set num_classes to the number of classes in the data"
        )
    return targets
