"""Compile the part of a backbone that a step trains, as a Lightning callback."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch

from nc_finetune.backbones import replaced_forward


class CompileBlocks(L.Callback):
    """Run the blocks from the first tuned one on through ``torch.compile`` while a fit lasts.

    Each block is compiled on its own, behind its hooks: keys of checkpoints and deltas stay as they are, layers can be
    measured, and :class:`~nc_finetune.callbacks.PrefixCache` cuts before them as ever. Blocks of one kind share their
    code. Passes for measurements run uncompiled. Losses are those of the uncompiled network but for rounding.

    What is trained beside the network, as the copy of side FT, is compiled, too.

    The first steps compile, which takes minutes. What it gains depends on network and device, hence an option: on a
    CPU steps of EfficientNet-Lite0 became slower. Measure with ``benchmarks/performance/step_options.py`` before.

    Args:
        mode: Of ``torch.compile``, e.g. ``"max-autotune-no-cudagraphs"``; ``None`` is its default.
        backend: Of ``torch.compile``.
        dynamic: Of ``torch.compile``: ``None`` compiles again, for batches of any size, when the first batch of
            another size comes.

    Raises:
        TypeError: At the start of the fit, if the module has no backbone and method.

    Attributes:
        compiled: Names of the blocks; of one beside the network, that of the block that it is a copy of.

    Source:
        Ansel et al. 2024, PyTorch 2, 10.1145/3620665.3640366.

    Example:
        >>> CompileBlocks(mode="reduce-overhead").compiled
        ()
    """

    def __init__(self, mode: str | None = None, backend: str = "inductor", dynamic: bool | None = None) -> None:
        self.mode = mode
        self.backend = backend
        self.dynamic = dynamic
        self.compiled: tuple[str, ...] = ()
        self._contexts = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compile the blocks; nothing is left to compile where the head alone is tuned."""
        if not hasattr(pl_module, "backbone") or not hasattr(pl_module, "method"):
            raise TypeError(f"CompileBlocks needs an ImageClassifier, got {type(pl_module).__name__}")
        backbone = pl_module.backbone
        first, names = pl_module.method.first_tuned_layer(backbone), backbone.block_names
        behind = first is not None and first not in names  # the penultimate feature, or a norm before it
        start = 0 if first is None else len(names) if behind else names.index(first)
        method = pl_module.method
        beside = dict(zip(method.input_sources(backbone), method.key_modules(backbone), strict=False))
        blocks = {name: backbone.get_layer(name) for name in names[start:]} | beside
        self.compiled = tuple(blocks)
        # Blocks of one kind share a function, and each kind counts: in train and eval mode, with and without a graph.
        limit = 8 * max(len(self.compiled), 1)
        self._contexts.enter_context(torch._dynamo.config.patch(recompile_limit=limit))
        for block in blocks.values():
            # Its forward alone, not the module: hooks stay outside, and come and go without compiling again.
            compiled = torch.compile(block.forward, mode=self.mode, backend=self.backend, dynamic=self.dynamic)
            self._contexts.enter_context(replaced_forward(block, compiled))

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the network as it was."""
        self._contexts.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Do so, too, where the fit ends early."""
        self._contexts.close()
