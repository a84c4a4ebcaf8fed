"""Overcomplete unit-norm tight frames of low coherence, columns in R^n."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coherence(frame: Tensor) -> float:
    """Return the largest ``|<a_i, a_j>|`` of different columns."""
    gram = (frame.T @ frame).abs()
    return float((gram - gram.diagonal().diag()).max())


def tightness_error(frame: Tensor) -> float:
    """Return the largest entry of ``(n/m) A A^T - I``, and of the lengths of the columns less one."""
    rows, columns = frame.shape
    error = (rows / columns * frame @ frame.T - torch.eye(rows, dtype=frame.dtype)).abs().max()
    return float(torch.maximum(error, (frame.norm(dim=0) - 1).abs().max()))


def unbiased_bases(dimension: int, bases: int, generator: torch.Generator) -> Tensor:
    """Join mutually unbiased orthonormal bases: a tight frame with the coherence ``1 / sqrt(n)``.

    The standard basis, and Hadamard's with the signs ``(-1)^q(x)`` of quadratic forms q over two elements, drawn until
    they are unbiased to all before (Kerdock sets; Calderbank et al. 1997, 10.1112/S0024611597000403).

    Args:
        dimension: n, a power of 4.
        bases: m/n, at most n/2 + 1; a few are found at once.
        generator: Of the quadratic forms.
    """
    bits = round(math.log2(dimension))
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(bits):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    points = torch.tensor([[index >> bit & 1 for bit in range(bits)] for index in range(dimension)])
    found = [torch.eye(dimension, dtype=torch.float64), hadamard / math.sqrt(dimension)]
    while len(found) < bases:
        form = torch.randint(2, (bits, bits), generator=generator).triu(1)
        signs = 1.0 - 2.0 * ((points @ form * points).sum(dim=1) % 2)
        candidate = signs.unsqueeze(1) * found[1]
        if all(((basis.T @ candidate).abs() * math.sqrt(dimension) - 1).abs().max() < 1e-9 for basis in found):
            found.append(candidate)
    return torch.cat(found[:bases], dim=1)


def random_tight_frame(dimension: int, columns: int, generator: torch.Generator, rounds: int = 2000) -> Tensor:
    """Draw a unit-norm tight frame by alternating projection on tight and on unit-norm frames.

    Tropp et al. 2005, Designing structured tight frames via an alternating projection method, 10.1109/TIT.2004.839492.
    """
    frame = torch.randn(dimension, columns, generator=generator, dtype=torch.float64)
    for _ in range(rounds):
        left, _, right = torch.linalg.svd(frame, full_matrices=False)
        frame = torch.nn.functional.normalize(left @ right, dim=0)
        if tightness_error(frame) < 1e-12:
            break
    return frame
