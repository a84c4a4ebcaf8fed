"""From a layer's output to one vector a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["default", "average", "class_token", "flatten"]
Statistic = Literal["mean", "std"]
LayerPooling = Pooling | tuple[Statistic, ...]


def pool_features(
    output: Tensor,
    num_prefix_tokens: int = 0,
    channels_last: bool = False,
    has_class_token: bool = True,
    *,
    pooling: LayerPooling = "default",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reduce the output of a layer to shape ``(N, D)``.

    Args:
        output: A map ``(N, D, H, W)``, tokens ``(N, T, D)``, or a vector ``(N, D)``, returned as it is.
        num_prefix_tokens: Class and register tokens in front of the patch tokens.
        channels_last: The map has shape ``(N, H, W, D)``, as in Swin.
        has_class_token: The first of the prefix tokens is the class token; otherwise all of them are registers.
        pooling: ``"default"`` averages maps over space and takes of tokens the class token if there is one, the mean
            of the patch tokens otherwise; ``"average"`` takes the mean of the patch tokens in any case;
            ``"class_token"`` refuses tokens without one; ``"flatten"`` keeps every entry, in any number of dimensions.
            Several statistics stand side by side: ``"mean"`` over positions, beside the class token where there is
            one, and ``"std"``, their standard deviation; a vector, which has no positions, comes as it is.
        dtype: Dtype of the result; averages are taken in it, so that half precision loses nothing more.

    Returns:
        Features of shape ``(N, D)``.

    Raises:
        ValueError: If the output has another number of dimensions, or lacks the class token that was asked for.

    Example:
        >>> pool_features(torch.ones(2, 8, 4, 4)).shape, pool_features(torch.ones(2, 17, 8), 1).shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
        >>> pool_features(torch.ones(2, 8, 4, 4), pooling="flatten").shape
        torch.Size([2, 128])
    """
    if pooling == "flatten" and output.ndim >= 2:
        return output.flatten(1).to(dtype or output.dtype)
    if isinstance(pooling, tuple) and output.ndim in (3, 4):
        if output.ndim == 4:
            positions, class_token = output.flatten(1, 2) if channels_last else output.flatten(2).mT, None
        else:
            positions = output[:, num_prefix_tokens:]
            class_token = output[:, 0] if num_prefix_tokens and has_class_token else None
        return _statistics(positions, class_token, pooling, dtype)
    if output.ndim == 4:
        return output.mean(dim=(1, 2) if channels_last else (2, 3), dtype=dtype)
    if output.ndim == 3:
        return _pool_tokens(output, num_prefix_tokens, num_prefix_tokens > 0 and has_class_token, pooling, dtype)
    if output.ndim == 2:
        return output.to(dtype or output.dtype)
    raise ValueError(
        f"a layer's output must have 2 (N, D), 3 (N, T, D) or 4 (N, D, H, W) dimensions, got {tuple(output.shape)}"
    )


def _statistics(
    positions: Tensor, class_token: Tensor | None, wanted: tuple[Statistic, ...], dtype: torch.dtype | None
) -> Tensor:
    """Lay statistics over positions, shape ``(N, T, D)``, side by side; squares of half precision overflow."""
    exact, parts = positions.to(torch.promote_types(positions.dtype, torch.float32)), []
    if "mean" in wanted:
        parts += [exact.mean(1)] if class_token is None else [class_token, exact.mean(1)]
    if "std" in wanted:
        parts.append(_root(exact.var(1, correction=0)))
    return torch.cat([part.to(dtype or positions.dtype) for part in parts], dim=1)


def _root(variances: Tensor) -> Tensor:
    """Take square roots, 0 of 0, where the slope is infinite and 0 stands for it."""
    there = variances > 0
    return torch.where(there, torch.where(there, variances, 1).sqrt(), 0)


def _pool_tokens(
    tokens: Tensor, num_prefix_tokens: int, has_class_token: bool, pooling: LayerPooling, dtype: torch.dtype | None
) -> Tensor:
    if pooling == "class_token" and not has_class_token:
        raise ValueError("there is no class token to take; choose pooling 'default' or 'average'")
    if has_class_token and pooling != "average":
        return tokens[:, 0].to(dtype or tokens.dtype)
    return tokens[:, num_prefix_tokens:].mean(dim=1, dtype=dtype)


def hidden_state(output: object) -> Tensor:
    """Return what a layer hands on to the next one: its output, or the first part of it.

    Args:
        output: A tensor, or a tuple or dataclass of transformers whose first part is one. Nothing else in it may be a
            tensor of as many dimensions, since then nobody knows which is the hidden state; attention maps, caches and
            sizes may.

    Raises:
        TypeError: If it is anything else.

    Example:
        >>> tokens, attention = torch.zeros(2, 5, 8), torch.zeros(2, 4, 5, 5)
        >>> hidden_state((tokens, attention, None)).shape
        torch.Size([2, 5, 8])
    """
    if isinstance(output, Tensor):
        return output
    parts = tuple(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, (tuple, list)) and parts and isinstance(first := parts[0], Tensor):
        others = [part for part in parts[1:] if isinstance(part, Tensor) and part.ndim == first.ndim]
        if not others:
            return first
    raise TypeError(f"it must give one tensor, got {_describe(output)}; name a layer around or inside it, with layers=")


def _describe(output: object) -> str:
    if not isinstance(output, (tuple, list)):
        return type(output).__name__
    parts = [str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in output]
    return f"{type(output).__name__} of {', '.join(parts)}"
