"""The same numbers from one, two and three processes, with uneven shares and a rank without samples."""

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from nc_finetune import NeuralCollapse

K, D = 3, 5
MEASURES = ("nc1", "trace_ratio", "cdnv", "nc2_etf_distance", "nc3_etf_distance", "nc4", "ncc_accuracy", "vci")
SHARES = {1: [(0, 41)], 2: [(0, 30), (30, 41)], 3: [(0, 13), (13, 13), (13, 41)]}
Measured = dict[str, Tensor]


def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(41) % K
    return torch.randn(41, D, generator=generator, dtype=torch.float64) + 1e3 + target.unsqueeze(1), target


def measure(start: int, stop: int, wide: bool) -> Measured:
    from nc_finetune.functional import class_statistics

    class_statistics.__globals__["MAX_SCATTER_FEATURES"] = D - 1 if wide else D
    features, target = sample()
    metric = NeuralCollapse(K, D, measures=MEASURES[:-1] if wide else MEASURES)
    metric.set_classifier(torch.eye(K, D), torch.arange(K))
    for second in (False, True):
        if second:
            metric.begin_second_pass()
        for rows in torch.arange(start, stop).split(4):
            metric.update(features[rows], target[rows])
    measured: Measured = metric.compute()
    return {**measured, "own samples": metric.counts.sum()}


def run_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    for wide in (False, True):
        torch.save(measure(*SHARES[ranks][rank], wide), f"{folder}/{rank}{wide}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _width_limit_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from nc_finetune.functional import class_statistics

    monkeypatch.setitem(class_statistics.__globals__, "MAX_SCATTER_FEATURES", 8192)


@pytest.fixture(scope="module", params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    path = tmp_path_factory.mktemp(f"ranks{request.param}")
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (request.param, str(path)), nprocs=request.param, start_method="forkserver"
    )
    return request.param, path


@pytest.mark.parametrize("wide", [False, True])
def test_number_of_ranks_does_not_matter(folder: tuple[int, Path], wide: bool) -> None:
    ranks, path = folder
    expected = measure(0, 41, wide)
    for rank in range(ranks):
        measured = torch.load(path / f"{rank}{wide}.pt", weights_only=True)
        for name in MEASURES[:-1] if wide else MEASURES:
            torch.testing.assert_close(measured[name], expected[name], rtol=1e-10, atol=1e-10, msg=name)


def test_the_state_of_a_rank_is_its_own_again_after_computing(folder: tuple[int, Path]) -> None:
    ranks, path = folder
    kept = [torch.load(path / f"{rank}False.pt", weights_only=True)["own samples"].item() for rank in range(ranks)]
    assert kept == [stop - start for start, stop in SHARES[ranks]]
