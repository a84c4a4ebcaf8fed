"""Simplex equiangular tight frames and orthogonal frames: building them, and turning them towards class means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nc_finetune.functional.simplex_etf import centred_means, check_class_means


def _check_frame(num_classes: int, dim: int) -> None:
    if num_classes < 2 or dim < 1:
        raise ValueError(f"a frame needs num_classes of at least 2 and dim of at least 1, got {num_classes} and {dim}")


def _check_simplex(num_classes: int, dim: int, allow_projection: bool) -> None:
    _check_frame(num_classes, dim)
    if dim < num_classes - 1 and not allow_projection:
        raise ValueError(
            f"a simplex ETF of {num_classes} classes needs at least {num_classes - 1} dimensions, got {dim};"
            " widen the features, or set allow_projection=True for its best projection"
        )


def _simplex_basis(num_classes: int) -> Tensor:
    """Return an orthonormal basis of what is orthogonal to the ones (Helmert's), shape (K, K - 1)."""
    index = torch.arange(1, num_classes, dtype=torch.float64)
    basis = torch.ones(num_classes, num_classes - 1, dtype=torch.float64).triu() - torch.diag(index, -1)[:, :-1]
    scaled: Tensor = basis / (index * (index + 1)).sqrt()
    return scaled


def _random_isometry(rows: int, columns: int, seed: int) -> Tensor:
    """Draw a matrix whose rows or columns, whichever are fewer, are orthonormal: uniform (Haar)."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    factor, triangle = torch.linalg.qr(gaussian)
    isometry: Tensor = factor * triangle.diagonal().sign()  # without the signs the law depends on how QR is computed
    return isometry if rows >= columns else isometry.T


def _nearest_isometry(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    isometry: Tensor = left @ right
    return isometry


def _nearest_simplex(means: Tensor) -> Tensor:
    """Return the nearest matrix ``V Q``, V a basis of the simplex' space and Q an isometry, in mean length 1."""
    classes, dim = means.shape
    basis = _simplex_basis(classes).to(means.device)
    nearest: Tensor = basis @ _nearest_isometry(basis.T @ means)
    return nearest * math.sqrt(classes / min(dim, classes - 1))


def _with_equal_lengths(frame: Tensor, max_steps: int = 100) -> Tensor:
    """Alternate between rows of length 1 and the projections of a simplex, until a frame is both."""
    classes, dim = frame.shape
    if 2 * dim > classes - 1:
        # What is orthogonal to such a frame is one, too: the smaller of both is found faster.
        complement = _complement(_with_equal_lengths(_complement(frame), max_steps))
        return complement @ _nearest_isometry(complement.T @ frame) * math.sqrt(classes / dim)
    if dim == 1:  # where steps change no sign, hence nothing
        halves = frame.argsort(dim=0).argsort(dim=0) >= classes // 2
        return _nearest_simplex(2 * halves.double() - 1)
    for _ in range(max_steps):
        lengths = torch.linalg.vector_norm(frame, dim=1, keepdim=True)
        if torch.allclose(lengths, torch.ones_like(lengths), rtol=0, atol=1e-9):
            break
        frame = _nearest_simplex(frame / lengths)
    return frame


def _complement(frame: Tensor) -> Tensor:
    """Return an orthonormal basis of what is orthogonal to the ones and to the columns."""
    spanned = torch.cat([torch.ones_like(frame[:, :1]), frame], dim=1)
    orthonormal: Tensor = torch.linalg.qr(spanned, mode="complete").Q
    return orthonormal[:, spanned.shape[1] :]


def simplex_etf(num_classes: int, dim: int, *, seed: int | None = None, allow_projection: bool = False) -> Tensor:
    """Build a simplex equiangular tight frame: K unit vectors, all at cosine ``-1/(K - 1)``.

    ``sqrt(K/(K - 1)) (I - 11^T/K) P^T`` with a partial isometry P of shape ``(D, K)``.

    With fewer than K - 1 dimensions there is none. The best projection is then a frame whose Gram matrix is, up to a
    factor, nearest in the Frobenius norm to that of the simplex among all of rank D; features trained with the mean
    squared error converge to such a one. ``I - 11^T/K`` has K - 1 equal eigenvalues, so by Eckart and Young every
    projector on D dimensions orthogonal to the ones is equally near. Of those one with rows of equal length is taken,
    since a shorter row would handicap its class; it is found from a random start by alternating projections. There is
    such a frame (a spherical 2-design) for all K > D but K = D + 2 with D odd; lengths then differ a little.

    Args:
        num_classes: K, at least 2.
        dim: D.
        seed: Of a random orientation, uniform over all; ``None`` is the canonical one, with the leading coordinates.
        allow_projection: Take the best projection where D is below K - 1, which has no canonical orientation.

    Returns:
        Shape ``(K, D)``, float64.

    Raises:
        ValueError: If K is below 2, or D too small, or a projection is asked for without a seed.

    Source:
        Papyan, Han & Donoho 2020, 10.1073/pnas.2015509117. Projections: Zhou et al. 2022, On the optimization
        landscape of neural collapse under MSE loss, arXiv:2203.01238; Tropp et al. 2005, Designing structured tight
        frames via an alternating projection method, 10.1109/TIT.2004.839492; Mimura 1990, A construction of spherical
        2-design, 10.1007/BF01810295.

    Example:
        >>> frame = simplex_etf(3, 2)
        >>> torch.round(frame @ frame.T, decimals=6).tolist()
        [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    """
    _check_simplex(num_classes, dim, allow_projection)
    basis, rank = _simplex_basis(num_classes), min(dim, num_classes - 1)
    if seed is not None:
        frame = basis @ _random_isometry(num_classes - 1, dim, seed) * math.sqrt(num_classes / rank)
        return frame if rank == num_classes - 1 else _with_equal_lengths(frame)
    if rank < num_classes - 1:
        raise ValueError("the projection of a simplex ETF has no canonical orientation: give a seed")
    corners = basis @ basis.T if dim >= num_classes else basis
    return torch.nn.functional.pad(corners * math.sqrt(num_classes / rank), (0, dim - corners.shape[1]))


def nearest_simplex_etf(means: Tensor, *, allow_projection: bool = False) -> Tensor:
    """Orient a simplex ETF of unit vectors as near as can be to class means (orthogonal Procrustes problem).

    Of all simplex ETFs W with rows of length 1 the one with the largest ``tr(W M^T)``: the polar factor of the centred
    means. The scale and the mean of the class means do not matter.

    Args:
        means: Class means M, shape ``(K, D)``, K at least 2.
        allow_projection: Where D is below K - 1, start from the nearest projection of a simplex and make its rows
            equally long; see :func:`simplex_etf`.

    Returns:
        Shape ``(K, D)``, float64, on the device of the means.

    Raises:
        ValueError: If the shape is another, D too small, or the means are not finite or all the same.

    Source:
        Schonemann 1966, A generalized solution of the orthogonal Procrustes problem, 10.1007/BF02289451.

    Example:
        >>> bool(torch.allclose(nearest_simplex_etf(7 * simplex_etf(4, 6, seed=3) + 1), simplex_etf(4, 6, seed=3)))
        True
    """
    centred = centred_means(means)
    _check_simplex(len(means), means.shape[1], allow_projection)
    if not centred.isfinite().all() or not centred.any():
        raise ValueError("class means must be finite and not all the same: they give no orientation")
    nearest = _nearest_simplex(centred)
    return _with_equal_lengths(nearest) if means.shape[1] < len(means) - 1 else nearest


def orthogonal_frame(num_classes: int, dim: int, *, seed: int | None = None) -> Tensor:
    """Build K orthonormal vectors.

    Args:
        num_classes: K, at least 2.
        dim: D, at least K.
        seed: Of a random orientation, uniform over all; ``None`` takes the leading coordinate axes.

    Returns:
        Shape ``(K, D)``, float64.

    Raises:
        ValueError: If K is below 2, or D below K.

    Example:
        >>> orthogonal_frame(2, 3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    _check_frame(num_classes, dim)
    if dim < num_classes:
        raise ValueError(
            f"an orthogonal frame of {num_classes} classes needs as many dimensions, got {dim}; widen the features"
        )
    return torch.eye(num_classes, dim).double() if seed is None else _random_isometry(num_classes, dim, seed)


def nearest_orthogonal_frame(means: Tensor) -> Tensor:
    """Orient an orthonormal frame as near as can be to *uncentred* class means (orthogonal Procrustes problem).

    Args:
        means: Class means, shape ``(K, D)``, K at least 2, D at least K.

    Returns:
        Shape ``(K, D)``, float64, on the device of the means.

    Raises:
        ValueError: If the shape is another, D below K, or the means are not finite or all zero.

    Source:
        Schonemann 1966, A generalized solution of the orthogonal Procrustes problem, 10.1007/BF02289451.

    Example:
        >>> nearest_orthogonal_frame(torch.tensor([[3.0, 0.0], [0.0, 2.0]])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    means = check_class_means(means)
    orthogonal_frame(len(means), means.shape[1])  # refuses what is too narrow
    if not means.isfinite().all() or not means.any():
        raise ValueError("class means must be finite and not all zero: they give no orientation")
    return _nearest_isometry(means)
