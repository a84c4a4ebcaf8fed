import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import neural_collapse as reference
from torch import Tensor, nn
from torch.profiler import profile
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from nc_finetune import NeuralCollapse
from nc_finetune import functional as F
from nc_finetune.functional import class_statistics

K, D = 4, 6
EVERYTHING = (
    *("nc1", "trace_ratio", "cdnv", "vci", "h_score", "effective_rank"),
    *("nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc2_of_distance"),
    *("nc3_etf_distance", "nc3_of_distance", "nc4", "ncc_accuracy"),
)


def sample(number: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat([torch.arange(K), torch.randint(K, (number - K,), generator=generator)])
    return torch.randn(number, D, generator=generator) + 2 * torch.eye(K, D)[target], target


def classifier() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(K, D, generator=generator), torch.randn(K, generator=generator)


def expected_of(features: Tensor, target: Tensor) -> dict[str, Tensor]:
    """All measures by the functions, from all features at once."""
    weight, bias = classifier()
    means = class_statistics(features, target).means
    pooled = ("nc1", "trace_ratio", "cdnv", "vci", "h_score")
    of_means = ("effective_rank", "nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc2_of_distance")
    return {
        **{name: getattr(F, name)(features, target) for name in pooled},
        **{name: getattr(F, name)(means) for name in of_means},
        "nc3_etf_distance": F.nc3_etf_distance(weight, means),
        "nc3_of_distance": F.nc3_of_distance(weight, means),
        "nc4": F.nc4(features, means, weight, bias),
        "ncc_accuracy": F.ncc_accuracy(features, target, means),
    }


def run_passes(metric: NeuralCollapse, features: Tensor, target: Tensor, batch: int = 7) -> dict[str, Tensor]:
    for current in range(2 if metric.needs_second_pass else 1):
        if current == 1:
            metric.begin_second_pass()
        for rows in torch.arange(len(target)).split(batch):
            metric.update(features[rows], target[rows])
    result: dict[str, Tensor] = metric.compute()
    return result


def assert_same(measured: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(measured) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_all_measures_in_batches_equal_the_functions_of_everything() -> None:
    metric = NeuralCollapse(K, D, measures=EVERYTHING)
    metric.set_classifier(*classifier())
    assert_same(run_passes(metric, *sample()), expected_of(*sample()))


def test_default_measures_need_one_pass_and_no_classifier() -> None:
    metric = NeuralCollapse(K, D)
    assert not metric.needs_second_pass
    measured = run_passes(metric, *sample())
    assert set(measured) == {name for name in EVERYTHING if not name.startswith(("nc3", "nc4", "ncc"))}


@pytest.mark.parametrize("normalize", ["none", "classes"])
@pytest.mark.parametrize("between", ["classes", "samples"])
def test_conventions_are_those_of_the_function(normalize: Any, between: Any) -> None:
    metric = NeuralCollapse(K, D, normalize, between, measures=("nc1", "trace_ratio"))
    expected = {
        "nc1": F.nc1(*sample(), normalize=normalize, between=between),
        "trace_ratio": F.trace_ratio(*sample(), between=between),
    }
    assert_same(run_passes(metric, *sample()), expected)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(class_statistics.__globals__, "MAX_SCATTER_FEATURES", D - 1)


@pytest.mark.usefixtures("wide")
def test_wide_features_give_the_same_in_two_passes() -> None:
    metric = NeuralCollapse(K, D, measures=[name for name in EVERYTHING if name not in ("vci", "h_score")])
    metric.set_classifier(*classifier())
    assert not hasattr(metric, "scatter")
    measured = run_passes(metric, *sample())
    assert set(NeuralCollapse(K, D).measures) == set(NeuralCollapse(K, D - 1).measures) - {"vci", "h_score"}
    features, target = sample()
    expected = reference.nc1(features.double().numpy(), target.numpy(), K)
    assert measured["nc1"].item() == pytest.approx(expected, rel=1e-9)


def test_features_without_scatter_give_the_same_in_two_passes() -> None:
    features, target = torch.randn(40, D, dtype=torch.float64), torch.arange(40) % K
    usual, apart = (NeuralCollapse(K, D, measures=("nc1", "cdnv"), scatter=scatter) for scatter in (True, False))
    for metric in (usual, apart):
        metric.update(features, target)
    assert (usual.needs_second_pass, apart.needs_second_pass, apart.wide) == (False, True, True)
    apart.begin_second_pass()
    apart.update(features, target)
    assert {k: v.item() for k, v in apart.compute().items()} == pytest.approx(
        {k: v.item() for k, v in usual.compute().items()}, rel=1e-9
    )


def test_a_second_pass_over_other_data_is_an_error() -> None:
    metric = NeuralCollapse(K, D, measures=("ncc_accuracy",))
    metric.update(torch.randn(40, D), torch.arange(40) % K)
    metric.begin_second_pass()
    metric.update(torch.randn(30, D), torch.arange(30) % K)
    with pytest.raises(RuntimeError, match="second pass must see what the first saw: 40 samples, got 30"):
        metric.compute()


def test_the_default_takes_no_memory_beside_the_state() -> None:
    metric = NeuralCollapse(K, D, measures=("nc1",))
    default = metric._defaults["scatter"]
    assert isinstance(default, Tensor)
    assert default.untyped_storage().nbytes() == 8
    metric.reset()
    metric.update(torch.randn(40, D), torch.arange(40) % K)
    assert metric.compute()["nc1"] > 0


@pytest.mark.usefixtures("wide")
def test_wide_features_refuse_what_needs_a_scatter() -> None:
    with pytest.raises(ValueError, match="vci needs a scatter, which features of width 6 do not have"):
        NeuralCollapse(K, D, measures=("vci",))


@pytest.mark.usefixtures("wide")
def test_wide_features_in_one_pass_alone_say_what_is_missing() -> None:
    metric = NeuralCollapse(K, D)
    metric.update(*sample())
    with pytest.raises(RuntimeError, match=r"call begin_second_pass\(\) and update with the same data again"):
        metric.compute()


def test_state_takes_what_the_arithmetic_says() -> None:
    metric = NeuralCollapse(10, 300)
    metric.update(torch.randn(50, 300), torch.arange(50) % 10)
    taken = sum(getattr(metric, name).nbytes for name in metric._defaults)
    assert taken <= 1.01 * 8 * (2 * 10 + 10 * 300 + 300**2)


def test_update_copies_nothing_from_the_device_to_the_host() -> None:
    metric = NeuralCollapse(K, D, measures=EVERYTHING)
    metric.set_classifier(*classifier())
    with profile() as first:
        metric.update(*sample())
    metric.begin_second_pass()
    with profile() as second:
        metric.update(*sample())
    ran = {event.key for recorded in (first, second) for event in recorded.key_averages()}
    assert "aten::index_add_" in ran
    assert (
        ran & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::unique", "aten::is_nonzero"} == set()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_measured_in_float64(dtype: torch.dtype) -> None:
    features, target = sample()
    low = features.to(dtype)
    measured = run_passes(NeuralCollapse(K, D, measures=("nc1",)), low, target)
    assert_same(measured, {"nc1": F.nc1(low.double(), target)})
    assert measured["nc1"].dtype == torch.float64


def test_autocast_and_tf32_do_not_reach_the_sums() -> None:
    features, target = sample()
    metric = NeuralCollapse(K, D, measures=("nc1",))
    torch.backends.cuda.matmul.allow_tf32, before = True, torch.backends.cuda.matmul.allow_tf32
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            metric.update(features, target)
            measured = metric.compute()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert_same(measured, {"nc1": F.nc1(features, target)})


def test_forward_returns_the_batch_and_keeps_the_whole() -> None:
    metric = NeuralCollapse(K, D, measures=("nc1", "cdnv"))
    first, second = sample(40, seed=1), sample(30, seed=2)
    metric(*first)
    assert_same(metric(*second), {"nc1": F.nc1(*second), "cdnv": F.cdnv(*second)})
    both = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    assert_same(metric.compute(), {"nc1": F.nc1(*both), "cdnv": F.cdnv(*both)})


def test_forward_has_the_gradient_of_the_function() -> None:
    features, target = sample()
    one, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    NeuralCollapse(K, D, measures=("nc1",))(one, target)["nc1"].backward()
    F.nc1(other, target).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(one.grad, other.grad)


def test_reset_forgets_both_passes_but_not_the_classifier() -> None:
    metric = NeuralCollapse(K, D, measures=EVERYTHING)
    metric.set_classifier(*classifier())
    run_passes(metric, *sample())
    metric.reset()
    assert_same(run_passes(metric, *sample(30, seed=5)), expected_of(*sample(30, seed=5)))


def pickled(metric: NeuralCollapse) -> NeuralCollapse:
    return pickle.loads(pickle.dumps(metric))  # type: ignore[no-any-return]  # noqa: S301


@pytest.mark.parametrize("copy", [pickled, NeuralCollapse.clone])
def test_copies_go_on_where_the_original_was(copy: Callable[[NeuralCollapse], NeuralCollapse]) -> None:
    features, target = sample()
    metric = NeuralCollapse(K, D, measures=("nc1",))
    metric.update(features[:20], target[:20])
    twin = copy(metric)
    twin.update(features[20:], target[20:])
    assert_same(twin.compute(), {"nc1": F.nc1(features, target)})
    metric.update(features[20:], target[20:])  # and has not been touched by its copy
    assert_same(metric.compute(), {"nc1": F.nc1(features, target)})


def test_merge_state_is_the_union_in_both_passes() -> None:
    features, target = sample()
    first, second = (NeuralCollapse(K, D, measures=EVERYTHING) for _ in range(2))
    first.update(features[:11], target[:11])
    second.update(features[11:], target[11:])
    first.merge_state(second)
    assert first.counts.sum() == 60
    first.set_classifier(*classifier())
    first.begin_second_pass()
    first.update(features, target)
    assert_same(first.compute(), expected_of(features, target))


def test_gathering_of_ones_own_is_used() -> None:
    features, target = sample()
    ranks = [NeuralCollapse(K, D, measures=("nc1",)) for _ in range(2)]
    for metric in ranks:
        metric.update(features, target)

    def twice(value: Tensor, group: Any = None) -> list[Tensor]:
        return [value, value]

    ranks[0].dist_sync_fn = twice
    ranks[0].distributed_available_fn = lambda: True
    doubled = torch.cat([features, features]), torch.cat([target, target])
    assert_same(ranks[0].compute(), {"nc1": F.nc1(*doubled)})


def test_collections_share_one_update() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = ("nc1",), ("cdnv", "vci")
            self.metrics = MetricCollection(
                {f"m{number}": NeuralCollapse(K, D, measures=name) for number, name in enumerate(names)}
            )

    metrics = Both().metrics
    features, target = sample()
    metrics.update(features[:20], target[:20])
    metrics.update(features[20:], target[20:])
    expected = {"nc1": F.nc1(features, target), "cdnv": F.cdnv(features, target), "vci": F.vci(features, target)}
    assert_same(metrics.compute(), expected)
    assert metrics.compute_groups == {0: ["m0", "m1"]}


def test_other_metrics_in_a_collection_stay_apart() -> None:
    collection = MetricCollection({"nc": NeuralCollapse(K, K, measures=("nc1",)), "accuracy": MulticlassAccuracy(K)})
    features, target = torch.randn(40, K), torch.arange(40) % K
    collection.update(features, target)
    assert set(collection.compute()) == {"nc1", "accuracy"}


def test_half_precision_modules_keep_a_float64_state() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.metric = NeuralCollapse(K, D)

    metric = Holder().half().metric
    assert {getattr(metric, name).dtype for name in metric._defaults} == {torch.float64}


def test_plot_draws_every_measure() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    metric = NeuralCollapse(K, D, measures=("nc1", "cdnv"))
    metric.update(*sample())
    figure, _ = metric.plot()
    assert figure is not None


def test_undefined_is_nan_in_every_measure_with_one_warning() -> None:
    metric = NeuralCollapse(K, D)
    metric.update(torch.randn(6, D), torch.tensor([0, 0, 1, 1, 3, 3]))
    with pytest.warns(UserWarning, match="no samples of class 2") as caught:
        measured = metric.compute()
    assert len(caught) == 1
    assert all(value.isnan() for value in measured.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_features": 0}, "num_features at least 1"),
        ({"normalize": "class"}, "did you mean 'classes'"),
        ({"between": "sample"}, "did you mean 'samples'"),
        ({"measures": ("nc5",)}, "unknown measure 'nc5'; did you mean"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCollapse(**{"num_classes": K, "num_features": D, **options})


@pytest.mark.parametrize(
    ("features", "target", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), r"\(N, 6\).*got \(2, 5\)"),
        (torch.zeros(2, D), torch.tensor([0, 4]), r"labels must be integers in \[0, 4\)"),
        (torch.zeros(2, D), torch.tensor([0, -1]), r"labels must be integers in \[0, 4\)"),
    ],
)
def test_bad_batches_are_named(features: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCollapse(K, D).update(features, target)


def test_classifier_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight must have shape \(4, 6\) and bias \(4,\), got \(4, 5\), None"):
        NeuralCollapse(K, D).set_classifier(torch.zeros(K, 5))


def test_measures_of_the_classifier_ask_for_it() -> None:
    metric = NeuralCollapse(K, D, measures=("nc3_etf_distance",))
    metric.update(*sample())
    with pytest.raises(RuntimeError, match=r"nc3_etf_distance need the classifier: call set_classifier"):
        metric.compute()


def test_second_pass_needs_a_first() -> None:
    with pytest.raises(RuntimeError, match="the second pass needs a first one"):
        NeuralCollapse(K, D, measures=("ncc_accuracy",)).begin_second_pass()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_update_never_waits_for_the_gpu() -> None:
    metric = NeuralCollapse(K, D, measures=EVERYTHING).to("cuda")
    features, target = (value.to("cuda") for value in sample())
    metric.set_classifier(*(value.to("cuda") for value in classifier()))
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(features, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metric.begin_second_pass()
    metric.update(features, target)
    assert_same({name: value.cpu() for name, value in metric.compute().items()}, expected_of(*sample()))
