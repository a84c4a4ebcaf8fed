"""The losses on labels: formulas, class weights, gradients, dtypes, and what a recipe can say."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from reference import losses as reference
from torch import Tensor, nn

from nc_finetune import ImageClassifier, losses
from nc_finetune.heads import SimplexETFHead
from nc_finetune.losses import (
    LOSS_NAMES,
    ClassBalanced,
    DotRegressionLoss,
    FocalLoss,
    PickAllLabelsLoss,
    RescaledMSELoss,
)

K = 4
WEIGHT = [0.5, 2.0, 0.0, 1.5]
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
CASES: list[tuple[Callable[..., nn.Module], Callable[..., float]]] = [
    (partial(FocalLoss, gamma=0), partial(reference.focal, gamma=0)),
    (partial(FocalLoss, gamma=0.5), partial(reference.focal, gamma=0.5)),
    (FocalLoss, partial(reference.focal, gamma=2)),
    (RescaledMSELoss, partial(reference.rescaled_mse, alpha=1, target=1)),
    (partial(RescaledMSELoss, alpha=5, target=3), partial(reference.rescaled_mse, alpha=5, target=3)),
    (DotRegressionLoss, partial(reference.dot_regression, alpha=1)),
    (partial(DotRegressionLoss, alpha=4.0), partial(reference.dot_regression, alpha=4)),
]
every_loss = pytest.mark.parametrize(("build", "oracle"), CASES)


def logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(len(LABELS), K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@every_loss
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_loss_equals_the_oracle(build: Any, oracle: Any, weight: list[float] | None) -> None:
    expected = reference.weighted_mean(oracle, logits().numpy(), LABELS.tolist(), np.array(weight or [1.0] * K))
    assert build(weight=weight)(logits(), LABELS).item() == pytest.approx(expected, rel=1e-9)


@every_loss
def test_gradients_are_those_of_the_formula(build: Any, oracle: Any) -> None:
    assert torch.autograd.gradcheck(lambda z: build(weight=WEIGHT)(z, LABELS), logits().requires_grad_())


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(build: Any, oracle: Any, dtype: torch.dtype) -> None:
    rounded = logits().to(dtype)
    loss = build(weight=WEIGHT)(rounded, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, build(weight=WEIGHT)(rounded.float(), LABELS))
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(build(weight=WEIGHT)(rounded, LABELS), loss)


@every_loss
def test_narrow_integers_are_labels_too(build: Any, oracle: Any) -> None:
    loss = build(weight=WEIGHT)
    assert torch.equal(loss(logits(), LABELS.to(torch.uint8)), loss(logits(), LABELS))


@every_loss
def test_weights_move_and_are_saved_with_the_module(build: Any, oracle: Any) -> None:
    assert list(build(weight=WEIGHT).state_dict()) == ["weight"]
    assert list(build().state_dict()) == []
    assert build(weight=WEIGHT).double().weight.dtype == torch.float64


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_loss_without_focus_is_torchs_cross_entropy(weight: list[float] | None) -> None:
    tensor = None if weight is None else torch.tensor(weight).double()
    expected = nn.functional.cross_entropy(logits(), LABELS, weight=tensor)
    torch.testing.assert_close(FocalLoss(gamma=0, weight=weight)(logits(), LABELS), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("margin", [1e-4, 20.0, 200.0, -200.0])
def test_focal_loss_is_finite_however_sure_the_net_is(gamma: float, margin: float) -> None:
    given = torch.tensor([[margin, 0.0]], requires_grad=True)
    loss = FocalLoss(gamma)(given, torch.tensor([0]))
    loss.backward()
    assert loss.isfinite()
    assert given.grad is not None
    assert given.grad.isfinite().all()


def test_focal_loss_keeps_its_digits_where_the_net_is_sure() -> None:
    value = FocalLoss(gamma=1.0)(torch.tensor([[12.0, 0.0]]), torch.tensor([0])).item()
    rest = 1 / (1 + math.exp(12))
    assert value == pytest.approx(-rest * math.log1p(-rest), rel=1e-2)  # float32 log-softmax; 1 - exp is off by more


def test_plain_mse_is_torchs_on_one_hot_labels() -> None:
    one_hot = nn.functional.one_hot(LABELS, K).double()
    torch.testing.assert_close(RescaledMSELoss()(logits(), LABELS), nn.functional.mse_loss(logits(), one_hot))


def test_dot_regression_of_a_fixed_head_is_half_the_square_of_one_minus_the_cosine() -> None:
    head, features = SimplexETFHead(6, K, alpha=1.0), torch.randn(len(LABELS), 6)
    cosine = torch.cosine_similarity(features, head.weight[LABELS])
    torch.testing.assert_close(DotRegressionLoss()(head(features), LABELS), (0.5 * (cosine - 1) ** 2).mean())


def test_dot_regression_pulls_at_the_true_class_alone() -> None:
    given = logits().requires_grad_()
    DotRegressionLoss()(given, LABELS).backward()
    assert given.grad is not None
    assert torch.equal(given.grad != 0, nn.functional.one_hot(LABELS, K).bool())


@every_loss
@pytest.mark.parametrize(
    ("shape", "labels", "match"),
    [
        ((3, K), torch.zeros(2, dtype=torch.long), r"got shapes \(3, 4\) and \(2,\)"),
        ((3,), torch.zeros(3, dtype=torch.long), r"got shapes \(3,\) and \(3,\)"),
        ((3, K), torch.zeros(3), "labels of torch.float32"),
        ((3, K), torch.tensor([0, 1, K]), r"labels must lie in \[0, 4\), got 0 to 4"),
        ((3, K), torch.tensor([0, -1, 1]), r"labels must lie in \[0, 4\), got -1 to 1"),
    ],
)
def test_what_is_no_classification_is_refused(
    build: Any, oracle: Any, shape: tuple[int, ...], labels: Tensor, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        build()(torch.zeros(shape), labels)


@pytest.mark.parametrize("build", [FocalLoss, RescaledMSELoss, DotRegressionLoss, PickAllLabelsLoss])
@pytest.mark.parametrize("weight", [[1.0, -1.0], [0.0, 0.0], [1.0, math.nan], [[1.0, 1.0]], []])
def test_weights_that_cannot_weigh_are_refused(build: Any, weight: Any) -> None:
    with pytest.raises(ValueError, match="weight must hold one finite number of at least 0 for each class"):
        build(weight=weight)


@every_loss
def test_weights_of_another_number_of_classes_are_refused(build: Any, oracle: Any) -> None:
    with pytest.raises(ValueError, match="weight has 2 classes, the logits have 4"):
        build(weight=[1.0, 1.0])(logits(), LABELS)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_options_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="gamma must be a finite number of at least 0"):
        FocalLoss(gamma=bad)
    for options in ({"alpha": bad}, {"target": bad}):
        with pytest.raises(ValueError, match="alpha and target must be positive, finite numbers"):
            RescaledMSELoss(**options)
    with pytest.raises(ValueError, match="alpha must be a positive, finite number, that of the head"):
        DotRegressionLoss(alpha=bad)


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("FocalLoss", {"gamma": 1.5, "weight": [1.0, 2.0, 3.0]}, "FocalLoss(gamma=1.5)"),
        ("RescaledMSELoss", {"alpha": 5.0, "target": 2.0}, "RescaledMSELoss(alpha=5, target=2)"),
        ("DotRegressionLoss", {"alpha": 8.0, "weight": [1, 1, 2]}, "DotRegressionLoss(alpha=8)"),
        ("PickAllLabelsLoss", {"average": True}, "PickAllLabelsLoss(average=True)"),
    ],
)
def test_recipe_names_a_loss_by_its_class_path(name: str, arguments: dict[str, Any], shown: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageClassifier, "model")
    loss = {"class_path": f"nc_finetune.losses.{name}", "init_args": arguments}
    config = {"model": {"backbone": "test_vit", "num_classes": 3, "weights": None, "loss": loss}}
    built = parser.instantiate(parser.parse_object(config)).model.loss
    assert repr(built) == shown
    assert (None if built.weight is None else built.weight.tolist()) == arguments.get("weight")


def test_names_are_those_of_the_losses() -> None:
    assert set(LOSS_NAMES) == {
        kind.__name__ for kind in (ClassBalanced, FocalLoss, RescaledMSELoss, DotRegressionLoss, PickAllLabelsLoss)
    }
    assert all(hasattr(losses, name) for name in LOSS_NAMES)
