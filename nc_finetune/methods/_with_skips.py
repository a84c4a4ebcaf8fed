"""What methods have in common whose classifier sees more than the penultimate feature."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from nc_finetune.backbones import PENULTIMATE, Backbone
from nc_finetune.errors import check_name
from nc_finetune.methods._skips import SkipConnections, SkipJoin, SkipPooling, SkipScale, features_with_skips
from nc_finetune.methods.base import FinetuningMethod


class WithSkips(FinetuningMethod):
    """The first base of a method with skips; their sources are what :meth:`skip_sources` says."""

    def add_skips(self, number: int, scale: SkipScale, join: SkipJoin, pooling: SkipPooling) -> None:
        """Take the options of the skips.

        Raises:
            ValueError: If ``scale``, ``join`` or ``pooling`` is another word.
        """
        check_name("join of a skip", join, get_args(SkipJoin))
        check_name("pooling of a skip", pooling, get_args(SkipPooling))
        self.scale = scale
        self.join: SkipJoin = join
        self.pooling: SkipPooling = pooling
        self.skips = SkipConnections(number, scale)

    def joining_layer(self, backbone: Backbone) -> str:
        """Return the first layer that sees anything of a skip: ``"penultimate"``, or the final norm before that.

        Raises:
            ValueError: If the skip joins before a final norm, and there is none.
        """
        return PENULTIMATE if self.join != "before_norm" else backbone.final_norm_name

    def freeze(self, backbone: Backbone) -> None:
        """Leave gradients to what is tuned alone, and find where the skips join.

        Raises:
            ValueError: If they join at a final norm, and the backbone has none.
        """
        if self.join != "feature":  # now, and not at the first step, which may be traced or compiled
            _ = backbone.final_norm
        super().freeze(backbone)

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the penultimate feature plus the scaled, pooled and zero-padded outputs of the skips' sources.

        Raises:
            ValueError: If a skip is wider than the penultimate feature, or the forward pass does not call its block.
        """
        layers = self.bind(backbone).skip_sources
        return features_with_skips(backbone, layers, images, self.skips, join=self.join, pooling=self.pooling)
