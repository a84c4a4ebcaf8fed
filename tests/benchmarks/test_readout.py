import pytest
import torch

from benchmarks.readout import measured, readouts
from benchmarks.readout.discriminants import LONG, Coordinates, best_temperature, path
from benchmarks.readout.features import Features, Setting, features_of
from benchmarks.readout.measured import layers_of, orders_of, readouts_of, shrinkages_of, variant_of
from benchmarks.readout.readouts import Case, choose, folds_of, side_by_side, stacked
from benchmarks.readout.tables import report
from benchmarks.readout.variants import COSTLY, SINGLE, Variant
from nc_finetune.functional import linear_discriminant

NETWORK = {"network": "test_efficientnet", "weights": None, "samples": 2, "max_test_images": 400}
EVERY = SINGLE | COSTLY


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    setting = Setting("digits", "sklearn:digits", 64, 5)
    folder = tmp_path_factory.mktemp("features")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        taken = features_of(setting, folder, **NETWORK)  # type: ignore[arg-type]
    read = features_of(setting, folder, **NETWORK)  # type: ignore[arg-type]
    assert torch.equal(taken.plain.means["penultimate"], read.plain.means["penultimate"])
    return read


def made_up(samples: int, width: int, apart: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(samples) % 3
    means = apart * torch.randn(3, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples + 7, width, generator=generator, dtype=torch.float64)
    return means[target] + noise[:samples], target, noise[samples:]


@pytest.mark.parametrize("width", [5, 60])
def test_the_path_is_that_of_the_discriminant(width: int) -> None:
    train, target, held_out = made_up(30, width)
    for s, found in zip((0.01, 0.9, 1.0), path(train, target, held_out, (0.01, 0.9, 1.0)), strict=True):
        expected = linear_discriminant(train, target, s)
        logits = expected.leave_one_out_logits
        assert logits is not None
        torch.testing.assert_close(found.logits.diff(dim=1), logits.diff(dim=1))
        held = held_out @ expected.weight.T + expected.bias
        torch.testing.assert_close(found.held_out.diff(dim=1), held.diff(dim=1))


def test_a_group_of_one_sample_has_nothing_without_it() -> None:
    train, target, held_out = made_up(30, 5)
    target[0] = 3
    logits = Coordinates(train, target, held_out).leave_one_out(0.5)
    assert logits[0, 3] == -torch.inf
    assert logits.isfinite().sum() == logits.numel() - 1


def test_the_temperature_is_the_best() -> None:
    train, target, held_out = made_up(60, 5, apart=0.3)
    logits = path(train, target, held_out, [0.5])[0].logits
    scale = best_temperature(logits, target)
    losses = [torch.nn.functional.cross_entropy(logits / (scale * factor), target) for factor in (0.9, 1.0, 1.1)]
    assert losses[1] < min(losses[0], losses[2])


def test_samples_and_held_out_images_are_apart(features: Features) -> None:
    for rows, held_out in zip(features.samples, features.held_out, strict=True):
        assert features.labels[rows].bincount().tolist() == [5] * 10
        assert len(held_out) == 400
        assert torch.equal(held_out[: len(features.test)], features.test)
        assert not set(rows.tolist()) & set(held_out.tolist())


def test_parts_are_of_length_one(features: Features) -> None:
    z = side_by_side(features.plain, "all")
    parts = len(features.blocks) * 2 + 1
    torch.testing.assert_close(z.norm(dim=1), torch.full((len(z),), parts**0.5, dtype=torch.float64))
    assert not torch.equal(z, side_by_side(features.mirrored, "all"))


def test_folds_hold_one_of_every_class() -> None:
    target = torch.tensor([0, 0, 1, 1, 1])
    assert folds_of(target).tolist() == [0, 1, 0, 1, 2]
    assert folds_of(target, torch.tensor([4, 3, 2, 1, 0])).tolist() == [1, 0, 2, 1, 0]


def test_stacking_is_no_worse_than_the_best_on_the_sample(features: Features) -> None:
    case = Case(features, 0)
    found = list(case.candidates.values())
    mixed = stacked(found, case.target)
    assert mixed.losses.mean() < min(point.losses.mean() for point in found) + 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_variants_are_better_than_chance(features: Features, name: str) -> None:
    variant: Variant = EVERY[name]
    case = Case(features, 1)
    points = variant(case)
    best = choose(points)
    assert best.logits.shape == (50, 10)
    assert case.accuracy(best.held_out) > 20


def test_the_page_tells_every_set(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readouts, "PENALTIES", (1.0, 0.1))
    monkeypatch.setattr(measured, "ORDERS", 3)
    cases = [Case(features, seed) for seed in range(2)]
    questions = {"shrinkage": shrinkages_of, "layers": layers_of, "readouts": readouts_of}
    figures = {name: [question(case) for case in cases] for name, question in questions.items()}
    figures["variant: mean alone"] = [variant_of(case, SINGLE["mean alone, no std"]) for case in cases]
    figures["orders"] = [orders_of(cases[0])]
    assert all(value <= 0 for sample in figures["shrinkage"] for value in sample.values())
    assert figures["orders"][0]["leave-one-out, likelihood: range"] == 0
    page = report({"digits": figures}, {"digits": "64 px", "not measured": ""}, "torch 2")
    assert "| mean alone |" in page
    assert "not measured" not in page
    assert "| auto against the probe, the worst set | -1 |" in page
    del figures["variant: mean alone"]
    assert "## Variants" not in report({"digits": figures}, {"digits": "64 px"}, "torch 2")
    assert len(LONG) == 17
