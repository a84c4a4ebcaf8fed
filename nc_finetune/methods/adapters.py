"""Adapters of the peft library, as baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from nc_finetune._common.trust import check_options
from nc_finetune.backbones import Backbone, watch_input
from nc_finetune.errors import check_name, missing_extra
from nc_finetune.methods.base import FinetuningMethod

# Those that peft injects into linear layers and convolutions alike.
ADAPTERS = ("lora", "loha", "lokr")
_ATTENTION = ".attn"


class AdapterTuning(FinetuningMethod):
    """Train low-rank updates beside frozen weights, by peft (extra ``peft``), and the head.

    Args:
        adapter: ``"lora"``, ``"loha"`` or ``"lokr"``.
        rank: Rank of the updates, at least 1.
        target_modules: Names of layers in the network, as peft reads them. ``None`` takes, within the blocks, the
            linear layers of the attention, or all linear layers where some of the attention's cannot be reached;
            without an attention the 1 x 1 convolutions, and failing those all linear layers and convolutions without
            groups. Layers that are never called, since others read their weights, cannot be reached: those of torch's
            own attention, as in CLIP, or of the queries and keys of BEiT and Swin V2. What images do not pass through,
            such as the network that makes Swin V2's position biases, is left out.
        options: Further arguments of peft's configuration, e.g. ``{"lora_alpha": 16, "lora_dropout": 0.1}``. Dropout
            works while fitting, and the frozen layers beside it stay in eval mode.

    Raises:
        ValueError: If the adapter is unknown, the rank below 1, or an option is none that steers it; when the model is
            built, if no layer fits, a target cannot be reached, or the backbone has other adapters already.
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
        check_name("adapter", adapter, ADAPTERS)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.adapter = adapter
        self.rank = rank
        self.target_modules = target_modules
        self.options = options or {}

    def freeze(self, backbone: Backbone) -> None:
        """Put the adapters in, unless they are there, and leave gradients to them alone.

        Raises:
            ValueError: If the backbone has other adapters, or a target is no layer that the forward pass calls.
        """
        if adapted := _adapted_layers(backbone):
            self._check_same(backbone, adapted)
        else:
            self._inject(backbone)
        super().freeze(backbone)

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the adapters, with the dropout before them."""
        layers = _adapted_layers(backbone).values()
        return [part for layer in layers for name, part in layer.named_children() if name != "base_layer"]

    def set_modes(self, backbone: Backbone) -> None:
        """Put the adapters into train mode, for the sake of their dropout, and all else into eval mode."""
        super().set_modes(backbone)
        for layer in _adapted_layers(backbone).values():
            layer.training = True  # LoHa and LoKr drop out by what their layer says, not by a module of their own

    def _config(self, backbone: Backbone) -> Any:
        peft = _import_peft()
        config = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[self.adapter]
        return config(r=self.rank, target_modules=self.target_modules or default_targets(backbone), **self.options)

    def _inject(self, backbone: Backbone) -> None:
        config = self._config(backbone)
        called = set(backbone.called_layers())
        bypassed = [name for name in _matching(config, backbone) if name not in called]
        if bypassed and self.target_modules is not None:
            raise ValueError(
                f"the forward pass of {backbone.name!r} does not call {', '.join(bypassed[:3])}: it reads their weights"
                " itself, or not at all, and an adapter there would change nothing; leave them out of target_modules"
            )
        _import_peft().inject_adapter_in_model(config, backbone.model)
        if not _adapted_layers(backbone):
            raise ValueError(f"no layer of {backbone.name!r} got an adapter; name others in target_modules")

    def _check_same(self, backbone: Backbone, adapted: Mapping[str, nn.Module]) -> None:
        """Refuse adapters that were put in with another configuration: their rank would stay."""
        found, wanted = next(iter(backbone.model.peft_config.values())), self._config(backbone)  # type: ignore[operator]
        options = {"r": self.rank, **self.options}
        differ = [name for name in options if getattr(found, name, None) != getattr(wanted, name)]
        if found.peft_type != wanted.peft_type:
            differ = ["peft_type"]
        if set(_matching(wanted, backbone)) != set(adapted):
            differ.append("target_modules")
        if differ:
            raise ValueError(
                f"{backbone.name!r} has {found.peft_type.value} adapters of rank {found.r} in {len(adapted)} layers"
                f" already, with another {', '.join(differ)} than asked for; build a new backbone"
            )


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "peft", AdapterTuning.__name__) from error
    return peft


def _adapted_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """Return the layers that peft has put in the place of others, by name."""
    kind = _import_peft().tuners.tuners_utils.BaseTunerLayer
    return {name: part for name, part in backbone.model.named_modules() if isinstance(part, kind)}


def _matching(config: Any, backbone: Backbone) -> list[str]:
    """Name the layers that a configuration of peft means, whether they have adapters or not."""
    matches = _import_peft().tuners.tuners_utils.check_target_module_exists
    inside = tuple(f"{name}." for name in _adapted_layers(backbone))
    names = [name for name, _ in backbone.model.named_modules() if not name.startswith(inside)]
    return [name for name in names if matches(config, name)]


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
    adapted = _adapted_layers(backbone)
    called = {name.removesuffix(".base_layer") for name in backbone.called_layers()}
    inside = tuple(f"{block}." for block in backbone.block_names)
    named = {name: getattr(part, "base_layer", part) for name, part in backbone.model.named_modules() if name in called}
    layers = {
        name: part
        for name, part in named.items()
        if name.startswith(inside) and not name.startswith(tuple(f"{other}." for other in adapted))
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    }
    fed = _fed_by_images(backbone, layers)
    layers = {name: part for name, part in layers.items() if name in fed}
    linear = [name for name, part in layers.items() if not isinstance(part, nn.Conv2d)]
    attention = [name for name in linear if _ATTENTION in name]
    if attention and _has_unreachable(backbone, inside, called):
        attention = linear
    pointwise = [name for name, part in layers.items() if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)]
    chosen = attention or pointwise or list(layers)
    if not chosen:
        raise ValueError(f"no layer of {backbone.name!r} takes an adapter; name some in target_modules")
    return chosen


def _has_unreachable(backbone: Backbone, inside: tuple[str, ...], called: set[str]) -> bool:
    """Tell whether an attention in the blocks reads the weights of a linear layer without calling it."""
    adapters = tuple(f"{name}." for name in _adapted_layers(backbone))
    return any(
        isinstance(part, nn.Linear) and _ATTENTION in name and name not in called
        for name, part in backbone.model.named_modules()
        if name.startswith(inside) and not name.startswith(adapters)
    )


def _fed_by_images(backbone: Backbone, names: Iterable[str]) -> set[str]:
    """Return the layers whose input depends on the images, by a pass without data."""
    fed: set[str] = set()

    def take(name: str, seen: object) -> None:
        if isinstance(seen, Tensor) and seen.requires_grad:
            fed.add(name)

    @contextmanager
    def watch() -> Iterator[None]:
        fed.clear()
        with ExitStack() as hooks:
            hooks.enter_context(backbone.register_forward_pre_hook(lambda _, given: (given[0].requires_grad_(),)))
            for name in names:
                hooks.enter_context(watch_input(backbone.get_layer(name), name, take, check=False))
            yield

    backbone.dry_run(watch)
    return fed
