"""Cut a network in two before one of its layers, however its forward pass is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nc_finetune.backbones._layers.feature_hooks import replaced_forward, watch_outputs
from nc_finetune.backbones._split.call_record import CallRecord, give_blanks, record_calls
from nc_finetune.backbones._split.layer_inputs import LayerInput, SeenInput, SplitError, samples_axis, watch_seen
from nc_finetune.backbones.base import PENULTIMATE, Backbone
from nc_finetune.backbones.pooling import LayerPooling, hidden_state

# What the cut layer sees, under its name, pooled outputs of earlier layers, under theirs, and what further layers see;
# samples in the first dimension.
PrefixOutput = dict[str, Tensor]


class _Reached(Exception):  # noqa: N818 - a signal, no error
    """The forward pass has come to the cut."""


class _Look(NamedTuple):
    """What was seen when some images were run up to the cut."""

    calls: CallRecord
    cut: Tensor
    inputs: dict[str, SeenInput]


class SplitBackbone:
    """Run a backbone up to a layer, keep what comes out, and go on from there later.

    The forward pass is not rewritten. Up to the cut it runs as it is and is stopped there. From the cut on it runs
    as it is, too, but every module before the cut gives a blank of the right shape at no cost, and the cut layer sees
    what was kept. Blanks are full of ``nan``: where anything else than the cut layer's input comes from before the
    cut, as in a U-shaped network, :meth:`check` finds out.

    Args:
        backbone: The network; what comes before the cut must stay in eval mode.
        cut: Name of the first layer of the second part; ``"penultimate"`` leaves nothing to it.
        skip_layers: Layers whose pooled outputs are wanted; those before the cut become part of the prefix's output.
        input_layers: Layers before the cut beside which other modules run; what these layers see is kept, too.
        image_shape: ``(3, H, W)`` of the images.
        pooling: From a skip layer's output to a vector; see :func:`~nc_finetune.backbones.pool_features`.

    Raises:
        SplitError: If the cut layer or an input layer is not called, its first input is not one tensor, or samples are
            not a dimension of it; or if gradient checkpointing is on.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> backbone = TimmBackbone("test_resnet", weights=None).eval()
        >>> split = SplitBackbone(backbone, "layer3.0", image_shape=(3, 32, 32))
        >>> images = torch.rand(4, 3, 32, 32)
        >>> kept = split.prefix(images)
        >>> with split.resume(kept) as blanks:
        ...     features = backbone(blanks)
        >>> kept["layer3.0"].shape, torch.equal(features, backbone(images))
        (torch.Size([4, 48, 4, 4]), True)
    """

    def __init__(
        self,
        backbone: Backbone,
        cut: str,
        skip_layers: Sequence[str] = (),
        *,
        input_layers: Sequence[str] = (),
        image_shape: Sequence[int],
        pooling: LayerPooling = "default",
    ) -> None:
        self.backbone = backbone
        self.cut = cut
        self.image_shape = tuple(image_shape)
        self.pooling: LayerPooling = pooling
        self._layer = None if cut == PENULTIMATE else backbone.get_layer(cut)
        if self._layer is not None and any(getattr(part, "grad_checkpointing", False) for part in backbone.modules()):
            raise SplitError(
                f"under gradient checkpointing {backbone.name!r} runs its blocks again in the backward pass, without"
                " what was kept; switch one of the two off: what is frozen stores nothing for the backward pass anyway"
            )
        # Two numbers of samples tell which sizes follow them.
        few, more = (self._look(number, skip_layers, input_layers) for number in (2, 3))
        try:
            self._blanks = few.calls.growing(more.calls)
        except ValueError as error:
            raise SplitError(f"{backbone.name!r} cannot be cut: {error}") from error
        self.skip_layers = tuple(layer for layer in skip_layers if backbone.get_layer(layer) in few.calls.called)
        self._dtype = few.cut.dtype
        self._axis = samples_axis(few.cut.shape, more.cut.shape, cut)
        self.input_layers = tuple(input_layers)
        self._inputs = {
            layer: LayerInput.of(layer, few.inputs.get(layer), more.inputs.get(layer)) for layer in input_layers
        }

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.backbone.get_buffer("_mean").device

    @torch.no_grad()
    def prefix(self, images: Tensor) -> PrefixOutput:
        """Run the network up to the cut, without a graph.

        Args:
            images: As the backbone takes them, shape ``(N, 3, H, W)``.

        Returns:
            What the cut layer sees, the pooled outputs of the earlier skip layers, and what the input layers see;
            samples in the first dimension.
        """
        found: PrefixOutput = {}

        def keep(layer: str, output: object) -> None:
            found[layer] = self.backbone.pool(hidden_state(output), self.pooling)

        network = self.backbone.model
        looks = watch_outputs(network, self.skip_layers, keep, check=False)
        with looks, watch_seen(network, self.input_layers) as seen:
            found[self.cut] = self._run_to_cut(images).movedim(self._axis, 0)
        return found | {
            _input_of(layer): seen[layer].first.movedim(kind.axis, 0) for layer, kind in self._inputs.items()
        }

    @contextmanager
    def resume(self, outputs: PrefixOutput) -> Iterator[Tensor]:
        """Let the backbone go on from the cut inside the ``with`` block, once.

        Args:
            outputs: What :meth:`prefix` gave.

        Yields:
            Blank images for the backbone to be called with.
        """
        kept = outputs[self.cut].to(self._dtype)
        with ExitStack() as patches:
            for context in self._stand_ins(kept):
                patches.enter_context(context)
            for layer in self.skip_layers:
                # A vector is its own pooled value.
                give = partial(_give, outputs[layer].to(self._dtype))
                patches.enter_context(replaced_forward(self.backbone.get_layer(layer), give))
            for layer, kind in self._inputs.items():
                patches.enter_context(kind.given(self.backbone.get_layer(layer), outputs[_input_of(layer)]))
            yield torch.full((), torch.nan, device=kept.device).expand(len(kept), *self.image_shape)

    @torch.no_grad()
    def check(self, images: Tensor, features: Callable[[Tensor], Tensor]) -> bool:
        """Compare the two parts with the whole.

        Args:
            images: Some real images.
            features: What the rest of the model makes of images, by calling the backbone once; in eval mode.

        Returns:
            Whether they are the same to the last bit.

        Raises:
            SplitError: If they differ by more than rounding, or the second part does not run on blanks.
        """
        whole = features(images)
        kept = self.prefix(images)
        try:
            with self.resume(kept) as blanks:
                parts = features(blanks)
        except Exception as error:  # plain code between the modules refuses a blank in its own way
            raise SplitError(f"{self.backbone.name!r} does not run from {self.cut!r} on: {error}") from error
        if whole.shape != parts.shape or not _agree(whole, parts):
            raise SplitError(f"what follows {self.cut!r} in {self.backbone.name!r} needs more than its input")
        return torch.equal(whole, parts)

    def _look(self, number: int, skip_layers: Sequence[str], input_layers: Sequence[str]) -> _Look:
        network = self.backbone.model
        images = torch.zeros(number, *self.image_shape, device=self.device)
        seen_through = (*skip_layers, *input_layers)
        with (
            torch.no_grad(),
            watch_seen(network, input_layers) as inputs,
            record_calls(network, number, seen_through) as calls,
        ):
            return _Look(calls, self._run_to_cut(images), inputs)

    def _run_to_cut(self, images: Tensor) -> Tensor:
        if self._layer is None:
            features: Tensor = self.backbone(images)
            return features
        seen: list[Any] = []

        def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.extend(inputs[:1])
            raise _Reached

        with self._layer.register_forward_pre_hook(stop, prepend=True):
            try:
                self.backbone(images)
            except _Reached:
                if seen and isinstance(seen[0], Tensor):
                    return seen[0]
                raise SplitError(f"what {self.cut!r} of {self.backbone.name!r} sees is not one tensor") from None
        raise SplitError(f"the forward pass of {self.backbone.name!r} does not call {self.cut!r}")

    def _stand_ins(self, kept: Tensor) -> Iterator[AbstractContextManager[Any]]:
        """Replace what comes before the cut, until the cut layer is called."""
        if self._layer is None:
            yield replaced_forward(self.backbone, partial(self._give_penultimate, kept))
            return
        modules = {module: module.forward for module in self._blanks}
        reached = False

        def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal reached
            first, reached = not reached, True
            return (kept.movedim(0, self._axis), *inputs[1:]) if first else inputs

        yield self._layer.register_forward_pre_hook(enter, prepend=True)
        yield replaced_forward(self.backbone, self.backbone.penultimate)
        for module, outputs in self._blanks.items():
            yield replaced_forward(module, give_blanks(outputs, len(kept), kept.device, modules[module]))

    def _give_penultimate(self, kept: Tensor, images: Tensor) -> Tensor:
        for layer in self.skip_layers:
            self.backbone.get_layer(layer)(images)
        for seen in map(self.backbone.get_layer, self.input_layers):
            with replaced_forward(seen, partial(_give, kept)):
                seen(images)  # for the sake of those who look at what it sees
        return kept


def _give(value: Tensor, *_inputs: Any, **_named: Any) -> Tensor:
    return value


def _input_of(layer: str) -> str:
    return f"input of {layer}"


def _agree(whole: Tensor, parts: Tensor) -> bool:
    """Tell rounding from what is missing; a blank that got through makes everything nan, so this may be generous."""
    device = whole.device.type
    half = torch.is_autocast_enabled(device) or torch.finfo(whole.dtype).bits < 32
    # Accelerators choose among kernels, some with shorter floats inside.
    tolerance = 5e-2 if half else 1e-5 if device == "cpu" else 1e-3
    if not torch.isfinite(whole).all():
        raise ValueError("features must be finite; look for broken images, or a network that diverged")
    scale = float(whole.float().square().mean().sqrt())
    return torch.allclose(whole.float(), parts.float(), rtol=tolerance, atol=tolerance * scale)
