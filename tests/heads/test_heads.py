"""What every head keeps to: shapes, dtypes, state, gradients, and what a recipe can say."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from conftest import quick_where
from safetensors.torch import save_file
from torch import Tensor, nn

from nc_finetune import ImageClassifier, heads
from nc_finetune.heads import (
    HEAD_NAMES,
    BottleneckHead,
    CosineHead,
    DiscriminantHead,
    MeanHead,
    OrthogonalFrameHead,
    SimplexETFHead,
    ZeroShotHead,
    logit_scale_for,
)

K, D = 4, 6
HeadFactory = Callable[[int, int], nn.Module]
EMBEDDINGS = torch.randn(K, D, generator=torch.Generator().manual_seed(5))
BUILD: dict[str, HeadFactory] = {
    "cosine": CosineHead,
    "cosine learned": partial(CosineHead, temperature=0.1, learn_temperature=True),
    "simplex": SimplexETFHead,
    "simplex free": partial(SimplexETFHead, orientation="canonical", normalize=False),
    "orthogonal": OrthogonalFrameHead,
    "bottleneck": BottleneckHead,
    "bottleneck simplex": partial(BottleneckHead, width=K - 1, head=SimplexETFHead, bias=False),
    "discriminant": DiscriminantHead,
    "mean": partial(MeanHead, second=CosineHead),
    "mean of parts": partial(MeanHead, first=CosineHead, widths=(D - 2, 2)),
    "zero shot": partial(ZeroShotHead, embeddings=EMBEDDINGS),
    "zero shot trained": partial(ZeroShotHead, embeddings=EMBEDDINGS, trainable=True),
}
PARAMETERS = {
    "cosine": K * D,
    "cosine learned": K * D + 1,
    "simplex": 0,
    "simplex free": 0,
    "orthogonal": 0,
    "bottleneck": K * (D + 1) + K * (K + 1),
    "bottleneck simplex": (K - 1) * D,
    "discriminant": K * (D + 1),
    "mean": K * (2 * D + 1),
    "mean of parts": K * (D + 1),
    "zero shot": 0,
    "zero shot trained": K * D,
}
every_head = pytest.mark.parametrize("name", BUILD)


def features(number: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(number, D, generator=torch.Generator().manual_seed(seed))


@every_head
def test_widths_and_parameter_counts(name: str) -> None:
    head = BUILD[name](D, K)
    assert (head.in_features, head.out_features) == (D, K)
    assert head(features()).shape == (5, K)
    assert sum(parameter.numel() for parameter in head.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in BUILD if not name.startswith("mean")])
def test_decision_is_that_of_weight_and_bias(name: str) -> None:
    head = BUILD[name](D, K)
    if isinstance(head, BottleneckHead):
        head, given = head.head, head.projection(features(50))
    else:
        given = features(50)
    assert head.weight.shape == (K, given.shape[1])
    plain = nn.functional.linear(given, head.weight, head.bias)
    assert torch.equal(head(given).argmax(dim=1), plain.argmax(dim=1))


@every_head
def test_state_reloads_bit_identically(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = BUILD[name](D, K)
    for parameter in head.parameters():
        parameter.data.add_(0.1)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    torch.manual_seed(1)
    fresh = BUILD[name](D, K)
    fresh.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(fresh(features()), head(features()))


@every_head
def test_gradients_are_those_of_the_formula(name: str) -> None:
    head = BUILD[name](D, K).double()
    assert torch.autograd.gradcheck(head, features().double().requires_grad_())


@every_head
def test_zero_features_give_finite_logits_and_gradients(name: str) -> None:
    head = BUILD[name](D, K)
    given = torch.zeros(2, D, requires_grad=True)
    logits = head(given)
    logits.square().sum().backward()
    (gradient,) = torch.autograd.grad(head(given)[:, 0].sum(), given)
    assert logits.isfinite().all()
    assert gradient.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_head
def test_half_precision_is_near_to_single(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = BUILD[name](D, K)
    given = torch.cat([features(), 300 * features(2, seed=1), torch.zeros(1, D)]).to(dtype)
    expected = head(given.float())
    with torch.autocast("cpu", dtype):
        automatic = head(given)
    for logits in (automatic, head.to(dtype)(given)):
        assert logits.dtype == dtype
        error = (logits.float() - expected).abs() / expected.abs().max()
        assert error.max() < (0.05 if dtype == torch.bfloat16 else 0.01)


@every_head
def test_another_width_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"features must have shape \(N, {D}\), got \(2, {D + 1}\)"):
        BUILD[name](D, K)(torch.ones(2, D + 1))


@every_head
@pytest.mark.parametrize(("width", "classes"), [(D, 1), (D, 0), (0, K)])
def test_widths_that_leave_nothing_to_classify_are_refused(name: str, width: int, classes: int) -> None:
    with pytest.raises(ValueError, match=f"of at least 2 \\(classes\\), got {width} and {classes}"):
        BUILD[name](width, classes)


@pytest.mark.parametrize("name", quick_where({"cosine", "simplex", "bottleneck simplex"}.__contains__, BUILD))
def test_head_survives_export(name: str) -> None:
    torch.manual_seed(0)
    head = BUILD[name](D, K).eval()
    program = torch.export.export(head, (features(),)).module()
    torch.testing.assert_close(program(features(seed=1)), head(features(seed=1)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine learned", "CosineHead(in_features=6, out_features=4, temperature=0.1, learn_temperature=True)"),
        (
            "simplex free",
            "SimplexETFHead(in_features=6, out_features=4, orientation=canonical, normalize=False, alpha=1)",
        ),
        (
            "orthogonal",
            "OrthogonalFrameHead(in_features=6, out_features=4, orientation=random, seed=0, normalize=True,"
            " alpha=8.005)",
        ),
        ("zero shot", "ZeroShotHead(in_features=6, out_features=4, logit_scale=100, trainable=False)"),
    ],
)
def test_repr_says_what_it_is(name: str, expected: str) -> None:
    assert repr(BUILD[name](D, K)) == expected


def configured(head: Any) -> HeadFactory:
    """Let jsonargparse read a head as a recipe gives it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--head", type=Callable[[int, int], nn.Module])
    result: HeadFactory = parser.instantiate(parser.parse_object({"head": head})).head
    return result


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("torch.nn.Linear", nn.Linear),
        ({"class_path": "torch.nn.Linear", "init_args": {"bias": False}}, nn.Linear),
        ("nc_finetune.heads.CosineHead", CosineHead),
        (
            {
                "class_path": "nc_finetune.heads.CosineHead",
                "init_args": {"temperature": 0.1, "learn_temperature": True},
            },
            CosineHead,
        ),
        ("nc_finetune.heads.SimplexETFHead", SimplexETFHead),
        (
            {
                "class_path": "nc_finetune.heads.SimplexETFHead",
                "init_args": {"orientation": "canonical", "normalize": False, "alpha": 2.0, "allow_projection": True},
            },
            SimplexETFHead,
        ),
        ({"class_path": "nc_finetune.heads.OrthogonalFrameHead", "init_args": {"seed": 3}}, OrthogonalFrameHead),
        ("nc_finetune.heads.BottleneckHead", BottleneckHead),
    ],
)
def test_recipe_names_a_head_by_its_class_path(config: Any, kind: type[nn.Module]) -> None:
    head = configured(config)(D, K)
    assert type(head) is kind
    assert head(features()).shape == (5, K)
    for name, value in config["init_args"].items() if isinstance(config, dict) else ():
        if hasattr(head, name) and name != "bias" and name != "temperature":
            assert getattr(head, name) == value


