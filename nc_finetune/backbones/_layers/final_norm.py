"""The normalisation layer that a network's penultimate feature comes out of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

from nc_finetune.backbones._layers.dry_run import dry_run
from nc_finetune.backbones.norms import is_norm

if TYPE_CHECKING:
    from nc_finetune.backbones.base import Backbone


def find_final_norm(backbone: Backbone) -> str | None:
    """Name the last normalisation that everything from the last block to the penultimate feature passes through.

    What runs is looked at, not what was registered when: forward passes without data show which normalisations are
    called after the last block, and whether the feature still depends on the block once the output of one of them is
    cut out of the graph. Normalisations on a branch beside which something else passes, such as the one before the MLP
    of an attention pooling, are none. Where nothing with parameters follows the last block, its own closing
    normalisation counts, as in networks whose blocks are stages (GCViT, PVTv2).

    Args:
        backbone: The network; it is left as it is.

    Returns:
        Its name in ``backbone.model``; ``None`` if there is none.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> find_final_norm(TimmBackbone("test_vit", weights=None))
        'norm'
        >>> find_final_norm(TimmBackbone("test_resnet", weights=None)) is None
        True
    """
    last = backbone.block_names[-1]
    calls = called_layers(backbone)
    if last not in calls:
        return None
    end = len(calls) - 1 - calls[::-1].index(last)
    behind = calls[end + 1 :]
    for name in reversed(dict.fromkeys(behind)):
        if _is_norm_of(backbone, name) and not _gets_past(backbone, last, name):
            return name
    # The block has come to its end after its last part.
    closing = calls[end - 1] if end else last
    inside = closing.startswith(f"{last}.") and _is_norm_of(backbone, closing)
    if not behind and inside and not _gets_past(backbone, last, closing, from_input=True):
        return closing
    return None


def called_layers(backbone: Backbone) -> list[str]:
    """Name the blocks and the modules with parameters of their own that a forward pass calls, as they come to an end.

    Modules whose weights others use without calling them, such as the projections of ``nn.MultiheadAttention``, are
    left out.

    Args:
        backbone: The network; it is left as it is.

    Returns:
        Names in ``backbone.model``, as often as each is called.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> called_layers(TimmBackbone("test_vit", weights=None))[-2:]
        ['blocks.5', 'norm']
    """
    names = [
        name
        for name, part in backbone.model.named_modules()
        if name in backbone.block_names or (name and any(True for _ in part.parameters(recurse=False)))
    ]
    calls: list[str] = []

    def note(name: str, *_: Any) -> None:
        calls.append(name)

    @contextmanager
    def watch() -> Iterator[None]:
        calls.clear()
        with ExitStack() as hooks:
            for name in names:
                hooks.enter_context(backbone.model.get_submodule(name).register_forward_hook(partial(note, name)))
            yield

    dry_run(backbone, watch)
    return calls


def _is_norm_of(backbone: Backbone, name: str) -> bool:
    return is_norm(backbone.model.get_submodule(name))


def _gets_past(backbone: Backbone, block: str, norm: str, *, from_input: bool = False) -> bool:
    """Say whether the feature depends on a block's output, or input, on a way beside a normalisation."""

    @contextmanager
    def watch() -> Iterator[None]:
        source, layer = backbone.model.get_submodule(block), backbone.model.get_submodule(norm)
        with ExitStack() as hooks:
            if from_input:
                enter = lambda _, inputs: _each(_traced, inputs)  # noqa: E731
                hooks.enter_context(source.register_forward_pre_hook(enter))
            else:
                hooks.enter_context(source.register_forward_hook(lambda _, __, output: _each(_traced, output)))
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output: output.detach()))
            yield

    return dry_run(backbone, watch).requires_grad


def _traced(value: Tensor) -> Tensor:
    # A copy, which may be written into, of what the graph begins with.
    return value.detach().requires_grad_().clone() if value.is_floating_point() else value


def _each(change: Callable[[Tensor], Tensor], values: Any) -> Any:
    return pytree.tree_map_only(Tensor, change, values)
