"""What open_clip's visual towers are made of: their blocks, and the projection behind their features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.backbones._layers.block_layout import BlockLayout, find_layout


@dataclass(frozen=True)
class Tower:
    """A visual tower and what the rest needs to know of it.

    Attributes:
        layout: Where its blocks are, and how they lay out their outputs.
        num_features: Width of what ``split`` leaves the tower to give.
        split: Takes the projection off the tower in place; from then on the tower gives the features before it.
        projection_key: Name, or prefix of the names, of the projection in the tower's own state dict.
        image_size: Height and width that the tower is bound to; ``None`` if any will do.
    """

    layout: BlockLayout
    num_features: int
    split: Callable[[], nn.Module]
    projection_key: str
    image_size: tuple[int, int] | None = None


class Projection(nn.Module):
    """The matrix behind a transformer's features.

    Args:
        proj: Shape ``(num_features, embed_dim)``.
    """

    def __init__(self, proj: nn.Parameter) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings ``(N, embed_dim)``."""
        return features @ self.proj


class AttentionPool(nn.Module):
    """The attention pooling of CLIP's ResNets without the projection at its end (Radford et al. 2021, 2103.00020).

    The mean over space asks, all places answer; what each attention head brings stands side by side.

    Args:
        pool: open_clip's ``AttentionPool2d``, whose parameters are shared.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.positional_embedding = pool.positional_embedding
        self.k_proj, self.q_proj, self.v_proj = pool.k_proj, pool.q_proj, pool.v_proj
        self.num_heads = pool.num_heads

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps ``(N, D, H, W)`` to ``(N, D)``."""
        places = maps.flatten(2).transpose(1, 2)  # (N, H * W, D)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query, key, value = (
            layer(inputs).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, inputs in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return F.scaled_dot_product_attention(query, key, value).flatten(1)  # (N, heads, 1, D / heads) before


def describe_tower(visual: Any) -> Tower:
    """Describe the visual tower of an open_clip model.

    Args:
        visual: ``model.visual``: a transformer, a ResNet, or a timm network.

    Returns:
        Its description.

    Raises:
        ValueError: If the tower is of another kind, or no one rule pools its blocks.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    kinds: dict[type, Callable[[Any], Tower]] = {
        VisionTransformer: _transformer,
        ModifiedResNet: _resnet,
        TimmModel: _timm,
    }
    if type(visual) not in kinds:
        raise ValueError(f"open_clip's {type(visual).__name__} is no visual tower that is known; choose another one")
    return kinds[type(visual)](visual)


def _transformer(visual: Any) -> Tower:
    visual.output_tokens = False  # CoCa's towers would give their tokens, too
    class_token = visual.attn_pool is None and visual.pool_type == "tok"

    def split() -> nn.Module:
        projection = Projection(visual.proj)
        visual.proj = None
        return projection

    return Tower(
        layout=replace(find_layout(visual), num_prefix_tokens=1, has_class_token=class_token),
        num_features=visual.proj.shape[0],
        split=split,
        projection_key="proj",
        image_size=visual.image_size,
    )


def _resnet(visual: Any) -> Tower:
    def split() -> nn.Module:
        projection: nn.Module = visual.attnpool.c_proj
        visual.attnpool = AttentionPool(visual.attnpool)
        return projection

    size = visual.image_size
    return Tower(
        layout=find_layout(visual),
        num_features=visual.attnpool.c_proj.in_features,
        split=split,
        projection_key="attnpool.c_proj",
        image_size=(size, size) if isinstance(size, int) else size,
    )


def _timm(visual: Any) -> Tower:
    trunk, head = visual.trunk, visual.head
    # The projection is open_clip's own behind the trunk, or the trunk's classifier.
    classifier = trunk.pretrained_cfg["classifier"]

    def split() -> nn.Module:
        if hasattr(head, "pool"):
            raise ValueError("the projection of this tower is part of its attention pooling; take features='projected'")
        if len(head):
            visual.head = nn.Identity()
            return head  # type: ignore[no-any-return]
        projection: nn.Module = trunk.get_classifier()
        trunk.reset_classifier(0)
        return projection

    layout = find_layout(trunk)  # of the trunk alone: an MLP that projects is no block
    return Tower(
        layout=replace(layout, block_names=tuple(f"trunk.{name}" for name in layout.block_names)),
        num_features=trunk.head_hidden_size,
        split=split,
        projection_key="head" if len(head) else f"trunk.{classifier}",
    )
