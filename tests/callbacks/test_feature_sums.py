"""Features are kept while they are few, and become statistics and a sample where they are many."""

import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_finetune import ImageClassifier
from nc_finetune.callbacks import ReadoutSolver, _discriminants, _feature_sums
from nc_finetune.callbacks._feature_sums import FeatureSums
from nc_finetune.functional.class_statistics import within_class_scatter
from nc_finetune.functional.readout import solve_head
from nc_finetune.methods import LayerReadout


def make_rows(number: int = 60, width: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % classes
    return torch.randn(number, width, generator=generator) + labels.view(-1, 1), labels


def add_all(sums: FeatureSums, rows: Tensor, labels: Tensor, batch_size: int) -> FeatureSums:
    for some, their in zip(rows.split(batch_size), labels.split(batch_size), strict=True):
        sums.add(some, their)
    return sums


def not_called() -> Tensor:
    raise AssertionError("there was room for all")


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_few_features_are_kept_in_order(batch_size: int) -> None:
    rows, labels = make_rows()
    found = add_all(FeatureSums(6, 3, not_called, kept_bytes=60 * 6 * 4), rows, labels, batch_size).gather()
    assert found.statistics is None
    assert torch.equal(found.features, rows)
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("batch_size", [1, 7, 60])
@pytest.mark.parametrize("kept", [0, 10, 59])
def test_more_become_statistics_of_all_and_some_of_the_rows(
    batch_size: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_feature_sums, "MAX_CHOICE_SAMPLES", 20)
    rows, labels = make_rows()
    columns = torch.tensor([4, 1, 5])
    sums = FeatureSums(6, 3, lambda: columns, kept_bytes=kept * 6 * 4)
    found = add_all(sums, rows, labels, batch_size).gather()
    assert found.statistics is not None
    means = torch.stack([rows[labels == label][:, columns].double().mean(0) for label in range(3)])
    torch.testing.assert_close(found.statistics.means, means, rtol=1e-12, atol=1e-12)
    deviations = rows[:, columns].double() - means[labels]
    torch.testing.assert_close(
        within_class_scatter(found.statistics), deviations.T @ deviations, rtol=1e-10, atol=1e-10
    )
    places = [int((rows[:, columns] == row).all(1).nonzero()) for row in found.features]
    assert places == sorted(set(places))
    assert len(places) == 20
    assert torch.equal(labels[places], found.labels)
    gaps = torch.tensor(places).diff()
    assert gaps.max() <= 6, "evenly over the order of the data"


def test_rows_of_two_processes_stand_in_the_order_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = make_rows()
    shares = [
        add_all(FeatureSums(6, 3, not_called, rank, 2), rows[rank::2], labels[rank::2], batch_size=7)
        for rank in range(2)
    ]
    others = iter([shares[1]._places, *shares[1]._joined()])
    monkeypatch.setattr(_feature_sums, "_is_distributed", lambda: True)
    monkeypatch.setattr(_feature_sums, "_sum", lambda value: 2 * value)
    monkeypatch.setattr(_feature_sums, "gather_all_tensors", lambda value: [value, next(others)])
    found = shares[0].gather()
    assert torch.equal(found.features, rows)
    assert torch.equal(found.labels, labels)


def test_sample_does_not_depend_on_batches() -> None:
    rows, labels = make_rows(9000, 2)
    found = [
        add_all(FeatureSums(2, 3, lambda: torch.arange(2), kept_bytes=80), rows, labels, size).gather()
        for size in (64, 1000)
    ]
    assert torch.equal(found[0].features, found[1].features)
    assert len(found[0].features) == 2000


def test_rows_are_copies() -> None:
    rows, labels = make_rows()
    sums = FeatureSums(6, 3, not_called)
    with torch.inference_mode():
        batch = rows.clone()
        sums.add(batch, labels)
        batch.zero_()
    found = sums.gather()
    assert torch.equal(found.features, rows)
    assert not found.features.is_inference()


def test_square_of_too_many_features_becomes_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feature_sums, "MAX_SCATTER_FEATURES", 5)
    rows, labels = make_rows()
    found = add_all(FeatureSums(6, 3, lambda: torch.arange(4)), rows, labels, 7).gather()
    assert found.statistics is not None
    few = add_all(FeatureSums(6, 3, not_called), rows[:5], labels[:5], 7).gather()
    assert few.statistics is None


