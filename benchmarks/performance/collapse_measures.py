"""Accuracy, time and size of the state of NC1 against the ways that others use.

    python benchmarks/performance/collapse_measures.py accuracy
    python benchmarks/performance/collapse_measures.py speed
    python benchmarks/performance/collapse_measures.py memory

Against: (a) two passes over the features in float32, with a dense pseudo-inverse of the D x D between-class covariance;
(b) everything in memory, in float64, with a singular value decomposition of the class means. Accumulation also against
(a) in float64, and against the second pass as Papyan, Han & Donoho (2020, arXiv:2008.08186) published it: class by
class, with an outer product a sample (one batch of it is timed and multiplied). Timings of one line are taken in turn,
in one process; quote the ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nc_finetune.metrics import NeuralCollapse

Loader = list[tuple[Tensor, Tensor]]


def batches(features: Tensor, target: Tensor, size: int) -> Loader:
    return list(zip(features.split(size), target.split(size), strict=True))


def ours_accumulate(loader: Loader, classes: int, width: int) -> NeuralCollapse:
    metric = NeuralCollapse(classes, width, measures=("nc1",))
    for features, target in loader:
        metric.update(features, target)
    return metric


def two_pass_accumulate(
    loader: Loader, classes: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return class means and within-class covariance."""
    sums, counts = torch.zeros(classes, width, dtype=dtype), torch.zeros(classes, dtype=dtype)
    for features, target in loader:
        sums.index_add_(0, target, features.to(dtype))
        counts.index_add_(0, target, torch.ones_like(target, dtype=dtype))
    means = sums / counts.unsqueeze(1)
    within = torch.zeros(width, width, dtype=dtype)
    for features, target in loader:
        deviations = features.to(dtype) - means[target]
        within.addmm_(deviations.T, deviations)
    return means, within / counts.sum()


def published_second_pass(loader: Loader, means: Tensor) -> Tensor:
    """Sum the scatter class by class, an outer product a sample."""
    within = means.new_zeros(means.shape[1], means.shape[1])
    for features, target in loader:
        for label in target.unique():
            deviations = features[target == label] - means[label]
            within += (deviations.unsqueeze(2) @ deviations.unsqueeze(1)).sum(dim=0)
    return within


def two_pass_solve(means: Tensor, within: Tensor) -> Tensor:
    centred = means - means.mean(dim=0)
    return torch.trace(within @ torch.linalg.pinv(centred.T @ centred / len(means)))


def in_memory(loader: Loader, classes: int) -> Tensor:
    """Keep everything in float64: two passes, singular values of the class means, no more than K - 1 of them."""
    features = torch.cat([features for features, _ in loader]).double()
    target = torch.cat([target for _, target in loader])
    counts = target.bincount(minlength=classes).unsqueeze(1)
    means = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, target, features) / counts
    means += torch.zeros_like(means).index_add_(0, target, features - means[target]) / counts  # refine the rounding
    _, values, directions = torch.linalg.svd((means - means.mean(dim=0)) / classes**0.5, full_matrices=False)
    rank = min(classes - 1, features.shape[1])
    along = (features - means[target]) @ directions[:rank].T
    return (along.square().mean(dim=0) / values[:rank].square()).sum()


