"""The benches of strangers, sets and calibration: their scores, what they measure once, and what they say."""

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.reliability import calibration, sets, strangers
from benchmarks.reliability.detectors import Taught, neco, vim
from benchmarks.reliability.features import Features
from nc_finetune.functional.readout import SolvedHead

NAMES = strangers.NAMES


def made_up(shift: float = 0.0) -> Features:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(1200) % 10
    values = torch.randn(1200, 40, generator=generator) + 4 * torch.eye(10, 40)[target]
    values[:, 39] += shift
    return Features(values, target, tuple(torch.arange(200) + 10 * seed for seed in range(5)))


def taught() -> Taught:
    known = made_up()
    return Taught.of(known.values[:200], known.labels[:200])


def test_vim_is_that_of_pytorch_ood() -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    found, known = taught(), made_up()
    theirs = detector.ViM(None, d=64, w=found.head.weight, b=found.head.bias)
    theirs.d = 20
    wide = Taught(found.values, found.labels, found.classes, found.head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.reliability.detectors.DIMENSIONS", 20)
        ours = vim(wide)(known.values[:50])
    torch.testing.assert_close(
        ours.float(),
        theirs.fit_features(found.values, found.labels).predict_features(known.values[:50]),
        rtol=1e-3,
        atol=1e-3,
    )


def test_neco_is_by_its_formula() -> None:
    found, values = taught(), made_up().values[200:260]
    middle, spread = found.values.double().mean(0), found.values.double().std(0)
    scaled, other = (found.values - middle) / spread, (values - middle) / spread
    _, vectors = torch.linalg.eigh(scaled.T @ scaled)
    shares = (other @ vectors[:, -10:]).norm(dim=1) / other.norm(dim=1)
    expected = -shares * found.logits(values).amax(1)
    torch.testing.assert_close(neco(found)(values), expected)


def test_three_classes_in_ten_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def detectors(self: Taught) -> dict[str, strangers.Score]:
        seen.append(self.classes)
        return {"ours": lambda values: values[:, 0]}

    monkeypatch.setattr(Taught, "detectors", detectors)
    found = strangers.left_out(made_up(), 0)
    assert seen == [7]
    assert 0 <= found["ours"] <= 1


def test_auroc_counts_pairs() -> None:
    inside, outside = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
    assert strangers.auroc(lambda values: values[:, 0], inside, outside) == 0.75


def test_the_page_of_strangers_says_what_was_reached() -> None:
    others = {
        name: {f"{key}|{other}": 0.98 for key in NAMES for other in ("digits", "dtd10") if other != name}
        for name in ("digits", "dtd10")
    }
    left = {"digits": [{**dict.fromkeys(NAMES, 0.7), "ours": 0.75}] * 3}
    tuned = {"digits": [{"ours": 0.7, "ours, tuned network": 0.6, "softmax": 0.69, "energy": 0.68}] * 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strangers, "circumstances", lambda *_: "this machine")
        text = strangers.page(others, left, tuned)
    assert "the mean of ours, 0.980, at least 0.97: reached." in text
    assert "a mean lead of 0.050, at least 0.03: reached." in text
    assert "a mean lead of 0.010, at least 0.03: not reached." in text


def figures(coverage: float = 0.9, after: float = 0.02) -> dict[str, float]:
    shown = {f"{name} {what}": coverage for name in ("ours", *sets.THEIRS) for what in ("coverage", "size")}
    return {"images": 1000, "accuracy": 90.0, "before": 0.2, "after": after, "temperature": 3.0, **shown}


def test_pages_of_sets_and_calibration_say_what_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "circumstances", lambda *_: "this machine")
    assert "mean of the samples: reached." in sets.page({"digits": [figures()] * 2}, 2)
    assert "not reached on dtd10." in sets.page({"digits": [figures()], "dtd10": [figures(0.95)]}, 1)
    monkeypatch.setattr(calibration, "figures", lambda _: {"digits": [figures()], "dtd10": [figures(after=0.06)]})
    monkeypatch.setattr(calibration, "RESULTS", tmp_path)
    calibration.run(argparse.Namespace(samples=1))
    assert "not reached on dtd10." in (tmp_path / "calibration.md").read_text()


def test_sets_and_errors_are_measured_on_what_was_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_ours(left_out: Tensor, labels: Tensor, probabilities: Tensor, score: str) -> Tensor:
        assert left_out.shape == (200, 10)
        return probabilities > 0

    monkeypatch.setattr(sets, "mapie_sets", as_ours)
    found = sets.measured(made_up(), 0)
    assert found["images"] == 1000
    assert 0.8 < found["ours coverage"] < 1
    assert found["lac coverage"] == 1
    assert found["lac size"] == 10
    assert found["after"] < 0.1


def test_lac_of_mapie_is_our_rule() -> None:
    pytest.importorskip("mapie")
    generator = torch.Generator().manual_seed(0)
    known, new = (torch.randn(number, 5, generator=generator).softmax(1) for number in (99, 40))
    labels = torch.arange(99) % 5
    scores = (1 - known.gather(1, labels.unsqueeze(1)).squeeze(1)).sort().values
    assert torch.equal(sets.mapie_sets(known, labels, new, "lac").bool(), 1 - new <= scores[89])


def test_a_readout_is_solved_for_classes_that_are_numbered_anew() -> None:
    known = made_up()
    rows = known.labels[:200] > 6
    found = Taught.of(known.values[:200][rows], known.labels[:200][rows])
    assert isinstance(found.head, SolvedHead)
    assert found.logits(known.values[:4]).shape == (4, 3)