def test_head_of_statistics_is_that_of_the_rows() -> None:
    rows, labels = make_rows(200)
    kept = add_all(FeatureSums(6, 3, not_called), rows, labels, 16).gather()
    summed = add_all(FeatureSums(6, 3, lambda: torch.arange(6), kept_bytes=0), rows, labels, 16).gather()
    one = solve_head(kept.features, kept.labels, 3)
    assert summed.statistics is not None
    other = solve_head(summed.statistics, summed.labels, 3, samples=summed.features)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.bias, other.bias, rtol=1e-10, atol=1e-10)
    assert (one.shrinkage, one.accuracy) == (other.shrinkage, other.accuracy)


# --- whole fits


class Streamed(IterableDataset[Any]):
    """Each process reads images of its own, in other numbers."""

    def __iter__(self) -> Any:
        images, labels = make_images().tensors
        rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        rows = torch.arange(23) if ranks == 1 else torch.arange(23)[: 8 if rank == 0 else None][0 if rank == 0 else 8 :]
        return iter([(images[row], labels[row]) for row in rows])


def make_images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(23) % 3
    images = 60 * labels.view(-1, 1, 1, 1) + torch.randint(0, 90, (23, 3, 32, 32), generator=generator)
    return TensorDataset((images + torch.randint(0, 30, (23, 1, 1, 1), generator=generator)).to(torch.uint8), labels)


def fit(layers: str, kept_bytes: int, stream: bool = False, **options: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ImageClassifier("test_resnet", 3, weights=None, method=LayerReadout(layers))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(_feature_sums.FeatureSums.__init__, "__kwdefaults__", {"device": None, "kept_bytes": kept_bytes})
        # Images one by one: convolutions of several at a time round otherwise.
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, **quiet, **options)
        trainer.fit(model, DataLoader(Streamed() if stream else make_images(), batch_size=1))
    solver = next(part for part in trainer.callbacks if isinstance(part, ReadoutSolver))  # type: ignore[attr-defined]
    assert solver.solved is not None
    return {
        "layers": model.method.layers,
        "weight": solver.solved.weight.tolist(),
        "accuracy": solver.solved.accuracy,
        "shrinkage": solver.solved.shrinkage,
        "written": model.head.weight.tolist(),
    }


CASES: list[dict[str, Any]] = [
    {"layers": "auto", "kept_bytes": 10**9},
    {"layers": "later_half", "kept_bytes": 10**9, "stream": True},
    {"layers": "later_half", "kept_bytes": 4 * 672 * 6},
    {"layers": "auto", "kept_bytes": 0},
]


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    found = [fit(**case, strategy="ddp", devices=2) for case in CASES]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_head_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    alone = [fit(**case) for case in CASES]
    for rank in range(2):
        for one, other in zip(alone, json.loads((tmp_path / f"{rank}.json").read_text()), strict=True):
            assert one["layers"] == other["layers"]
            assert one["accuracy"] == other["accuracy"]
            assert one["shrinkage"] == other["shrinkage"]
            torch.testing.assert_close(
                torch.tensor(one["weight"], dtype=torch.float64),
                torch.tensor(other["weight"], dtype=torch.float64),
                rtol=1e-9,
                atol=1e-10,
            )
            torch.testing.assert_close(torch.tensor(one["written"]), torch.tensor(other["written"]))


@pytest.mark.slow
def test_statistics_give_the_head_of_kept_features() -> None:
    kept, summed = fit("later_half", 10**9), fit("later_half", 4 * 672 * 6)
    assert kept["accuracy"] == summed["accuracy"]
    torch.testing.assert_close(torch.tensor(kept["weight"]), torch.tensor(summed["weight"]), rtol=1e-6, atol=1e-8)
    assert fit("auto", 0)["layers"] == "later_half", "there is nothing to compare layers by"


def test_layers_too_wide_for_a_scatter_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_feature_sums, _discriminants):
        monkeypatch.setattr(module, "MAX_SCATTER_FEATURES", 200)
    found = fit("auto", 0)
    assert found["layers"] == "penultimate"
    assert len(found["weight"][0]) == 96
    with pytest.raises(ValueError, match=r"layers of at most 200 features together, these have 672; name fewer layers"):
        fit("later_half", 0)
