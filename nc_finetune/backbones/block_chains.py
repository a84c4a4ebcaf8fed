"""Which blocks feed which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

from nc_finetune.backbones._layers.feature_hooks import watch_input, watch_outputs
from nc_finetune.backbones.base import Backbone


def find_block_chains(backbone: Backbone, image_size: int | None = None) -> tuple[tuple[str, ...], ...]:
    """Group the blocks into chains, in each of which a block sees exactly what the block before it gives.

    A chain ends where something stands between two blocks, such as the downsampling between the stages of a ConvNeXt.
    It is found in a forward pass without data or memory (on the meta device).

    Args:
        backbone: The network; it is left as it is.
        image_size: Height and width of its images; ``None`` is what the network is bound to, or what its weights were
            trained on.

    Returns:
        All of ``backbone.block_names`` in order, grouped.

    Raises:
        ValueError: If the forward pass does not call every block, in the order of ``block_names``.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> find_block_chains(TimmBackbone("test_convnext", weights=None))
        (('stages.0.blocks.0',), ('stages.1.blocks.0', 'stages.1.blocks.1'), ('stages.2.blocks.0',...
    """
    inputs, outputs = _trace(backbone, image_size)
    if tuple(outputs) != backbone.block_names:
        raise ValueError(
            f"the forward pass of {backbone.name!r} must call its blocks in order, got {', '.join(outputs)}"
        )
    chains: list[tuple[str, ...]] = []
    for block in backbone.block_names:
        if chains and inputs[block] is outputs[chains[-1][-1]]:
            chains[-1] = (*chains[-1], block)
        else:
            chains.append((block,))
    return tuple(chains)


def _trace(backbone: Backbone, size: int | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    @contextmanager
    def watch() -> Iterator[None]:
        inputs.clear()
        outputs.clear()
        with ExitStack() as watches:
            watches.enter_context(watch_outputs(backbone.model, backbone.block_names, outputs.__setitem__))
            for block in backbone.block_names:
                watches.enter_context(watch_input(backbone.get_layer(block), block, inputs.__setitem__))
            yield

    backbone.dry_run(watch, size)
    return inputs, outputs
