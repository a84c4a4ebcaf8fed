"""Features that are kept, a scatter and a second pass give the same values."""

from typing import Any

import pytest
import torch
from reference import neural_collapse as reference
from torch import Tensor

from nc_finetune.callbacks._collapse import layer_sums
from nc_finetune.callbacks._collapse.layer_sums import LayerSums
from nc_finetune.metrics import NeuralCollapse

CLASSES, WIDTH = 3, 6


def make_sums(*measures: str) -> LayerSums:
    def make(width: int, scatter: bool) -> NeuralCollapse:
        return NeuralCollapse(CLASSES, width, measures=measures, scatter=scatter)

    return LayerSums(measures, make)


def make_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(31) % CLASSES
    features = torch.randn(31, WIDTH, generator=generator) + labels.unsqueeze(1)
    return list(zip(features.split(8), labels.split(8), strict=True))


def by_hand() -> float:
    features, labels = (torch.cat(part) for part in zip(*make_batches(), strict=True))
    return reference.nc1(features.double().numpy(), labels.numpy(), CLASSES)


@pytest.mark.parametrize(("limit", "folded"), [(31, False), (30, True), (1, True)])
def test_number_that_is_kept_does_not_matter(monkeypatch: pytest.MonkeyPatch, limit: int, folded: bool) -> None:
    monkeypatch.setattr(layer_sums, "max_kept_samples", lambda width: limit)
    sums = make_sums("nc1")
    for batch, (features, labels) in enumerate(make_batches()):
        sums.add(features, labels, batch)
    assert sums.is_folded == folded
    assert not sums.needs_second_pass
    assert sums.compute() == {"nc1": pytest.approx(by_hand(), rel=1e-9)}


def test_what_is_kept_does_not_change_with_the_output() -> None:
    sums = make_sums("nc1")
    for batch, (features, labels) in enumerate(make_batches()):
        sums.add(features, labels, batch)
        features.relu_()  # as the next layer may
    assert sums.compute()["nc1"] == pytest.approx(by_hand(), rel=1e-9)


def test_a_view_does_not_hold_the_output_it_is_of() -> None:
    sums = make_sums("nc1")
    tokens = torch.randn(8, 1000, WIDTH)
    sums.add(tokens[:, 0], torch.arange(8) % CLASSES, 0)
    assert sums._kept is not None
    assert sums._kept[0][0].untyped_storage().nbytes() == 8 * WIDTH * 4


@pytest.mark.parametrize(
    ("measures", "limit", "kept", "scatter", "again"),
    [
        (("nc1",), 31, True, False, False),
        (("trace_ratio", "cdnv"), 31, False, False, False),
        (("nc1", "vci"), 31, False, True, False),
        (("nc1", "ncc_accuracy"), 31, True, False, False),
        (("nc1",), 4, False, True, False),
        (("nc1", "ncc_accuracy"), 4, False, False, True),
    ],
)
def test_a_scatter_and_a_second_pass_are_there_only_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, measures: Any, limit: int, kept: bool, scatter: bool, again: bool
) -> None:
    monkeypatch.setattr(layer_sums, "max_kept_samples", lambda width: limit)
    sums = make_sums(*measures)
    sums.add(*make_batches()[0], 0)
    assert sums.metric is not None
    assert (not sums.is_folded, not sums.metric.wide, sums.needs_second_pass) == (kept, scatter, again)


@pytest.mark.parametrize("limit", [31, 30, 1])
def test_nearest_centres_are_the_same_from_what_was_kept_and_from_a_second_pass(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(layer_sums, "max_kept_samples", lambda width: limit)
    sums = make_sums("nc1", "ncc_accuracy")
    for number, batches in enumerate((make_batches(), make_batches())):
        if number and sums.needs_second_pass:
            sums.begin_second_pass()
        for batch, (features, labels) in enumerate(batches if not number or sums.second_pass else []):
            sums.add(features, labels, batch)
    features, labels = (torch.cat(part).double().numpy() for part in zip(*make_batches(), strict=True))
    decided = reference.ncc_decisions(features, reference.class_means(features, labels.astype(int), CLASSES))
    expected = {"nc1": by_hand(), "ncc_accuracy": float((decided == labels).mean())}
    assert sums.compute() == {name: pytest.approx(value, rel=1e-9) for name, value in expected.items()}


def test_a_failure_to_compute_is_kept() -> None:
    sums = make_sums("nc1", "nc4")  # no classifier
    for _ in range(2):
        for batch, (features, labels) in enumerate(make_batches()):
            sums.add(features, labels, batch)
        if not sums.second_pass:
            sums.begin_second_pass()
    assert all(value != value for value in sums.compute().values())
    assert "set_classifier" in (sums.problem or "")
