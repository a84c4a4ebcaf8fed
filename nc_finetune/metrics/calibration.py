"""How far probabilities are from shares of right answers."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

_BINS = 15  # as in Guo et al.


@torch.no_grad()
def calibration_error(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Expected calibration error of ``softmax(logits / temperature)``, in ``[0, 1]``; 0 is best.

    Samples are put into 15 bins of equal width by the probability of the class that they are called; the error is the
    mean over samples of how far, in their bin, that probability lies from the share of right answers. It is above 0 by
    chance alone: of a few hundred samples of calibrated classifiers by one to four points.

    Args:
        logits: Shape ``(N, K)``, floating point. Rows that are not finite are left out.
        target: Shape ``(N,)``, integers in ``[0, K)``.
        temperature: Above 0, e.g. of :func:`~nc_finetune.functional.temperature`, found on other samples.

    Returns:
        The error; ``nan`` where no row is finite.

    Raises:
        ValueError: If the shapes do not fit, as of several labels a sample, or the temperature is not above 0.

    Source:
        Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural networks, arXiv:1706.04599.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0]]).expand(4, 2)  # sure, and right three times of four
        >>> round(calibration_error(logits, torch.tensor([0, 0, 0, 1])), 2)
        0.25
        >>> round(calibration_error(logits, torch.tensor([0, 0, 0, 1]), temperature=9 / 1.0986), 2)
        0.0
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            "calibration is of samples with one label each: logits must have shape (N, K) and target (N,), got"
            f" {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature:g}")
    known = logits.isfinite().all(1)
    if not known.any():
        return float("nan")
    probabilities = (logits[known].double() / temperature).softmax(1)
    return multiclass_calibration_error(
        probabilities, target[known].long(), logits.shape[1], n_bins=_BINS, norm="l1", validate_args=False
    ).item()
