"""From a layer's output to one vector a sample."""

from __future__ import annotations

from torch import Tensor


def pool_features(
    output: Tensor, num_prefix_tokens: int = 0, channels_last: bool = False, has_class_token: bool = True
) -> Tensor:
    """Reduce the output of a layer to shape ``(N, D)``.

    Args:
        output: A map ``(N, D, H, W)``, averaged over space; tokens ``(N, T, D)``, of which the class token is taken
            if there is one and the mean of the patch tokens otherwise; or a vector ``(N, D)``, returned as it is.
        num_prefix_tokens: Class and register tokens in front of the patch tokens.
        channels_last: The map has shape ``(N, H, W, D)``, as in Swin.
        has_class_token: The first of the prefix tokens is the class token; otherwise all of them are registers.

    Returns:
        Features of shape ``(N, D)``.

    Raises:
        ValueError: If the output has another number of dimensions.

    Example:
        >>> import torch
        >>> pool_features(torch.ones(2, 8, 4, 4)).shape, pool_features(torch.ones(2, 17, 8), 1).shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """
    if output.ndim == 4:
        return output.mean(dim=(1, 2) if channels_last else (2, 3))
    if output.ndim == 3:
        class_token = num_prefix_tokens > 0 and has_class_token
        return output[:, 0] if class_token else output[:, num_prefix_tokens:].mean(dim=1)
    if output.ndim == 2:
        return output
    raise ValueError(
        f"a layer's output must have 2 (N, D), 3 (N, T, D) or 4 (N, D, H, W) dimensions, got {tuple(output.shape)}"
    )
