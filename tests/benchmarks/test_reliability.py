"""The bench of doubts: what it replaces, what it measures once, and what it says."""

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.reliability import features as features_module
from benchmarks.reliability import labels
from benchmarks.reliability.features import Features, Setting, draw, features_of


def made_up() -> Features:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(120) % 3
    values = torch.randn(120, 6, generator=generator) + 5 * torch.eye(3, 6)[target]
    return Features(values, target, tuple(torch.arange(60) for _ in range(5)))


def test_a_tenth_of_the_labels_is_replaced_by_others() -> None:
    given = torch.arange(50) % 4
    found, wrong = labels.replaced(given, 4, 0)
    assert int(wrong.sum()) == 5
    assert (found != given).tolist() == wrong.tolist()
    assert set(found.tolist()) <= {0, 1, 2, 3}
    assert not torch.equal(labels.replaced(given, 4, 1)[0], found)


def test_samples_take_what_there_is_of_each_class() -> None:
    target = torch.tensor([0] * 9 + [1] * 2)
    rows = draw(target, 4, 0)
    assert target[rows].bincount().tolist() == [4, 2]
    assert made_up().held_out(0).tolist() == list(range(119, 59, -1))


@pytest.mark.slow
def test_features_are_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "NETWORK", "test_resnet")
    monkeypatch.setattr(features_module, "WEIGHTS", None)
    monkeypatch.setattr(features_module, "HELD_OUT", 20)
    setting = Setting("made-up", "sklearn:digits", 32, 2)
    found = features_of(setting, tmp_path, tmp_path)
    assert [len(sample) for sample in found.samples] == [20] * 5
    assert all(found.labels[sample].bincount().tolist() == [2] * 10 for sample in found.samples)
    monkeypatch.setattr(features_module, "_taken", None)
    assert torch.equal(features_of(setting, tmp_path, tmp_path).values, found.values)


def test_the_page_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(labels, "features_of", lambda *_: made_up())
    monkeypatch.setattr(labels, "circumstances", lambda *_: "this machine")
    tried: list[float] = []

    def cleanlab_scores(values: torch.Tensor, given: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
        tried.append(strength)
        return torch.rand(len(given), generator=torch.Generator().manual_seed(0)), 9.0

    monkeypatch.setattr(labels, "cleanlab_scores", cleanlab_scores)
    options = argparse.Namespace(data=tmp_path, runs=tmp_path / "runs", sets=["digits"], samples=2)
    labels.run(options)
    assert len(tried) == len(labels.STRENGTHS) + 1  # chosen on the first sample
    page = (tmp_path / "results" / "labels.md").read_text()
    assert "* digits, 40 a class: level with or above cleanlab" in page
    assert "in a tenth of its time" in page
    assert "this machine" in page
    labels.run(options)
    assert len(tried) == len(labels.STRENGTHS) + 1
    figures = labels.measured(made_up(), 0, 1.0)
    assert figures["ours"] > 0.9
    assert figures["right"] >= figures["as given"]