def regime(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Make features of a regime: spread of the samples, scale and shift of the class means, shape, counts."""
    generator = torch.Generator().manual_seed(0)
    classes, width, shift, spread, each = 10, 64, 10.0, 1.0, [50] * 10
    scales = torch.ones(width, dtype=torch.float64)
    if name.startswith("spread"):
        spread = float(name.split()[1])
    elif name == "means shifted by 1e4":
        shift = 1e4
    elif name == "means over 4 decades":
        scales, spread = torch.logspace(0, -4, width, dtype=torch.float64), 1e-6
    elif name == "K > D":
        classes, width, spread, each = 100, 16, 0.1, [20] * 100
        scales = torch.ones(width, dtype=torch.float64)
    elif name == "n_k from 1 to 1000":
        each = torch.logspace(0, 3, 10).round().int().tolist()
    target = torch.arange(classes).repeat_interleave(torch.tensor(each))
    means = torch.randn(classes, width, generator=generator, dtype=torch.float64) * scales + shift
    noise = torch.randn(len(target), width, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(target), generator=generator)
    return (means[target] + spread * noise)[order].to(dtype), target[order], classes


REGIMES = (
    *("spread 1e1", "spread 1", "spread 1e-2", "spread 1e-4", "spread 1e-6", "means shifted by 1e4"),
    *("means over 4 decades", "K > D", "n_k from 1 to 1000"),
)


def accuracy(console: Console) -> None:
    table = Table("features", "regime", "NC1", "one pass: 1", "7", "256", "all", "(a) two passes, pinv")
    for dtype in (torch.float32, torch.float64):
        for name in REGIMES:
            features, target, classes = regime(name, dtype)
            width = features.shape[1]
            exact = in_memory(batches(features, target, len(target)), classes)
            errors = [
                ours_accumulate(batches(features, target, size), classes, width).compute()["nc1"] / exact - 1
                for size in (1, 7, 256, len(target))
            ]
            usual = two_pass_solve(*two_pass_accumulate(batches(features.float(), target, 256), classes, width))
            cells = [f"{error.abs().item():.0e}" for error in (*errors, usual.double() / exact - 1)]
            table.add_row(str(dtype).removeprefix("torch."), name, f"{exact.item():.1e}", *cells)
    console.print(table)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def speed(console: Console, samples: int, repeats: int) -> None:
    columns = (
        "accumulate s",
        "(a)",
        "ours/(a)",
        "ours/(a) float64",
        "ours/published",
        "solve s",
        "(a)",
        "(a)/ours",
        "(b) s",
        "state MiB",
    )
    table = Table(
        "D", "K", *columns, title=f"N = {samples}, float32, batches of 256, {torch.get_num_threads()} threads"
    )
    for width in (512, 2048):
        for classes in (10, 100, 1000):
            table.add_row(str(width), str(classes), *measure_speed(width, classes, samples, repeats))
    console.print(table)


def measure_speed(width: int, classes: int, samples: int, repeats: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(samples) % classes
    features = (
        torch.randn(samples, width, generator=generator) + torch.randn(classes, width, generator=generator)[target]
    )
    loader = batches(features, target, 256)
    metric = ours_accumulate(loader, classes, width)
    sums = two_pass_accumulate(loader, classes, width)
    timed: dict[str, list[float]] = {}

    def time_call(name: str, call: Callable[[], object], times: float = 1) -> None:
        timed.setdefault(name, []).append(times * seconds(call))

    for _ in range(repeats):
        time_call("ours", lambda: ours_accumulate(loader, classes, width))
        time_call("two passes", lambda: two_pass_accumulate(loader, classes, width))
        time_call("in float64", lambda: two_pass_accumulate(loader, classes, width, torch.float64))
        time_call("published", lambda: published_second_pass(loader[:1], sums[0]), times=len(loader))
        metric._computed = None
        time_call("solve", metric.compute)
        time_call("in memory", lambda: in_memory(loader, classes))
    for _ in range(min(repeats, 2)):
        time_call("pinv", lambda: two_pass_solve(*sums))
    median = {name: statistics.median(values) for name, values in timed.items()}
    ratios = [
        statistics.median(a / b for a, b in zip(timed["ours"], timed[name], strict=True))
        for name in ("two passes", "in float64", "published")
    ]
    state = sum(getattr(metric, name).nbytes for name in metric._defaults) / 2**20
    solve = [median["solve"], median["pinv"], median["pinv"] / median["solve"]]
    figures = [median["ours"], median["two passes"], *ratios, *solve, median["in memory"], state]
    return [f"{figure:.3g}" for figure in figures]


def peak_growth(way: str, width: int, classes: int, samples: int) -> float:
    """Return by how many MiB one way raises the peak of this process, which must be a fresh one."""
    target = torch.arange(samples) % classes
    loader = batches(torch.randn(samples, width), target, 256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "ours":
        ours_accumulate(loader, classes, width).compute()
    elif way == "two passes":
        two_pass_solve(*two_pass_accumulate(loader, classes, width))
    else:
        in_memory(loader, classes)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory(console: Console, samples: int) -> None:
    columns = ("ours", "(a) two passes, pinv", "(b) in memory", "our state")
    table = Table("D", "K", *columns, title=f"peak over the features, MiB; N = {samples}, float32, batches of 256")
    for width in (512, 2048):
        for classes in (10, 100, 1000):
            cells = []
            for way in ("ours", "two passes", "in memory"):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                    cells.append(fresh.submit(peak_growth, way, width, classes, samples).result())
            state = 8 * (2 * classes + classes * width + width**2) / 2**20
            table.add_row(str(width), str(classes), *(f"{cell:.3g}" for cell in (*cells, state)))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["accuracy", "speed", "memory"])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=150)
    if arguments.what == "accuracy":
        accuracy(console)
    elif arguments.what == "memory":
        memory(console, arguments.samples)
    else:
        speed(console, arguments.samples, arguments.repeats)


if __name__ == "__main__":
    main()
