"""The state of a model's classes: small tensors that travel with its weights, and what they say of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from nc_finetune.doubt.tables import score_table, share_above, threshold_of
from nc_finetune.functional.conformal import conformal_rank, conformal_scores
from nc_finetune.functional.gaussians import ClassGaussians, DistanceFrame
from nc_finetune.functional.temperature import temperature

STRANGE = 0.05  # share of the training images that lie further out than a stranger
PREFIX = "doubt."
NO_STATISTICS = (
    "the model has no statistics of its training images, which the callback KeepStatistics keeps: fit it anew with"
    " that, or by nc-finetune tune"
)
NO_SETS = (
    "sets take images that the model was not trained on, and its fit had none: fit it with validation images"
    " (val_size), or leave the coverage out"
)
DEFAULT_COVERAGE = 0.9
# Where scores come from, by the number that a state keeps.
SOURCES = ("nothing", "leaving training images out", "validation images", "training images that were tuned on")


class Doubts(NamedTuple):
    """What is said of N images.

    Attributes:
        probabilities: Of the classes, at the temperature of the state, shape ``(N, K)``.
        strangeness: How far an image lies from the training images, shape ``(N,)``: 0 is their middle, 1 where a tenth
            of them lies further out.
        unlike: Share of the training images that lie further out, in ``[0, 1]``, shape ``(N,)``.
        stranger: Whether that is less than 5 %, bool, shape ``(N,)``.
        in_set: Which classes are in the conformal set, bool, shape ``(N, K)``.
    """

    probabilities: Tensor
    strangeness: Tensor
    unlike: Tensor
    stranger: Tensor
    in_set: Tensor


class DoubtState(nn.Module):
    """What is kept of the training images: class means and scatter, distances, a temperature and scores, all buffers.

    An image is as strange as the further one of two distances says: the squared Mahalanobis distance to the nearest
    class mean, which tells images from elsewhere, and the relative one, which tells unseen classes of the same kind;
    each less its median over the training images, in units of its way from there to their 90 % quantile.

    It takes ``K (D + 1) + R (D + 1)`` numbers beside tables of about 4,000; numbers stay float32 whatever the model is
    cast to.

    Args:
        tensors: By name: those of :class:`~nc_finetune.functional.ClassGaussians`, and ``strangeness``,
            ``distances``, ``relative``, ``temperature``, ``scores``, ``numbers`` and ``sources`` as below.

    Raises:
        ValueError: If one is missing, or the shapes do not fit.

    Attributes:
        distances: Quantiles of the squared distances of training images, as if each were new, shape ``(1001,)``; empty
            where no image can be left out, as no class would have two without it.
        relative: Of their relative distances, likewise.
        strangeness: Of their strangeness, likewise.
        temperature: What logits are divided by.
        scores: Conformal scores of images that the model was not trained on, sorted, shape ``(S,)``; empty where there
            are none.
        numbers: How many images are behind distances and scores, shape ``(2,)``.
        sources: Which ones, as places in ``SOURCES``, shape ``(2,)``.

    Example:
        >>> from nc_finetune.doubt import take_state
        >>> features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        >>> labels = torch.arange(40) % 2
        >>> features[:, 0] += 5 * labels
        >>> state = take_state(features, labels, 2, shrinkage=0.1)
        >>> found = state(torch.tensor([[0.0] * 6, [9.0] * 6]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        >>> found.stranger
        tensor([False,  True])
    """

    counts: Tensor
    means: Tensor
    vectors: Tensor
    values: Tensor
    rest: Tensor
    shrinkage: Tensor
    distances: Tensor
    relative: Tensor
    strangeness: Tensor
    temperature: Tensor
    scores: Tensor
    numbers: Tensor
    sources: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check(tensors)
        for name in _SHAPES:
            value = tensors[name].detach()
            self.register_buffer(name, value.float().clone() if value.is_floating_point() else value.clone())
        self._prepare()
        self.register_load_state_dict_post_hook(_prepare)  # type: ignore[no-untyped-call]

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], num_classes: int) -> Self | None:
        """Return the one that the state of a model holds, of names that begin with ``doubt.``; ``None`` without.

        Raises:
            ValueError: If it is damaged, or of other classes.
        """
        own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        if not own:
            return None
        found = cls(own)
        found.check_classes(num_classes)
        return found

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def width(self) -> int:
        """How many features it is of: the first ones of those that a head sees, all or some."""
        return self.means.shape[1]

    @property
    def has_distances(self) -> bool:
        """Whether there is something to compare distances with."""
        return len(self.strangeness) > 0

    @property
    def has_scores(self) -> bool:
        """Whether there are scores of images that the model was not trained on, to make sets by."""
        return len(self.scores) > 0

    @property
    def is_too_sure(self) -> bool:
        """Whether distances are those of images that the network was tuned on: new ones look stranger than they are."""
        return int(self.sources[0]) == SOURCES.index("training images that were tuned on")

    def check_classes(self, num_classes: int) -> None:
        """Refuse statistics of another class list.

        Raises:
            ValueError: If there are more or fewer classes.
        """
        if self.num_classes != num_classes:
            raise ValueError(
                f"the statistics are of {self.num_classes} classes, and the model has {num_classes}: they belong to"
                " another class list; take them anew by KeepStatistics"
            )

    @torch.no_grad()
    def take_scores(self, logits: Tensor, target: Tensor, source: int = 1) -> None:
        """Find temperature and conformal scores.

        Args:
            logits: Of images that the model, or its like, was not trained on, shape ``(N, K)``; rows that are not
                finite are left out. Where none is, nothing changes.
            target: Their labels, shape ``(N,)``.
            source: Which images they are, a place in ``SOURCES``.

        Raises:
            ValueError: If the shapes do not fit.
        """
        known = logits.isfinite().all(1)
        if not known.any():
            return
        logits, target = logits[known].double(), target[known]
        found = temperature(logits, target)
        scores = conformal_scores((logits / found).softmax(1), target)
        self.temperature = found.to(self.means)
        self.scores = score_table(scores).to(self.means)
        self.numbers[1], self.sources[1] = len(scores), source

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of logits at the temperature, float32, shape ``(N, K)``."""
        return torch.softmax(logits.float() / self.temperature, dim=1)

    def threshold(self, coverage: float) -> Tensor:
        """Return the conformal score up to which classes are in a set.

        Raises:
            ValueError: If the coverage is out of range.
        """
        return threshold_of(self.scores, int(self.numbers[1]), coverage)

    def measure(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the squared distance to the nearest class mean, the relative one, and the strangeness, each ``(N,)``.

        Args:
            features: What the head sees, shape ``(N, D)`` or wider: the first ones count.

        Raises:
            ValueError: If there are fewer features.
        """
        frame = DistanceFrame(*(getattr(self, f"frame_{name}") for name in DistanceFrame._fields))
        kind = features.device.type
        exact = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with exact:  # differences of large numbers
            classes, overall = frame.distances(features[:, : self.width].float())
        nearest = classes.amin(1)
        relative = nearest - overall
        return nearest, relative, strangeness_of(nearest, relative, self.distances, self.relative)

    def limit(self, coverage: float) -> Tensor:
        """Return the same; infinite where there are no scores.

        Raises:
            ValueError: If the coverage is out of range.
        """
        conformal_rank(1, coverage)  # looks whether it is
        return self.threshold(coverage) if self.has_scores else self.scores.new_tensor(torch.inf)

    def forward(self, features: Tensor, logits: Tensor, coverage: float = DEFAULT_COVERAGE) -> Doubts:
        """Say what is known of images.

        Args:
            features: What the head sees, shape ``(N, D)``.
            logits: What it gives, shape ``(N, K)``.
            coverage: Of the sets; without scores they hold all classes.

        Returns:
            The doubts.
        """
        return self.say(features, logits, self.limit(coverage))

    def say(self, features: Tensor, logits: Tensor, limit: Tensor) -> Doubts:
        """Do so with the score up to which classes are in a set, as :meth:`limit` returns it."""
        probabilities = self.probabilities(logits)
        found = self.measure(features)[2]
        unlike = share_above(self.strangeness, found) if self.has_distances else torch.full_like(found, torch.nan)
        return Doubts(probabilities, found, unlike, unlike < STRANGE, 1 - probabilities <= limit)

    def _prepare(self) -> None:
        parts = (getattr(self, name) for name in ClassGaussians._fields)
        for name, value in DistanceFrame.of(ClassGaussians(*parts))._asdict().items():
            self.register_buffer(f"frame_{name}", value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to a device, not to another type: distances need the digits."""
        applied: Self = super()._apply(lambda value: value.to(fn(value).device), recurse)  # type: ignore[no-untyped-call]
        return applied


def _prepare(state: nn.Module, _keys: object) -> None:
    """Follow values that were loaded."""
    assert isinstance(state, DoubtState)  # noqa: S101 - for the type
    state._prepare()


_SHAPES: dict[str, int] = {
    **dict(zip(ClassGaussians._fields, (1, 2, 2, 1, 0, 0), strict=True)),
    "distances": 1,
    "relative": 1,
    "strangeness": 1,
    "temperature": 0,
    "scores": 1,
    "numbers": 1,
    "sources": 1,
}


def strangeness_of(nearest: Tensor, relative: Tensor, distances: Tensor, relatives: Tensor) -> Tensor:
    """Return the further one of two distances, each from its median, in units of its way to the 90 % quantile.

    Args:
        nearest: Squared distances to the nearest class mean, shape ``(N,)``.
        relative: Relative distances, shape ``(N,)``.
        distances: Quantile table of the former; where it is empty the distances are returned.
        relatives: Of the latter.

    Returns:
        Shape ``(N,)``.
    """
    if not len(distances):
        return nearest
    found = [_from_the_middle(nearest, distances), _from_the_middle(relative, relatives)]
    return torch.maximum(*found)


def _from_the_middle(values: Tensor, table: Tensor) -> Tensor:
    steps = len(table) - 1
    middle, far = table[steps // 2], table[steps * 9 // 10]
    smallest = torch.finfo(table.dtype).eps * table.abs().amax(0) + torch.finfo(table.dtype).tiny
    return (values - middle) / torch.maximum(far - middle, smallest)


def _check(tensors: Mapping[str, Any]) -> None:
    if missing := [name for name in _SHAPES if name not in tensors]:
        raise ValueError(f"statistics of classes are damaged: there is no {missing[0]!r}; take them anew")
    counts, means, vectors, values = (tensors[name] for name in ("counts", "means", "vectors", "values"))
    fits = all(tensors[name].ndim == dimensions for name, dimensions in _SHAPES.items())
    fits = fits and counts.shape == means.shape[:1] and vectors.shape == (means.shape[1], len(values))
    if not fits:
        raise ValueError(
            "statistics of classes are damaged: the shapes of counts, means, vectors and values do not fit, got"
            f" {tuple(counts.shape)}, {tuple(means.shape)}, {tuple(vectors.shape)} and {tuple(values.shape)}"
        )