def test_recipe_puts_a_bottleneck_before_any_head() -> None:
    inner = {"class_path": "nc_finetune.heads.SimplexETFHead", "init_args": {"seed": 4}}
    config = {"class_path": "nc_finetune.heads.BottleneckHead", "init_args": {"width": 3, "head": inner}}
    head = configured(config)(D, K)
    assert isinstance(head, BottleneckHead)
    assert torch.equal(head.head.weight, SimplexETFHead(3, K, seed=4).weight)


def test_recipe_reads_text_embeddings_from_a_file(tmp_path: Path) -> None:
    save_file({"embeddings": EMBEDDINGS}, tmp_path / "text.safetensors")
    arguments = {"embeddings": str(tmp_path / "text.safetensors"), "logit_scale": 50.0, "trainable": True}
    head = configured({"class_path": "nc_finetune.heads.ZeroShotHead", "init_args": arguments})(D, K)
    expected = ZeroShotHead(D, K, EMBEDDINGS, logit_scale=50.0, trainable=True)
    assert torch.equal(head.weight, expected.weight)
    assert isinstance(head.weight, nn.Parameter)


def test_recipe_of_a_classifier_takes_a_head() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageClassifier, "model")
    inner = {"class_path": "nc_finetune.heads.SimplexETFHead", "init_args": {"alpha": 3.0}}
    head = {"class_path": "nc_finetune.heads.BottleneckHead", "init_args": {"head": inner}}
    config = {"model": {"backbone": "test_vit", "num_classes": 5, "weights": None, "head": head}}
    model = parser.instantiate(parser.parse_object(config)).model
    assert isinstance(model.head.head, SimplexETFHead)
    assert model.tuned_parameters == 64 * 5 + 5
    assert model(torch.rand(2, 3, 160, 160)).shape == (2, 5)


def test_names_are_those_of_the_heads() -> None:
    assert all(issubclass(getattr(heads, name), heads.ClassifierHead) for name in HEAD_NAMES)
    assert {type(build(D, K)).__name__ for build in BUILD.values()} == set(HEAD_NAMES)


@pytest.mark.parametrize(("classes", "probability"), [(2, 0.9), (10, 0.999), (1000, 0.99)])
def test_logit_scale_gives_the_wanted_probability_at_a_simplex(classes: int, probability: float) -> None:
    scale = logit_scale_for(classes, classes / (classes - 1), probability)
    cosines = torch.full((classes,), -1 / (classes - 1), dtype=torch.float64)
    cosines[0] = 1
    assert torch.softmax(scale * cosines, dim=0)[0].item() == pytest.approx(probability)
