"""Probing: the classifier alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

from torch import nn

from nc_finetune.backbones import Backbone
from nc_finetune.errors import check_name
from nc_finetune.functional.readout import SolvedHead
from nc_finetune.functional.reference_heads import solve_logistic
from nc_finetune.methods._skips import SkipJoin, SkipPooling, SkipScale
from nc_finetune.methods._with_skips import WithSkips
from nc_finetune.methods.base import FinetuningMethod

ProbeSolver = Literal["optimizer", "lbfgs"]


class LinearProbe(FinetuningMethod):
    """Fit the head to the frozen penultimate feature (Alain & Bengio 2016, arXiv:1610.01644).

    Args:
        solver: ``"optimizer"`` trains the head, whatever it is, as all else is trained. ``"lbfgs"`` solves a linear one
            after one pass over the training images: multinomial logistic regression, its penalty by five folds of them
            (:func:`~nc_finetune.functional.reference_heads.solve_logistic`), which no validation image is needed for.
            ``Trainer(max_epochs=1).fit`` is all then.

    Raises:
        ValueError: If the solver is another word.

    Example:
        >>> LinearProbe().trains, LinearProbe("lbfgs").trains
        (True, False)
    """

    name: ClassVar[str] = "linear_probe"
    label: ClassVar[str] = "linear probe"

    def __init__(self, solver: ProbeSolver = "optimizer") -> None:
        super().__init__()
        check_name("solver of a probe", solver, get_args(ProbeSolver))
        self.solver: ProbeSolver = solver

    @property
    def trains(self) -> bool:
        """Whether the head is trained; otherwise it is solved."""
        return self.solver == "optimizer"

    @property
    def own_head(self) -> Callable[[int, int], nn.Module] | None:
        """A linear layer, where it is solved."""
        return None if self.trains else nn.Linear

    @property
    def solution(self) -> Callable[..., SolvedHead] | None:
        """Logistic regression, where the head is solved."""
        return solve_logistic if self.solver == "lbfgs" else None

    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return nothing: the whole backbone is frozen."""
        return []


class SkipProbe(WithSkips, LinearProbe):
    """Train the head on the penultimate feature plus the pooled, zero-padded outputs of frozen blocks.

    Trains as little as a linear probe; a cheap test of whether inner blocks hold what the last one has dropped.

    Args:
        skip_layers: Names of the blocks; ``None`` is the middle one.
        scale: As for :class:`~nc_finetune.methods.SkipConnections`.
        join: As for :class:`~nc_finetune.methods.SkipConnectionFinetuning`.
        pooling: Likewise.

    Raises:
        ValueError: If the list is empty, or ``scale``, ``join`` or ``pooling`` is another word.

    Example:
        >>> import torch
        >>> from nc_finetune.backbones import TimmBackbone
        >>> backbone = TimmBackbone("test_resnet", weights=None)
        >>> SkipProbe(["layer1.0", "layer2.0"]).features(backbone, torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 96])
    """

    name: ClassVar[str] = "skip_probe"
    label: ClassVar[str] = "skip probe"

    def __init__(
        self,
        skip_layers: list[str] | None = None,
        scale: SkipScale = 1.0,
        *,
        join: SkipJoin = "feature",
        pooling: SkipPooling = "default",
    ) -> None:
        super().__init__()
        if skip_layers is not None and not skip_layers:
            raise ValueError("skip_layers must name at least one block; use LinearProbe for none")
        self.skip_layers = skip_layers
        self.add_skips(1 if skip_layers is None else len(skip_layers), scale, join, pooling)

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return the final norm where the skips join before it."""
        return self.joining_layer(backbone)

    def skip_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks, by default the middle one.

        Raises:
            ValueError: If the backbone has no layer of that name.
        """
        layers = tuple(self.skip_layers or (backbone.middle_block,))
        for layer in layers:
            backbone.get_layer(layer)
        return layers
