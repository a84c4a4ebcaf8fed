"""Variants of the readout: each gives a path of classifiers with logits of samples that it was not solved on.

They change one thing against the later half of the layers with mean and std.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from benchmarks.readout.discriminants import LONG, Coordinates, Point, path, point
from benchmarks.readout.features import Features
from benchmarks.readout.readouts import PREFERRED, Case, automatic, averaged, folded, folds_of, side_by_side, stacked

Variant = Callable[[Case], list[Point]]
# Few, since each is a decomposition a class.
_SHARES, _BETWEEN = (0.1, 0.3, 0.6), (0.5, 0.8, 16 / 17, 64 / 65, 256 / 257)
_PENALTIES = tuple(10 ** (step / 2) for step in range(-8, 5))


def proxies(case: Case, number: int) -> list[Point]:
    """Give each class several means, by k-means, the same ones where a sample is left out; the nearest one counts."""
    z, target = side_by_side(case.features.plain), case.target
    groups = torch.empty_like(target)
    train = z[case.rows]
    for label in range(case.features.classes):
        rows = target == label
        found = KMeans(min(number, int(rows.sum())), n_init=5, random_state=0).fit_predict(train[rows].numpy())
        groups[rows] = number * label + torch.as_tensor(found, dtype=torch.int64)
    used, groups = torch.unique(groups, return_inverse=True)
    classes = used // number

    def nearest(logits: Tensor) -> Tensor:
        found = logits.new_full((len(logits), case.features.classes), -torch.inf)
        return found.scatter_reduce(1, classes.expand(len(logits), -1), logits, "amax")

    solved = Coordinates(train, groups, z[case.held_out])
    return [point(s, nearest(solved.leave_one_out(s)), target, nearest(solved.classify(s))) for s in LONG]


def ridge(case: Case) -> list[Point]:
    """Regress on the corners of a simplex; leave-one-out is exact by the hat matrix."""
    z = side_by_side(case.features.plain)
    origin = z[case.rows].mean(0)
    train, held_out = z[case.rows] - origin, z[case.held_out] - origin
    corners = F.one_hot(case.target).double() - 1 / case.features.classes
    mean = corners.mean(0)
    gram = train @ train.T
    values, vectors = torch.linalg.eigh(gram)
    across, inside = held_out @ train.T @ vectors, vectors.T @ (corners - mean)
    points = []
    for penalty in _PENALTIES:
        damped = 1 / (values.clamp(min=0) + penalty * values.mean())
        hat = 1 / len(train) + (vectors.square() * (values * damped)).sum(1, keepdim=True)
        fitted = mean + vectors @ ((values * damped)[:, None] * inside)
        logits = corners - (corners - fitted) / (1 - hat)
        points.append(point(penalty, logits, case.target, mean + across @ (damped[:, None] * inside)))
    return points


def between(case: Case) -> list[Point]:
    """Mix each class's own covariance in (Friedman 1989); judged by leaving one sample of every class out."""
    z = side_by_side(case.features.plain)
    train, target, fold = z[case.rows], case.target, folds_of(case.target)
    settings = [(share, s) for share in _SHARES for s in _BETWEEN]
    logits = torch.empty(len(settings), len(train), case.features.classes, dtype=torch.float64)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        logits[:, out] = torch.stack(_class_wise(train[~out], target[~out], train[out], settings))
    held_out = _class_wise(train, target, z[case.held_out], settings)
    found = [point(s, own, target, held) for (_, s), own, held in zip(settings, logits, held_out, strict=True)]
    return [*case.paths[PREFERRED], *found]


def _class_wise(
    train: Tensor, target: Tensor, held_out: Tensor, settings: Sequence[tuple[float, float]]
) -> list[Tensor]:
    found = Coordinates(train, target, held_out)
    pooled = torch.diag(found.values) / len(train)
    ridge = found.values.sum() / (len(train) * found.width)
    logits = [torch.empty(len(held_out), len(found.means), dtype=torch.float64) for _ in settings]
    for label, mean in enumerate(found.means):
        own = found.deviations[target == label]
        covariance = own.T @ own / len(own)
        away = (found.held_out - mean).T
        for (share, s), held in zip(settings, logits, strict=True):
            mixed = (1 - s) * ((1 - share) * pooled + share * covariance) + s * ridge * torch.eye(len(pooled))
            root = torch.linalg.cholesky(mixed)
            lengths = torch.linalg.solve_triangular(root, away, upper=False).square().sum(0)
            held[:, label] = -lengths / 2 - root.diagonal().log().sum()
    return logits


def mirrored_average(case: Case) -> list[Point]:
    """Average the features of an image and its mirror image, for training and testing: two forward passes."""
    return case.solved((side_by_side(case.features.plain) + side_by_side(case.features.mirrored)) / 2)


