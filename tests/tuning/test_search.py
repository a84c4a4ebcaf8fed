"""What is tried beyond the readout, in the time that there is, here or in other processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nc_finetune
from nc_finetune.backbones import TimmBackbone
from nc_finetune.selection import CrossValidation
from nc_finetune.tuning import Tuned, search
from nc_finetune.tuning.candidates import Candidate, proposals

ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"image_size": 32, "batch_size": 8, "minutes": 60}


def tune(source: Path, out: Path, **options: Any) -> Tuned:
    return nc_finetune.tune(source, out, **{"backbones": ["test_resnet=null"], **QUICK, **options})


class InThisProcess:
    """Stands for a cluster: what it is given goes through pickle and back."""

    workers = 2

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def cluster(self) -> Any:
        return nullcontext()

    def each(self, function: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        cloudpickle = pytest.importorskip("cloudpickle")
        for place, call in reversed(list(enumerate(calls))):
            self.calls.append((call[1], call[3]))
            there = cloudpickle.loads(cloudpickle.dumps((function, call)))
            try:
                yield place, there[0](*there[1])
            except Exception as error:
                yield place, cloudpickle.loads(cloudpickle.dumps(error))


@pytest.mark.slow
def test_other_processes_come_to_the_same(photos: Path, tmp_path: Path, short_fits: None) -> None:
    executor: Any = InThisProcess()
    here, there = tune(photos, tmp_path / "here"), tune(photos, tmp_path / "there", executor=executor)
    assert there.decision == here.decision
    assert [one.name for one in there.judged] == [one.name for one in here.judged]
    for ours, theirs in zip(there.judged, here.judged, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert len(set(executor.calls)) == len(executor.calls) > 3


def test_a_fit_that_fails_elsewhere_is_named_and_not_tried_again(
    photos: Path, tmp_path: Path, short_fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor: Any = InThisProcess()
    here = os.getpid()

    def each(function: Any, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for place, call in enumerate(calls):
            executor.calls.append(call[1:])
            yield place, RuntimeError(f"worker of {here} was lost")

    monkeypatch.setattr(executor, "each", each)
    lines: list[str] = []
    found = tune(photos, tmp_path / "out", executor=executor, tell=lines.append)
    assert "chosen: readout" in found.decision
    assert sum("was lost" in line for line in lines) == len({call[0] for call in executor.calls}) > 1


@pytest.mark.slow
def test_a_cluster_comes_to_what_one_process_does(
    photos: Path, tmp_path: Path, short_fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from nc_finetune.run.ray_tasks import RayTasks

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    state = TimmBackbone("test_resnet", None).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    network = f"test_resnet={tmp_path / 'weights.safetensors'}"
    here = tune(photos, tmp_path / "here", backbones=[network])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", lambda real=ray.init, **options: real(num_cpus=2, **options))
        there = tune(photos, tmp_path / "there", backbones=[network], executor=RayTasks())
    assert there.decision == here.decision
    ours, theirs = load_file(there.model_file), load_file(here.model_file)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_a_candidate_is_stopped_when_time_is_up(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_EPOCHS", 10_000)
    monkeypatch.setattr(search, "_SECONDS_AT_THE_END", 1.0)
    monkeypatch.setattr(search.Costs, "fits", lambda self, candidate, images=1.0: 0.0)  # believed to be quick
    lines: list[str] = []
    start = time.perf_counter()
    found = tune(photos, tmp_path / "out", minutes=0.15, tell=lines.append)
    assert time.perf_counter() - start < 3 * 9
    assert any("takes longer than there is time, and was stopped" in line for line in lines)
    assert found.left_out
    assert "chosen: readout" in found.decision


def test_first_answer_is_told_and_saved_before_others(photos: Path, tmp_path: Path) -> None:
    lines: list[tuple[str, bool]] = []
    out = tmp_path / "out"
    tune(photos, out, minutes=0.01, tell=lambda line: lines.append((line, (out / "model.safetensors").is_file())))
    (first,) = [said for said in lines if said[0].startswith("first answer")]
    assert first[1]
    assert "leaving one image out" in first[0]
    assert lines.index(first) < next(place for place, said in enumerate(lines) if said[0].startswith("readout of"))


@pytest.fixture
def ways() -> tuple[Any, dict[str, float]]:
    return TimmBackbone("test_resnet", None), {}


def followed(ways: tuple[Any, dict[str, float]], score: Any) -> list[list[Candidate]]:
    backbone, scores = ways
    found = []
    for together in proposals(backbone, "later_half", 15, scores, 32):
        found.append(together)
        scores.update({one.name: score(one) for one in together})
    return found


@pytest.mark.parametrize("best", [1e-4, 1e-3, 3e-2])
def test_rates_go_on_until_the_best_is_inside(ways: tuple[Any, dict[str, float]], best: float) -> None:
    found = followed(ways, lambda one: -abs(math.log(one.learning_rate / best)))
    tried = [one for together in found for one in together]
    assert len({one.name for one in tried}) == len(tried)
    (block,) = {one.block for one in tried if one.kind == "side FT" and one.learning_rate != tried[0].learning_rate}
    rates = sorted(one.learning_rate for one in tried if one.kind == "side FT" and one.block == block)
    chosen = min(rates, key=lambda rate: abs(math.log(rate / best)))
    assert rates[0] < chosen < rates[-1]


def test_what_is_judged_elsewhere_needs_a_folder(photos: Path) -> None:
    data = nc_finetune.ImageData(str(photos), image_size=32, val_size=0, test_size=0)
    judging = CrossValidation(data, folds=2, epochs=1)
    with pytest.raises(ValueError, match="kept in a folder; give progress"):
        judging.judge_ahead({}, [0], lambda function, calls: iter(()))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_mambaout"])
def test_what_is_proposed_can_be_built(name: str) -> None:
    backbone = TimmBackbone(name, None)
    size = 160 if name == "test_vit" else 64
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    found = [one for together in proposals(backbone, "later_half", 1, {}, size) for one in together]
    assert {"side FT", "SCL-FT", "full FT", "LoRA"} == {one.kind for one in found}
    for candidate in found:
        assert candidate.build(backbone, 3).features(images).shape[0] == 2


def test_batches_of_one_are_timed(photos: Path) -> None:
    data = nc_finetune.ImageData(str(photos), image_size=32, val_size=0, test_size=0, batch_size=1)
    costs = search.Costs(TimmBackbone("test_resnet", None), data, 1.0)
    assert costs.epoch > 0


def test_a_network_that_cannot_be_trained_has_a_price(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.Tensor) -> None:
        raise torch.cuda.OutOfMemoryError("there is no room")

    data = nc_finetune.ImageData(str(photos), image_size=32, val_size=0, test_size=0)
    backbone = TimmBackbone("test_resnet", None)
    monkeypatch.setattr("nc_finetune.tuning.costs.block_costs", lambda backbone, data: [])
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    assert search.Costs(backbone, data, 1.0).epoch > 0


def test_folders_of_before_statistics_are_read_out_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tune(photos, out, minutes=0.01)
    for path in [out / "model.safetensors", *(out / "steps").glob("readout*")]:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("doubt.")}  # noqa: SIM118
        save_file(kept, path, metadata)
    final = out / "steps" / "final.safetensors"
    with safe_open(final, "pt") as file:
        metadata = {key: value.replace(', "doubts": true', "") for key, value in file.metadata().items()}
    save_file({}, final, metadata)
    again = tune(photos, out, minutes=0.01)
    assert again.model.doubt is not None
