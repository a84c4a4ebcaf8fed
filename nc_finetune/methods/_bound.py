"""A method on one backbone, which knows its parts."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nc_finetune.backbones import Backbone

if TYPE_CHECKING:
    from nc_finetune.methods.base import FinetuningMethod


class BoundMethod:
    """What a method tunes and looks at in one backbone, each looked up when it is first asked for, and then known.

    A method has one at a time, from :meth:`~nc_finetune.methods.FinetuningMethod.bind`; it begins anew when the
    backbone is frozen again, or when another block is chosen.

    Args:
        method: The method.
        backbone: The network.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> from nc_finetune.methods import LayerFinetuning
        >>> method, backbone = LayerFinetuning(), TimmBackbone("test_vit", weights=None)
        >>> method.bind(backbone).key_layers, method.bind(backbone) is method.bind(backbone)
        (('blocks.2',), True)
    """

    def __init__(self, method: FinetuningMethod, backbone: Backbone) -> None:
        self.method = method
        self.backbone = backbone

    @cached_property
    def tuned_modules(self) -> tuple[nn.Module, ...]:
        """The parts of the backbone, or of the method itself, that are trained as a whole."""
        return tuple(self.method.tuned_modules(self.backbone))

    @cached_property
    def tuned_parameters(self) -> tuple[nn.Parameter, ...]:
        """What is trained beside the head."""
        return tuple(self.method.tuned_parameters(self.backbone))

    @cached_property
    def batch_norms(self) -> tuple[_BatchNorm, ...]:
        """The BatchNorm layers in the tuned modules."""
        return tuple(part for whole in self.tuned_modules for part in whole.modules() if isinstance(part, _BatchNorm))

    @cached_property
    def key_layers(self) -> tuple[str, ...]:
        """Names of the key blocks."""
        return self.method.key_layers(self.backbone)

    @cached_property
    def key_modules(self) -> tuple[nn.Module, ...]:
        """What is trained at the rate of the key layer."""
        return tuple(self.method.key_modules(self.backbone))

    @cached_property
    def first_tuned_layer(self) -> str | None:
        """The layer before which everything is frozen; see the method's."""
        return self.method.first_tuned_layer(self.backbone)

    @cached_property
    def skip_sources(self) -> tuple[str, ...]:
        """The blocks whose pooled outputs the method looks at."""
        return self.method.skip_sources(self.backbone)

    @cached_property
    def input_sources(self) -> tuple[str, ...]:
        """The blocks whose inputs the method looks at."""
        return self.method.input_sources(self.backbone)
