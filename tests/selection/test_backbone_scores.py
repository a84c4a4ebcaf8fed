import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from nc_finetune.backbones import TimmBackbone
from nc_finetune.data import ImageData
from nc_finetune.functional import h_score
from nc_finetune.functional.readout import solve_head
from nc_finetune.methods import LayerReadout, LinearProbe
from nc_finetune.selection.backbone_scores import BackboneScores, correlations, ranked, score_backbone, score_features
from nc_finetune.selection.features import method_features, subset_batches
from nc_finetune.selection.logme import logme
from nc_finetune.selection.presentation import rank_csv, rank_table


def slow_evidence(features: np.ndarray[Any, Any], target: np.ndarray[Any, Any], alpha: float, beta: float) -> float:
    """Log density of the target under N(0, F F^T / alpha + I / beta)."""
    covariance = features @ features.T / alpha + np.eye(len(features)) / beta
    _, logdet = np.linalg.slogdet(covariance)
    return float(-0.5 * (target @ np.linalg.solve(covariance, target) + logdet + len(target) * math.log(2 * math.pi)))


def slow_logme(features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Mean over the classes that occur of the largest evidence on a grid, divided by the number of samples."""
    grid = np.logspace(-4, 4, 81)
    best = [
        max(slow_evidence(features, (labels == label).astype(float), a, b) for a in grid for b in grid)
        for label in np.unique(labels)
    ]
    return float(np.mean(best)) / len(labels)


@pytest.mark.parametrize(("samples", "width"), [(40, 3), (12, 30)])
def test_logme_is_the_maximum_of_the_evidence(samples: int, width: int) -> None:
    chance = np.random.default_rng(samples)
    features, labels = chance.normal(size=(samples, width)), chance.integers(0, 2, samples)
    features[:, 0] += 2 * labels
    ours = logme(torch.tensor(features), torch.tensor(labels), 2)
    assert ours == pytest.approx(slow_logme(features, labels), abs=3e-3)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_logme_is_the_mean_over_the_classes_that_occur(absent: int) -> None:
    chance = np.random.default_rng(0)
    present = [label for label in range(3) if label != absent]
    features, labels = chance.normal(size=(20, 3)), np.array(present)[np.arange(20) % 2]
    features[:, 0] += labels
    ours = logme(torch.tensor(features), torch.tensor(labels), 3)
    assert ours == pytest.approx(slow_logme(features, labels), abs=3e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_logme_takes_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    features, labels = torch.randn(30, 8), torch.arange(30) % 3
    assert logme(features, labels.to(dtype), 3) == logme(features, labels, 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_logme_refuses_labels_out_of_range(label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 3\)"):
        logme(torch.randn(4, 2), torch.tensor([0, 1, 2, label]), 3)


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (torch.zeros(10, 3), "the features are zero"),
        (torch.zeros(10, 0), "the features are zero"),
        (torch.full((10, 3), math.nan), "the features are not finite"),
        (torch.eye(10, 3) * math.inf, "the features are not finite"),
        (torch.eye(10, 3).double() * 1e-200, "too small or too large"),
        (torch.eye(10).double() * 1e10, "too small or too large"),
    ],
)
def test_logme_that_is_not_finite_is_nan_with_a_reason(features: Tensor, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"LogME is undefined and reported as nan: .*{reason}"):
        assert math.isnan(logme(features, torch.arange(10) % 2, 2))


@pytest.mark.filterwarnings("ignore:.*no samples of class 3")
def test_a_class_without_images_leaves_scores_of_the_others() -> None:
    features, labels = torch.randn(30, 4), torch.arange(30) % 3
    found = score_features((features, labels), (features, labels), 4)
    assert found["logme"] == logme(features, labels, 3)
    assert found["probe_accuracy"] > 1 / 3


def test_logme_needs_samples() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        logme(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 2)


def test_better_features_score_better_on_every_measure() -> None:
    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    good, bad = (
        pixels.float(),
        pixels.float() + 12 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)),
    )
    scores = []
    for name, features in (("bad", bad), ("good", good)):
        found = score_features((features[:900], labels[:900]), (features[900:], labels[900:]), 10)
        scores.append(BackboneScores(name=name, weights=None, **found))  # type: ignore[arg-type]
    for measure in ("nc1", "vci", "cdnv", "h_score", "logme", "ncc_accuracy", "probe_accuracy"):
        assert [found.name for found in ranked(scores, measure)] == ["good", "bad"]


def test_measures_are_those_of_the_functional_room() -> None:
    features, labels = torch.randn(60, 4), torch.arange(60) % 3
    found = score_features((features, labels), (features, labels), 3)
    assert found["h_score"] == h_score(features, labels, 3).item()


def test_the_readout_is_scored_in_the_pass_of_the_feature(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TimmBackbone("test_resnet", None)
    seen: list[int] = []
    backbone.model.conv1.register_forward_hook(
        lambda _module, inputs, _output: seen.append(0 if inputs[0].is_meta else len(inputs[0]))
    )
    found = score_backbone("test_resnet", None, data, build=lambda name, weights: backbone)
    assert sum(seen) == len(data.train_set) + len(data.val_set)
    (images, labels) = (torch.cat(part) for part in zip(*subset_batches(data, "train"), strict=True))
    with torch.no_grad():
        features = LayerReadout("later_half").features(backbone.eval(), images.to(next(backbone.parameters()).device))
    head = solve_head(features, labels, data.num_classes)
    assert found.readout_accuracy == pytest.approx(head.accuracy, abs=1.5 / len(labels))
    alone = score_features(
        *(method_features(LinearProbe(), backbone, subset_batches(data, s)) for s in ("train", "val")), 10
    )
    assert {name: getattr(found, name) for name in alone} == pytest.approx(alone, rel=1e-4)


def test_a_network_whose_blocks_cannot_be_pooled_has_its_other_scores(data: ImageData) -> None:
    backbone = TimmBackbone("test_resnet", None)
    layer = backbone.get_layer("layer4.0")
    monkey = layer.register_forward_hook(lambda _module, _inputs, output: (output, output))
    backbone.model.layer4.register_forward_hook(lambda _module, _inputs, output: output[0])
    found = score_backbone("test_resnet", None, data, build=lambda name, weights: backbone)
    monkey.remove()
    assert found.error is None
    assert math.isnan(found.readout_accuracy)
    assert found.probe_accuracy > 0


def test_a_backbone_that_cannot_be_had_is_a_result_with_its_error(data: ImageData) -> None:
    found = score_backbone("resnet999", None, data)
    assert "unknown timm backbone 'resnet999'" in (found.error or "")
    assert ranked([found, score_backbone("test_resnet", None, data)])[-1] is found


def test_scores_are_tabulated_and_written(data: ImageData) -> None:
    scores = [score_backbone(name, None, data) for name in ("test_resnet", "test_vit", "nothing")]
    assert rank_table(scores).row_count == 2
    assert rank_csv(scores).splitlines()[1].startswith("test_resnet,,")


def test_correlations_have_the_sign_by_which_higher_is_better() -> None:
    scores = [BackboneScores(name=str(i), weights=None, nc1=5.0 - i, h_score=float(i)) for i in range(5)]
    found = correlations(scores, {(str(i), None): 80.0 + i for i in range(5)})
    assert found == {"nc1": 1.0, "h_score": 1.0}
    with pytest.warns(UserWarning, match="0 backbones with a measured accuracy"):
        assert correlations(scores, {(str(i), "other"): 80.0 + i for i in range(5)}) == {}


@pytest.mark.parametrize("number", [0, 2, 4])
def test_few_backbones_have_no_rank_correlation(number: int) -> None:
    scores = [BackboneScores(name=str(i), weights=None, nc1=5.0 - i) for i in range(5)]
    with pytest.warns(UserWarning, match=f"{number} backbones .* too few, at least 5"):
        assert correlations(scores, {(str(i), None): 80.0 + i for i in range(number)} | {("4", None): math.nan}) == {}


def test_equal_accuracies_have_no_rank_correlation() -> None:
    scores = [BackboneScores(name=str(i), weights=None, nc1=5.0 - i) for i in range(5)]
    assert correlations(scores, {(name, None): 80.0 for name in "01234"}) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_share_of_anything(bad: float) -> None:
    features, labels = torch.randn(20, 4), torch.arange(20) % 2
    broken = features.clone()
    broken[3, 1] = bad
    found = score_features((features, labels), (broken, labels), 2)
    assert math.isnan(found["ncc_accuracy"])
    assert math.isnan(found["probe_accuracy"])
    assert not math.isnan(found["nc1"])