def mirrored_samples(case: Case, average: bool) -> list[Point]:
    """Take mirror images as further samples; folds leave an image out with its mirror image, one of every class."""
    plain, mirrored = side_by_side(case.features.plain), side_by_side(case.features.mirrored)
    judged = (plain + mirrored) / 2 if average else plain
    train, target = torch.cat([plain[case.rows], mirrored[case.rows]]), case.target.repeat(2)
    own = folded(train, target, folds_of(case.target).repeat(2), LONG)
    solved = Coordinates(train, target, judged[case.held_out])
    number = len(case.rows)
    if average:
        own = [(logits[:number] + logits[number:]).repeat(2, 1) / 2 for logits in own]
    return [point(s, logits[:number], case.target, solved.classify(s)) for s, logits in zip(LONG, own, strict=True)]


def power(case: Case, exponent: float) -> list[Point]:
    """Take signed powers of the pooled outputs."""
    return case.solved(side_by_side(case.features.plain, power=exponent))


def random_projections(case: Case, width: int, beside: bool = False) -> list[Point]:
    """Project at random, with ReLU (McDonnell et al. 2023, arXiv:2307.02251), alone or beside the features."""
    z = side_by_side(case.features.plain)
    weight = torch.randn(z.shape[1], width, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
    used = torch.cat([case.rows, case.held_out])
    projected = F.relu(z[used] @ weight)
    projected /= projected.norm(dim=1).mean()
    if beside:
        projected = torch.cat([projected, z[used] / z[used].norm(dim=1).mean()], 1)
    number = len(case.rows)
    return path(projected[:number], case.target, projected[number:])


def ledoit_wolf(case: Case) -> list[Point]:
    """Shrink by the formula of Ledoit & Wolf 2004, 10.1016/S0047-259X(03)00096-4, without leave-one-out."""
    z = side_by_side(case.features.plain)
    train = z[case.rows]
    means = torch.stack([train[case.target == label].mean(0) for label in range(case.features.classes)])
    s = float(ledoit_wolf_shrinkage((train - means[case.target]).numpy(), assume_centered=True))
    return case.solved(z, [min(max(s, 1e-4), 1.0)])


def normalized(case: Case, way: str) -> list[Point]:
    return case.solved(side_by_side(case.features.plain, normalize=way))  # type: ignore[arg-type]


def mean_only(case: Case) -> list[Point]:
    return case.solved(side_by_side(case.features.plain, std=False))


def stack(case: Case, equal: bool) -> list[Point]:
    """Add the logits of all four layer choices up, with equal weights or those of leave-one-out."""
    found = list(case.candidates.values())
    return [averaged(found, case.target) if equal else stacked(found, case.target)]


def auto(case: Case) -> list[Point]:
    """Leave the later half for what beats it by a standard error."""
    return [case.candidates[automatic(case.candidates, 1)]]


def sizes(case: Case, larger: Features, alone: bool) -> list[Point]:
    """Take the images in another size beside, or in place of, the first; rows are the same."""
    second = side_by_side(larger.plain)
    return case.solved(second if alone else torch.cat([side_by_side(case.features.plain), second], 1))


SINGLE: dict[str, Variant] = {
    "`auto`: the layers that beat it by a standard error": auto,
    "four layer choices added up, weights by leave-one-out": partial(stack, equal=False),
    "four layer choices added up, equal weights": partial(stack, equal=True),
    "mean alone, no std": mean_only,
    "mean and std by one norm": partial(normalized, way="joint"),
    "parts by one number each": partial(normalized, way="train"),
    "parts not normalised": partial(normalized, way="none"),
    "2 proxies a class": partial(proxies, number=2),
    "3 proxies a class": partial(proxies, number=3),
    "4 proxies a class": partial(proxies, number=4),
    "ridge to a simplex": ridge,
    "averaged with the mirror image": mirrored_average,
    "signed square root": partial(power, exponent=0.5),
    "signed power 0.75": partial(power, exponent=0.75),
    "2,000 random projections with ReLU": partial(random_projections, width=2000),
    "Ledoit-Wolf": ledoit_wolf,
}
# Too long at 100 classes.
COSTLY: dict[str, Variant] = {
    "class-wise shrinkage": between,
    "mirror images as further samples": partial(mirrored_samples, average=False),
    "mirror images as further samples, and averaged with": partial(mirrored_samples, average=True),
    "10,000 random projections with ReLU": partial(random_projections, width=10000),
    "10,000 of them beside the features": partial(random_projections, width=10000, beside=True),
}


def with_larger(larger: Features) -> dict[str, Variant]:
    """Return the variants of a second size of the images."""
    return {
        "larger images": partial(sizes, larger=larger, alone=True),
        "both sizes side by side": partial(sizes, larger=larger, alone=False),
    }
