"""A backbone whose last convolution gives d features, to be trained from scratch."""

from __future__ import annotations

from typing import Any

from torch import nn

from nc_finetune.backbones.base import Backbone


def narrow_features(backbone: Backbone, width: int) -> Backbone:
    """Give a residual network a penultimate feature of ``width`` dimensions, in place.

    Collapsed features of K classes span K - 1 dimensions, so a net that is trained from scratch needs no more than
    d = K. The last convolution of the last block and its BatchNorm get ``width`` outputs, and the block's shortcut a
    1 x 1 convolution with BatchNorm onto as many (a shortcut that has a convolution already is narrowed, too). With
    d = K = 10 and a fixed head, this saves 21 % of the parameters of a ResNet18 and 4.5 % of those of a ResNet50.

    Args:
        backbone: A ResNet of timm with random weights.
        width: d, at least 1 and below the present width.

    Returns:
        The same backbone.

    Raises:
        ValueError: If the weights are pre-trained (they would be thrown away), the network is no plain ResNet, or the
            width is out of range.

    Source:
        Zhu et al. 2021, A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> narrow_features(TimmBackbone("test_resnet", weights=None), 10).num_features
        10
    """
    block: Any = backbone.get_layer(backbone.block_names[-1])
    _check(backbone, block, width)
    convolution, norm = ("conv3", "bn3") if hasattr(block, "conv3") else ("conv2", "bn2")
    last = getattr(block, convolution)
    with last.weight.device:
        block.downsample = _shortcut(block, width)
        setattr(block, convolution, _convolution(last, width))
        setattr(block, norm, nn.BatchNorm2d(width))
    block.zero_init_last()  # as timm starts every residual branch
    model: Any = backbone.model
    model.num_features = model.head_hidden_size = backbone.num_features = width
    backbone.model.to(memory_format=backbone.memory_format)
    return backbone


def _check(backbone: Backbone, block: Any, width: int) -> None:
    if backbone.weights is not None:
        raise ValueError(
            f"narrowing throws away weights, and {backbone.name!r} has those of {backbone.weights!r};"
            " build it with weights=None, or put a BottleneckHead behind it"
        )
    if not 1 <= width < backbone.num_features:
        raise ValueError(f"width must lie in [1, {backbone.num_features}), got {width}")
    plain = hasattr(block, "downsample") and isinstance(getattr(block, "bn2", None), nn.BatchNorm2d)
    if not plain or getattr(block, "se", None) is not None:
        raise ValueError(
            f"the last block of {backbone.name!r} is not that of a plain ResNet; put a BottleneckHead behind it"
        )


def _shortcut(block: Any, width: int) -> nn.Sequential:
    """Bring the input of the block to as many channels as the narrowed convolution has."""
    if block.downsample is not None:
        *before, convolution, _ = block.downsample
        return nn.Sequential(*before, _convolution(convolution, width), nn.BatchNorm2d(width))
    pointwise = nn.Conv2d(block.conv1.in_channels, width, kernel_size=1, bias=False)
    return nn.Sequential(_convolution(pointwise, width), nn.BatchNorm2d(width))


def _convolution(like: nn.Conv2d, width: int) -> nn.Conv2d:
    """Return a new convolution of other outputs, initialised as timm does."""
    narrowed = nn.Conv2d(
        like.in_channels,
        width,
        like.kernel_size,  # type: ignore[arg-type]
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        dilation=like.dilation,  # type: ignore[arg-type]
        bias=False,
    )
    nn.init.kaiming_normal_(narrowed.weight, mode="fan_out", nonlinearity="relu")
    return narrowed
