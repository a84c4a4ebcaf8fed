"""The normalisation layer that a network's penultimate feature comes out of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nc_finetune.backbones._layers.dry_run import Watch
from nc_finetune.backbones._layers.feature_hooks import watch_outputs
from nc_finetune.backbones.norms import is_norm

Run = Callable[[Watch], Tensor]


def find_final_norm(network: nn.Module, last: str, calls: list[str], run: Run) -> str | None:
    """Name the last normalisation that everything from the last block to the penultimate feature passes through.

    What runs is looked at, not what was registered when: forward passes without data show whether the feature still
    depends on the block once the output of a normalisation behind it is cut out of the graph. Normalisations on a
    branch beside which something else passes, such as the one before the MLP of an attention pooling, are none. Where
    nothing with parameters follows the last block, its own closing normalisation counts, as in networks whose blocks
    are stages (GCViT, PVTv2).

    Args:
        network: The network.
        last: Its last block.
        calls: As of :func:`called_layers`.
        run: Runs the network without data in a context, and gives the penultimate feature.

    Returns:
        Its name in the network; ``None`` if there is none.
    """
    if last not in calls:
        return None
    end = len(calls) - 1 - calls[::-1].index(last)
    behind = calls[end + 1 :]
    for name in reversed(dict.fromkeys(behind)):
        if is_norm(network.get_submodule(name)) and not _gets_past(network, last, name, run):
            return name
    # The block has come to its end after its last part.
    closing = calls[end - 1] if end else last
    inside = closing.startswith(f"{last}.") and is_norm(network.get_submodule(closing))
    if not behind and inside and not _gets_past(network, last, closing, run, from_input=True):
        return closing
    return None


def called_layers(network: nn.Module, block_names: Collection[str], run: Run) -> list[str]:
    """Name the blocks and the modules with parameters of their own that a forward pass calls, as they come to an end.

    Args:
        network: The network.
        block_names: Its blocks.
        run: Runs it without data in a context.

    Returns:
        Names in the network, as often as each is called.
    """
    names = [
        name
        for name, part in network.named_modules()
        if name in block_names or (name and any(True for _ in part.parameters(recurse=False)))
    ]
    calls: list[str] = []

    @contextmanager
    def watch() -> Iterator[None]:
        calls.clear()
        with watch_outputs(network, names, lambda name, _: calls.append(name), check=False):
            yield

    run(watch)
    return calls


def _gets_past(network: nn.Module, block: str, norm: str, run: Run, *, from_input: bool = False) -> bool:
    """Say whether the feature depends on a block's output, or input, on a way beside a normalisation."""

    @contextmanager
    def watch() -> Iterator[None]:
        source = network.get_submodule(block)
        trace = partial(pytree.tree_map_only, Tensor, _traced)
        start = (
            source.register_forward_pre_hook(lambda _, inputs: trace(inputs))
            if from_input
            else source.register_forward_hook(lambda _, __, output: trace(output))
        )
        cut = network.get_submodule(norm).register_forward_hook(lambda _, __, output: output.detach())
        with start, cut:
            yield

    return run(watch).requires_grad


def _traced(value: Tensor) -> Tensor:
    # A copy, which may be written into, of what the graph begins with.
    return value.detach().requires_grad_().clone() if value.is_floating_point() else value
