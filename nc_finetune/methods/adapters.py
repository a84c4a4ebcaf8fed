"""Adapters of the peft library, as baselines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.errors import missing_extra, unknown_name
from nc_finetune.methods.base import FinetuningMethod
from nc_finetune.trust import check_options

# Those that peft injects into linear layers and convolutions alike.
ADAPTERS = ("lora", "loha", "lokr")


class AdapterTuning(FinetuningMethod):
    """Train low-rank updates beside frozen weights, by peft (extra ``peft``), and the head.

    Args:
        adapter: ``"lora"``, ``"loha"`` or ``"lokr"``.
        rank: Rank of the updates, at least 1.
        target_modules: Names of layers in the network, as peft reads them. ``None`` takes, within the blocks, the
            linear layers of the attention where they can be reached (not in torch's own, as in CLIP), otherwise the
            1 x 1 convolutions, and failing those all linear layers and convolutions without groups.
        options: Further arguments of peft's configuration, e.g. ``{"lora_alpha": 16}``.

        ValueError: If the adapter is unknown, the rank below 1, an option is none that steers it, or no layer fits.
        ValueError: If the adapter is unknown, the rank below 1, or no layer fits.
        ImportError: If peft is not installed.

    Source:
        Hu et al. 2021, LoRA, arXiv:2106.09685; Hyeon-Woo, Ye-Bin & Oh 2021, FedPara (LoHa), arXiv:2108.06098;
        Yeh et al. 2023, LyCORIS (LoKr), arXiv:2309.14859.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> AdapterTuning(rank=2).freeze(backbone := TimmBackbone("test_vit", weights=None))
        >>> sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        4608
    """

    name: ClassVar[str] = "adapter"
    label: ClassVar[str] = "LoRA"
    default_learning_rate: ClassVar[float | None] = 3e-3

    def __init__(
        self,
        adapter: str = "lora",
        rank: int = 8,
        target_modules: list[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_options("peft", options or {})
        if adapter not in ADAPTERS:
            raise unknown_name("adapter", adapter, ADAPTERS)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.adapter = adapter
        self.rank = rank
        self.target_modules = target_modules
        self.options = options or {}

    def freeze(self, backbone: Backbone) -> None:
        """Put the adapters in, unless they are there, and leave gradients to them alone."""
        if not self._adapters(backbone):
            self._inject(backbone)
        super().freeze(backbone)

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return nothing: the network stays in eval mode, adapters have no dropout unless asked for."""
        return []

    def tuned_parameters(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Return the parameters of the adapters."""
        return self._adapters(backbone)

    def _adapters(self, backbone: Backbone) -> list[nn.Parameter]:
        prefix = re.compile(rf"(^|\.){self.adapter}_")
        return [value for name, value in backbone.model.named_parameters() if prefix.search(name)]

    def _inject(self, backbone: Backbone) -> None:
        try:
            import peft
        except ImportError as error:
            raise missing_extra("peft", "peft", type(self).__name__) from error
        config = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[self.adapter]
        targets = self.target_modules or default_targets(backbone)
        peft.inject_adapter_in_model(config(r=self.rank, target_modules=targets, **self.options), backbone.model)


def default_targets(backbone: Backbone) -> list[str]:
    """Choose the layers that get adapters unless told otherwise; see :class:`AdapterTuning`.

    Args:
        backbone: The network.

    Returns:
        Names of modules in ``backbone.model``.

    Raises:
        ValueError: If the blocks have neither linear layers nor convolutions without groups.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> default_targets(TimmBackbone("test_vit", weights=None))[:2]
        ['blocks.0.attn.qkv', 'blocks.0.attn.proj']
    """
    layers = {
        f"{block}.{name}": part
        for block in backbone.block_names
        for name, part in backbone.model.get_submodule(block).named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    }
    # Torch's own attention never calls its projection as a module, and peft would add to its frozen weights and take
    # away again at each pass, which leaves rounding behind.
    sealed = tuple(
        f"{name}." for name, part in backbone.model.named_modules() if isinstance(part, nn.MultiheadAttention)
    )
    layers = {name: part for name, part in layers.items() if not name.startswith(sealed)}
    attention = [name for name, part in layers.items() if not isinstance(part, nn.Conv2d) and ".attn" in name]
    pointwise = [name for name, part in layers.items() if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)]
    chosen = attention or pointwise or list(layers)
    if not chosen:
        raise ValueError(f"no layer of {backbone.name!r} takes an adapter; name some in target_modules")
    return chosen
