"""What the rest of the library needs to know of a pre-trained network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nc_finetune.backbones._layers.block_layout import BlockLayout
from nc_finetune.backbones._layers.dry_run import Watch, dry_run
from nc_finetune.backbones._layers.final_norm import called_layers, find_final_norm
from nc_finetune.backbones.pooling import LayerPooling
from nc_finetune.backbones.preprocessing import Preprocessing
from nc_finetune.errors import unknown_name

STEM = "stem"
PENULTIMATE = "penultimate"
# Red, green and blue in grey, as in ITU-R BT.601 and Pillow.
_LUMA = (0.299, 0.587, 0.114)


class Backbone(nn.Module, ABC):
    """A network without its classifier: images in, penultimate features ``(N, num_features)`` out.

    Images come as uint8 in 0...255 or as floats in 0...1, shape ``(N, 3, H, W)``; the normalisation that the weights
    want happens here, so that no caller can forget it or choose the wrong one.

    Args:
        model: The network.
        name: Its architecture.
        weights: Where its weights came from; ``None`` is random initialisation.
        num_features: Width of the penultimate feature.
        block_names: Names of the blocks in ``model``, in the order of the forward pass.
        preprocessing: How the weights want their images.
        num_prefix_tokens: Class and register tokens in front of the patch tokens; 0 for convolution nets.
        maps_channels_last: Inner maps have shape ``(N, H, W, D)``.
        has_class_token: The first of the prefix tokens is the class token, and the classifier reads it; otherwise all
            of them are left out.

    Attributes:
        base_hash: :func:`~nc_finetune.backbones.weights_hash` of ``model`` before it was tuned, once recorded.

    Raises:
        ValueError: If the network has no blocks.
    """

    base_hash: str | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        weights: str | None,
        num_features: int,
        block_names: tuple[str, ...],
        preprocessing: Preprocessing,
        num_prefix_tokens: int = 0,
        maps_channels_last: bool = False,
        has_class_token: bool = True,
    ) -> None:
        super().__init__()
        if not block_names:
            raise ValueError(f"no residual or transformer blocks are known of {name!r}; choose another backbone")
        self.model = model
        self.name = name
        self.weights = weights
        self.num_features = num_features
        self.block_names = block_names
        self.num_prefix_tokens = num_prefix_tokens
        self.maps_channels_last = maps_channels_last
        self.has_class_token = has_class_token
        self._final_norm_name: str | None = None  # not looked for yet
        blocks = (model.get_submodule(block) for block in block_names)
        convolutional = any(isinstance(part, nn.Conv2d) for block in blocks for part in block.modules())
        # Worth a factor of two for convolution nets on a CPU, and more on tensor cores.
        self.set_channels_last(convolutional)
        self.set_preprocessing(preprocessing)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers that are measured, in order: ``"stem"``, every block, ``"penultimate"``."""
        return (STEM, *self.block_names, PENULTIMATE)

    @property
    def middle_block(self) -> str:
        """The block halfway through: the key layer unless another is named, ``"layer3.0"`` of a ResNet50."""
        return self.block_names[(len(self.block_names) - 1) // 2]

    @property
    def layout(self) -> BlockLayout:
        """Where the blocks are in ``model``, and how they lay out their outputs."""
        return BlockLayout(self.block_names, self.num_prefix_tokens, self.maps_channels_last, self.has_class_token)

    @property
    def final_norm_name(self) -> str:
        """Name in ``model`` of :attr:`final_norm`, found once.

        It is the last normalisation that everything from the last block to the penultimate feature passes through in
        a forward pass, whatever the order in which modules were registered.

        Raises:
            ValueError: If the network has none, as a ResNet.
        """
        if self._final_norm_name is None:
            last, calls = self.block_names[-1], self.called_layers()
            self._final_norm_name = find_final_norm(self.model, last, calls, self.dry_run) or ""
        if not self._final_norm_name:
            raise ValueError(
                f"{self.name!r} has no layer norm between its last block and the classifier, nor another normalisation"
                " that everything passes through"
            )
        return self._final_norm_name

    @property
    def final_norm(self) -> nn.Module:
        """The normalisation that the penultimate feature comes out of, mostly a layer norm.

        Raises:
            ValueError: If the network has none, as a ResNet.
        """
        return self.model.get_submodule(self.final_norm_name)

    def forward(self, images: Tensor) -> Tensor:
        """Return the penultimate features.

        Args:
            images: Shape ``(N, 3, H, W)``, uint8 in 0...255 or floating point in 0...1.

        Returns:
            Shape ``(N, num_features)``.

        Raises:
            ValueError: If the network takes no images of that size, or gives no vector an image.
        """
        try:
            features = self.penultimate(self.normalize(images))
        except AssertionError as error:  # timm's own check, in a tower of open_clip, too
            raise ValueError(
                f"{self.name} takes no images of {tuple(images.shape[2:])} pixels ({error}); resize them, such as to"
                f" {self.preprocessing.image_size}"
            ) from error
        if features.ndim != 2:
            raise ValueError(
                f"the penultimate feature of {self.name!r} must have shape (N, D), got {tuple(features.shape)}; build"
                " it with a pooling"
            )
        return features

    @abstractmethod
    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return the penultimate features of normalised images."""

    def normalize(self, images: Tensor) -> Tensor:
        """Bring images to the scale that the weights were trained on; colours to grey for a network of one channel.

        Raises:
            ValueError: If the images have another shape or number of channels.
            TypeError: If they are neither uint8 nor floating point.
        """
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        if images.ndim == 4 and images.shape[1] == len(_LUMA) and len(mean) == 1:
            weights = mean.new_tensor(_LUMA).view(-1, 1, 1)
            grey = (images.to(mean.dtype) * weights).sum(dim=1, keepdim=True)
            images = grey / 255 if images.dtype == torch.uint8 else grey
        if images.ndim != 4 or images.shape[1] != len(mean):
            raise ValueError(f"images must have shape (N, {len(mean)}, H, W), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8 in 0...255 or floating point in 0...1, got {images.dtype}")
        if images.dtype == torch.uint8:
            mean, std = mean * 255, std * 255
        return ((images.to(mean.dtype) - mean) / std).contiguous(memory_format=self.memory_format)

    def set_channels_last(self, on: bool) -> None:
        """Let maps lie in memory with their channels last, which convolution nets do unless told otherwise, or not."""
        self.memory_format = torch.channels_last if on else torch.contiguous_format
        for value in (*self.model.parameters(), *self.model.buffers()):
            if value.ndim == 4:  # others, as the weights of lambda layers, have no such format
                value.data = value.data.contiguous(memory_format=self.memory_format)

    def set_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Prepare images in another way; for weights that are loaded after the network was built."""
        self.preprocessing = preprocessing
        for statistic in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, statistic)).view(-1, 1, 1)
            self.register_buffer(f"_{statistic}", values, persistent=False)

    def pool(self, output: Tensor, pooling: LayerPooling = "default") -> Tensor:
        """Reduce a block's output to shape ``(N, D)``; see :func:`~nc_finetune.backbones.pool_features`."""
        return self.layout.pool(output, pooling)

    def dry_run(self, watch: Watch, image_size: int | None = None) -> Tensor:
        """Run on two blank images without data or memory, on the meta device; the network is left as it is.

        Args:
            watch: Makes the context in which it runs, such as hooks; called anew where a second attempt is needed,
                since the network does not run on that device.
            image_size: Height and width; ``None`` is what the network is bound to, or what its weights were trained on.

        Returns:
            The features, shape ``(2, num_features)``.

        Example:
            >>> from contextlib import nullcontext
            >>> from nc_finetune.backbones import TimmBackbone
            >>> TimmBackbone("test_vit", weights=None).dry_run(nullcontext)
            tensor(..., device='meta', size=(2, 64))
        """
        side = image_size or self.preprocessing.image_size
        size = (None if image_size else _bound_size(self.model)) or (side, side)
        return dry_run(self, (len(self.get_buffer("_mean")), *size), watch)

    def nearest_size(self, pixels: int) -> int:
        """Return the image size nearest to one that patches of a transformer fill without a rest; others take any.

        Args:
            pixels: Height and width that are wanted.

        Example:
            >>> from nc_finetune.backbones import TimmBackbone
            >>> TimmBackbone("test_vit", weights=None).nearest_size(100)
            96
        """
        step = _patch_size(self.model)
        return max(1, round(pixels / step)) * step

    def called_layers(self) -> list[str]:
        """Name the blocks and the modules with parameters of their own that a forward pass calls.

        Modules whose weights others use without calling them, such as the projections of ``nn.MultiheadAttention``,
        are left out.

        Returns:
            Names in ``model``, in the order in which they come to an end, as often as each is called.

        Example:
            >>> from nc_finetune.backbones import TimmBackbone
            >>> TimmBackbone("test_vit", weights=None).called_layers()[-2:]
            ['blocks.5', 'norm']
        """
        return called_layers(self.model, self.block_names, self.dry_run)

    def get_layer(self, layer: str) -> nn.Module:
        """Return a block, or another submodule, of the network by name.

        Raises:
            ValueError: If there is none of that name; the message lists the blocks.
        """
        try:
            return self.model.get_submodule(layer or "?")
        except AttributeError:
            raise unknown_name("layer", layer, self.block_names) from None


def _bound_size(network: nn.Module) -> tuple[int, int] | None:
    """Return the height and width that position embeddings were made for, where a part of the network says so."""
    return _pair(network, "img_size")


def _patch_size(network: nn.Module) -> int:
    return max(_pair(network, "patch_size") or (1,))


def _pair(network: nn.Module, attribute: str) -> tuple[int, int] | None:
    found = (getattr(part, attribute, None) for part in network.modules())
    pairs = ((int(value[0]), int(value[1])) for value in found if isinstance(value, (tuple, list)) and len(value) == 2)
    return next(pairs, None)
