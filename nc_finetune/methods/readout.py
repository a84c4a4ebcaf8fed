"""The collapse readout: pooled outputs of several layers side by side, under a head that is solved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nc_finetune.backbones import (
    PENULTIMATE,
    STEM,
    Backbone,
    LayerChoice,
    NetworkLayers,
    Statistic,
    choose_layers,
    hidden_state,
    watch_outputs,
)
from nc_finetune.errors import check_name
from nc_finetune.functional.discriminant import Priors, checked_shrinkages
from nc_finetune.functional.readout import SolvedHead, solve_head
from nc_finetune.heads import unit_length
from nc_finetune.methods._wrapping import asks_inner
from nc_finetune.methods.base import AUTO, FinetuningMethod
from nc_finetune.methods.linear_probe import LinearProbe

LayerGroup = Literal["later_half", "penultimate", "last_blocks", "all"]
_LAST_BLOCKS = 3
_GIVEN = "given"


@asks_inner
class LayerReadout(FinetuningMethod):
    """Classify by pooled outputs of several layers, side by side; without a method the head is solved, not trained.

    Inner layers hold what the last one has dropped: the further a task is from what the network was trained on, the
    more they add. By itself the readout leaves the network as it is. One pass over the training images, in which
    nothing is trained, gives class means and within-class covariance, and these the head, a ``torch.nn.Linear``: the
    shrunk discriminant of :func:`~nc_finetune.functional.linear_discriminant`, with shrinkage and temperature of the
    best leave-one-out likelihood. ``Trainer(max_epochs=1).fit`` is all; the epoch takes no step, and validates. Each
    process takes its share of the images, and all get the same head.

    With a method its part of the network is trained under these features, and so is the head:
    ``LayerReadout("later_half", method=SkipConnectionFinetuning())`` with ``head=DiscriminantHead`` begins where the
    readout ends. What the method gives to its classifier then stands in place of the penultimate feature.

    Args:
        layers: ``"penultimate"`` alone, or with it ``"last_blocks"`` (three), the blocks of the ``"later_half"``, or of
            ``"all"`` of the network; ``"auto"`` chooses among these by leave-one-out, ``"later_half"`` unless another
            is clearly better. Or a list of names, patterns and indices of blocks, a name, a pattern, or how many of
            the last blocks, as for :class:`~nc_finetune.callbacks.LayerwiseNC1`; ``"penultimate"`` is then a name.
        pooling: Statistics over the positions of a map or of tokens: ``"mean"`` (of tokens the class token, too, where
            there is one), ``"std"``, or both.
        normalize: Divide each statistic of each layer by its length, so that none outweighs the others.
        shrinkage: Of the covariance, in ``(0, 1]``, or several to choose from; ``None`` chooses from 1e-4 to 1.
        priors: Of the classes: ``"equal"``, or ``"counts"`` of the training images.
        method: What is tuned under these features; ``None`` is nothing.
        given: Put what the method gives, as it is, behind all that: for a head that was trained on it, such as the
            second one of a :class:`~nc_finetune.heads.MeanHead`.
        frozen: Look at the layers of a second network, which is the first one as it is when it is first asked for its
            features, and stays so whatever the method tunes; it is part of this method, of its deltas too, and costs
            a forward pass of its own. Its penultimate feature stands beside its layers.

    Raises:
        ValueError: If an argument is another word or out of range, layers are to be chosen beside a method, or
            ``given`` or ``frozen`` is wanted and there is no method.

    Source:
        Fisher 1936, 10.1111/j.1469-1809.1936.tb02137.x; features of all layers: Evci et al. 2022, Head2Toe,
        arXiv:2201.03529; closed forms on pre-trained features: McDonnell et al. 2023, RanPAC, arXiv:2307.02251.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> backbone, method = TimmBackbone("test_vit", weights=None), LayerReadout("later_half")
        >>> method.layer_names(backbone), method.num_features(backbone)  # class token, mean and std of three blocks
        (('blocks.3', 'blocks.4', 'blocks.5', 'penultimate'), 640)
        >>> method.features(backbone, torch.rand(2, 3, 160, 160)).shape
        torch.Size([2, 640])
    """

    name: ClassVar[str] = "readout"
    label: ClassVar[str] = "readout"
    pooling: tuple[Statistic, ...] = ("mean", "std")

    def __init__(
        self,
        layers: LayerChoice = AUTO,
        pooling: Sequence[Statistic] = ("mean", "std"),
        normalize: bool = True,
        *,
        shrinkage: float | Sequence[float] | None = None,
        priors: Priors = "equal",
        method: FinetuningMethod | None = None,
        given: bool = False,
        frozen: bool = False,
    ) -> None:
        super(FinetuningMethod, self).__init__()  # options, such as the mode of BatchNorm, are the method's
        statistics: tuple[Statistic, ...] = (pooling,) if isinstance(pooling, str) else tuple(pooling)  # type: ignore[assignment]
        for statistic in statistics:
            check_name("statistic to pool by", statistic, get_args(Statistic))
        if not statistics:
            raise ValueError("pooling must name at least one of mean and std, got none")
        if method is not None and layers == AUTO:
            raise ValueError(
                "layers='auto' is chosen for a frozen network; beside a method name them, such as 'later_half'"
            )
        if given and method is None:
            raise ValueError("given=True is for a head that was trained on what a method gives; name the method, too")
        if frozen and method is None:
            raise ValueError(
                "frozen=True keeps a network from what a method tunes of it, and there is none; leave it out"
            )
        check_name("priors", priors, get_args(Priors))
        checked_shrinkages(shrinkage)
        self.layers = layers
        self.pooling = tuple(dict.fromkeys(statistics))
        self.normalize = normalize
        self.shrinkage = shrinkage
        self.priors: Priors = priors
        self.method = method
        self.given = given
        self.frozen = frozen
        self.layers_chosen = False
        self.network: Backbone | None = None
        self._frozen = LinearProbe()

    bind = FinetuningMethod.bind

    @property
    def inner(self) -> FinetuningMethod:
        """What decides about the network: the method, or one that leaves it as it is."""
        return self.method or self._frozen

    @property
    def trains(self) -> bool:
        """Whether there is a method; otherwise the head is solved."""
        return self.method is not None

    @property
    def own_head(self) -> Callable[[int, int], nn.Module] | None:
        """A linear layer, to be solved; with a method there is a choice."""
        return None if self.trains else nn.Linear

    @property
    def solution(self) -> Callable[..., SolvedHead] | None:
        """The shrunk discriminant; ``None`` where a method trains the head."""
        return None if self.trains else partial(solve_head, shrinkage=self.shrinkage, priors=self.priors)

    @property
    def changes_features(self) -> bool:
        """Whether the classifier sees something else than what the backbone gives: other layers, too."""
        return True

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return what the method trains; nothing, where there is none."""
        return self.inner.tuned_modules(backbone)

    def network_of(self, backbone: Backbone) -> Backbone:
        """Return the network whose layers are looked at: the backbone, or the second one, which begins as its copy."""
        if not self.frozen:
            return backbone
        if self.network is None:
            self.inner.freeze(backbone)  # which may add adapters: the copy has them, whenever it is made
            self.network = copy.deepcopy(backbone).requires_grad_(False).eval()
        return self.network

    def set_modes(self, backbone: Backbone) -> None:
        """Do as the method does; what is frozen is in eval mode."""
        self.inner.set_modes(backbone)
        if self.network is not None:
            self.network.eval()

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return what the method says; ``None`` beside a second network, which has to see the images."""
        return None if self.frozen else self.inner.first_tuned_layer(backbone)

    def freeze(self, backbone: Backbone) -> None:
        """Leave gradients to what the method tunes, and look the layers up."""
        self._bound = None
        self.inner.freeze(backbone)
        if self.frozen:
            self.network_of(backbone).requires_grad_(False)
        self.pieces(backbone)  # now, and not at the first step, which may be traced or compiled

    def layer_names(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the layers, in the order of the network; all that may be chosen, where that is still to be done.

        Raises:
            ValueError: If there are none of these names, or the stem is among them.
        """
        groups = layer_groups(backbone)
        if self.layers is None or self.layers == AUTO:
            return groups["all"]
        if isinstance(self.layers, str) and self.layers in groups:
            return groups[self.layers]
        # What the classifier sees is what comes out of the backbone.
        network = NetworkLayers(backbone, backbone.model, backbone, backbone.layout)
        try:
            found = choose_layers(network, self.layers)
        except ValueError as error:
            raise ValueError(f"{error}; words for groups of layers are {', '.join((AUTO, *groups))}") from None
        named = [self.layers] if isinstance(self.layers, str | int) else [*self.layers]
        if STEM in named or found == (STEM,):
            raise ValueError(
                f"layers={self.layers!r} takes in the stem, which is no module with an output of its own; name blocks,"
                f" such as {', '.join(backbone.block_names[:2])}"
            )
        return tuple(layer for layer in found if layer != STEM)  # of a pattern for all

    def columns(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the columns of :meth:`features` by the words among which ``"auto"`` chooses; otherwise all of them.

        Of words that mean the same layers, the first.
        """
        widths = self.widths(backbone)
        places = dict(zip(widths, torch.split(torch.arange(sum(widths.values())), [*widths.values()]), strict=True))
        if self.layers != AUTO:
            return {"given": torch.cat(list(places.values()))}
        groups = layer_groups(backbone)
        first: dict[tuple[str, ...], str] = {}
        for name in get_args(LayerGroup):
            first.setdefault(groups[name], name)
        return {name: torch.cat([places[layer] for layer in layers]) for layers, name in first.items()}

    def choose(self, layers: LayerChoice) -> None:
        """Take other layers from now on; the head has to be built anew."""
        self.layers_chosen |= self.layers == AUTO
        self.layers = layers

    def pieces(self, backbone: Backbone) -> dict[str, tuple[int, ...]]:
        """Return the widths of the statistics of each layer, by its name.

        Raises:
            ValueError: If the output of a layer cannot be pooled, or the forward pass does not call it.
        """
        return self.bind(backbone).known("pieces", self._find_pieces)

    def widths(self, backbone: Backbone) -> dict[str, int]:
        """Return the width of the part of each layer, by its name, and behind them of what is ``"given"``."""
        widths = {layer: sum(widths) for layer, widths in self.pieces(backbone).items()}
        return widths | ({_GIVEN: self.inner.num_features(backbone)} if self.given else {})

    def num_features(self, backbone: Backbone) -> int:
        """Return how wide all parts are together."""
        return sum(self.widths(backbone).values())

    def skip_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks, and those that the method looks at."""
        own = (layer for layer in self.layer_names(backbone) if layer != PENULTIMATE and not self.frozen)
        return tuple(dict.fromkeys((*own, *self.inner.skip_sources(backbone))))

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return the parts of all layers side by side, shape ``(N, D)``.

        Raises:
            ValueError: If the output of a layer cannot be pooled, or the forward pass does not call it.
        """
        pieces, network = self.pieces(backbone), self.network_of(backbone)
        looking = self._frozen if self.frozen else self.inner
        with self._pooled_outputs(network, pieces) as parts:
            parts[PENULTIMATE] = given = looking.features(network, images)
        _check_called(backbone, pieces, parts)
        found = torch.cat([parts[layer] for layer in pieces], dim=1)
        found = self.normalized(backbone, found) if self.normalize else found
        if not self.given:
            return found
        given = self.inner.features(backbone, images) if self.frozen else given
        return torch.cat([found, given], dim=1)

    def normalized(self, backbone: Backbone, features: Tensor) -> Tensor:
        """Divide each statistic of each layer by its length, shape ``(N, D)``."""
        widths = [width for layer in self.pieces(backbone).values() for width in layer]
        return torch.cat([unit_length(piece) for piece in torch.split(features, widths, dim=1)], dim=1)

    @contextmanager
    def _pooled_outputs(
        self, backbone: Backbone, layers: Iterable[str], also: Callable[[str, Tensor], None] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Pool the outputs of layers at once: a later one may write into them in place."""
        parts: dict[str, Tensor] = {}

        def take(layer: str, output: object) -> None:
            try:
                state = hidden_state(output)
                parts[layer] = backbone.pool(state, self.pooling)
            except (TypeError, ValueError) as error:
                raise ValueError(f"layer {layer!r} has no place in a readout: {error}; leave it out") from error
            if also is not None:
                also(layer, state)

        with watch_outputs(backbone.model, [layer for layer in layers if layer != PENULTIMATE], take, check=False):
            yield parts

    def _find_pieces(self, backbone: Backbone) -> dict[str, tuple[int, ...]]:
        layers, network = self.layer_names(backbone), self.network_of(backbone)
        looking = self._frozen if self.frozen else self.inner
        singles = {PENULTIMATE: looking.num_features(network)}
        whole: dict[str, int] = {}

        def note(layer: str, output: Tensor) -> None:
            singles[layer] = network.pool(output).shape[1]

        @contextmanager
        def watch() -> Iterator[None]:
            with self._pooled_outputs(network, layers, note) as parts:
                yield
            whole.update({layer: part.shape[1] for layer, part in parts.items()})

        network.dry_run(watch)
        whole[PENULTIMATE] = singles[PENULTIMATE]
        _check_called(backbone, layers, whole)
        return {layer: (singles[layer],) * (whole[layer] // singles[layer]) for layer in layers}


def layer_groups(backbone: Backbone) -> dict[str, tuple[str, ...]]:
    """Return the layers by the words that :class:`LayerReadout` has for them; all end with the penultimate feature.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> layer_groups(TimmBackbone("test_resnet", weights=None))["later_half"]
        ('layer3.0', 'layer4.0', 'penultimate')
    """
    blocks = backbone.block_names
    starts = {
        "penultimate": len(blocks),
        "last_blocks": max(len(blocks) - _LAST_BLOCKS, 0),
        "later_half": len(blocks) // 2,
        "all": 0,
    }
    return {name: (*blocks[start:], PENULTIMATE) for name, start in starts.items()}


def _check_called(backbone: Backbone, layers: Iterable[str], found: Container[str]) -> None:
    if missing := [layer for layer in layers if layer not in found]:
        raise ValueError(
            f"the forward pass of {backbone.name!r} does not call {missing[0]!r} itself; choose among"
            f" {', '.join(backbone.block_names)}"
        )
