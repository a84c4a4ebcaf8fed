"""What a GPU would refuse, without a GPU: mixed devices, and hosts that wait where nobody means them to."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from conftest import quick_first, quick_where
from fake_cuda import CUDA, rehearsed_cuda, to_cuda
from plain_module import CLASSES, PlainModule
from tiny_clip import register_tiny_clip
from torch import Tensor, nn
from torchvision.transforms import v2

from nc_finetune import ImageClassifier, NeuralCollapse, heads, losses, methods
from nc_finetune.backbones import Backbone, FrozenPrefix, create_backbone, find_network_layers
from nc_finetune.callbacks._collapse.layer_sums import max_kept_samples
from nc_finetune.callbacks._collapse.measurement import Measurement
from nc_finetune.callbacks.head_alignment import _ClassSums
from nc_finetune.data import PerImage, RandomCropFlip
from nc_finetune.functional import class_statistics, multilabel_collapse, nc1, separation_law
from nc_finetune.functional.logistic_regression import logistic_path
from nc_finetune.functional.measures import MEASURES
from nc_finetune.heads import HEAD_NAMES, FrameHead
from nc_finetune.losses import LOSS_NAMES
from nc_finetune.methods import METHOD_NAMES, FinetuningMethod

K, D, N = 3, 12, 24
# Network and size of its images.
NETS = {"ResNet": ("test_resnet", 32), "ViT": ("test_vit", 160), "EfficientNet": ("tf_efficientnet_lite0", 32)}
METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    **{name: getattr(methods, name) for name in METHOD_NAMES if name not in ("Control", "ZeroShot", "ProbeFirst")},
    "ProbeFirst": lambda: methods.ProbeFirst(methods.SideFinetuning(), probe_epochs=1),
    "Control": lambda: methods.Control("nearest_class_mean"),
    "matched": lambda: methods.SkipConnectionFinetuning(scale="matched"),
    "learned": lambda: methods.SideFinetuning(scale="learned"),
    "several": lambda: methods.SkipProbe(scale="matched"),
}
# Where the host waits on purpose. A measurement waits once when it is computed, never while batches go by.
COMPUTES = {
    "between_class:undefined_reason",  # whether there is anything to compute, and its words
    "measures:_share",
    "neural_collapse:_check_second_pass",
    "neural_collapse:begin_second_pass",
    "self_duality:_distance",
    "simplex_etf:is_undefined_frame",
    "simplex_etf:nc2_equiangle",
    "variability:_cdnv_compute",
    "variability:_rank_between",
    "variability:_unexplained",
    "variability:whitener",  # how many directions are kept: shapes follow from it
}


def backbone(net: str) -> tuple[Backbone, int]:
    name, size = NETS.get(net) or (f"open_clip:{register_tiny_clip()}", 32)
    return create_backbone(name, None), size


def images(size: int, number: int = 2) -> Tensor:
    return torch.randint(256, (number, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def features() -> tuple[Tensor, Tensor]:
    target = torch.arange(N) % K
    drawn = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    return drawn + 2 * target[:, None] * (torch.arange(D) % K), target


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.device == CUDA
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_the_rehearsal_tells_what_a_gpu_would() -> None:
    with rehearsed_cuda() as waits:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        mixtures = (torch.add, lambda a, b: torch.stack([a, b]), nn.functional.mse_loss, torch.dot)
        for mixture in mixtures:
            with pytest.raises(RuntimeError, match="on the same device"):
                mixture(there, here)
        assert (there + 1).device == (there * torch.tensor(2.0)).device == there.to(torch.float64).device == CUDA
        assert waits == set()
        masks = (lambda: there[there > 0], lambda: bool(there.any()))
        for wait in (there.sum().item, there.tolist, there.cpu, there.nonzero, *masks):
            waits.clear()
            wait()
            assert waits == {"a library"}


# Every method on one network, and the ones that look into the network on all.
MODELS = [(net, method) for method in METHODS for net in (*NETS, "CLIP")]
EVERYWHERE = ("SkipConnectionFinetuning", "AdapterTuning", "NormTuning")


@pytest.mark.parametrize(("net", "method"), quick_where(lambda one: one[0] == "ResNet" or one[1] in EVERYWHERE, MODELS))
def test_methods_run_without_waiting(net: str, method: str) -> None:
    built, size = backbone(net)
    model = ImageClassifier(built, K, method=METHODS[method]()).train()
    model(images(size))  # a matched skip measures once
    expected = [model.train(mode)(images(size)).detach() for mode in (False, True)]
    with rehearsed_cuda() as waits:
        to_cuda(model)(images(size).to("cuda"))
        waits.clear()
        found = [model.train(mode)(images(size).to("cuda")).detach() for mode in (False, True)]
        assert waits == set()
        for logits, wanted in zip(found, expected, strict=True):
            assert_near(logits, wanted)


def test_every_method_is_rehearsed() -> None:
    assert {*METHODS, "ZeroShot"} >= set(METHOD_NAMES)


def test_zero_shot_runs_without_waiting() -> None:
    built = create_backbone(f"open_clip:{register_tiny_clip()}", None, features="projected")
    model = ImageClassifier(built, K, method=methods.ZeroShot()).eval()
    with rehearsed_cuda() as waits:
        assert to_cuda(model)(images(32).to("cuda")).device == CUDA
        assert waits == set()


def test_a_matched_skip_waits_until_it_is_measured_and_no_longer() -> None:
    built, size = backbone("ResNet")
    model = ImageClassifier(built, K, method=METHODS["matched"]()).train()
    with rehearsed_cuda() as waits:
        to_cuda(model)(images(size).to("cuda"))
        assert waits == {"_skips:_matched_factors"}
        waits.clear()
        model(images(size).to("cuda"))
        assert waits == set()


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "Linear": nn.Linear,
    **{name: getattr(heads, name) for name in HEAD_NAMES if name != "ZeroShotHead"},
    "SimplexETFHead at random": partial(heads.SimplexETFHead, orientation="random"),
    "ZeroShotHead": lambda width, classes: heads.ZeroShotHead(width, classes, torch.eye(classes, width)),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("net", quick_first(1, ["ResNet", "ViT"]))
def test_steps_run_without_waiting(head: str, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, size = backbone(net)
    model = ImageClassifier(built, K, head=HEADS[head]).train()
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: value}))
    with rehearsed_cuda() as waits:
        to_cuda(model)
        batch = images(size).to("cuda"), torch.tensor([0, 2], device="cuda")
        model.training_step(batch, 0)
        assert logged["train/loss"].device == CUDA
        assert waits == set()


@cache
def loss_of(name: str) -> nn.Module:
    options = {"ClassBalanced": {"loss": nn.CrossEntropyLoss()}}.get(name, {})
    loss: nn.Module = getattr(losses if name in LOSS_NAMES else nn, name)(**options)
    if name == "ClassBalanced":
        loss.use_class_counts([3, 2, 1])  # type: ignore[operator]
    return loss


@pytest.mark.parametrize("name", ["CrossEntropyLoss", *LOSS_NAMES])
def test_losses_run_without_waiting(name: str) -> None:
    loss, logits = loss_of(name), torch.randn(4, K)
    several = getattr(loss, "multilabel", False)
    target = torch.eye(K, dtype=torch.int64)[[0, 1, 2, 0]] if several else torch.tensor([0, 1, 2, 0])
    expected = loss(logits, target)
    with rehearsed_cuda() as waits:
        found = to_cuda(loss)(logits.to("cuda"), target.to("cuda"))
        assert waits == set()
        assert_near(found, expected)


@pytest.mark.parametrize("transform", [RandomCropFlip(), PerImage(v2.RandomHorizontalFlip(1.0))], ids=["crop", "each"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batch_transforms_run_without_waiting(transform: Any, dtype: torch.dtype) -> None:
    batch = images(16, 4).to(dtype)
    torch.manual_seed(0)
    expected = transform(batch)
    with rehearsed_cuda() as waits:
        torch.manual_seed(0)
        found = transform(batch.to("cuda"))
        assert waits == set()
        assert_near(found, expected)


class OneProcess:
    """The part of a trainer that sums over processes."""

    @property
    def strategy(self) -> "OneProcess":
        return self

    def reduce(self, value: Tensor, reduce_op: str) -> Tensor:
        return value


@pytest.mark.parametrize("kind", ["SimplexETFHead", "OrthogonalFrameHead"])
def test_heads_align_on_the_device(kind: str) -> None:
    head: FrameHead = getattr(heads, kind)(D, K, orientation="class_means")
    values, target = features()
    with rehearsed_cuda() as waits:
        to_cuda(head)
        sums = _ClassSums(head)
        sums.expect(target.to("cuda"))
        sums.take("", values.to("cuda"))
        assert waits == set()
        head.align_(sums.means(OneProcess()))  # type: ignore[arg-type]
        assert head.weight.device == CUDA
        # Once a fit: whether the means give an orientation, and whether every class has images.
        assert waits <= {"head_alignment:means", "frames:nearest_simplex_etf", "frames:nearest_orthogonal_frame"}


CACHED = ("SkipConnectionFinetuning", "SideFinetuning", "LayerFinetuning", "LinearProbe")


@pytest.mark.parametrize(
    ("net", "method"),
    quick_where(lambda one: "ResNet" in one or CACHED[0] in one, [one for one in MODELS if one[1] in CACHED]),
)
def test_cached_steps_run_without_waiting(net: str, method: str) -> None:
    built, size = backbone(net)
    model = ImageClassifier(built, K, method=METHODS[method]()).eval()
    split = FrozenPrefix(model, images(size))
    kept = split.prefix(images(size))
    with split.resume(kept) as blanks:
        expected = model(blanks)
    with rehearsed_cuda() as waits:
        to_cuda(model)
        with split.resume({name: value.to("cuda") for name, value in kept.items()}) as blanks:
            found = model(blanks)
        assert waits == set()
        assert_near(found.detach(), expected.detach())


@pytest.mark.parametrize("batches", [3, max_kept_samples(D)], ids=["kept", "scatter"])
def test_measuring_waits_when_it_is_computed_alone(batches: int) -> None:
    def make(width: int, measures: tuple[str, ...], scatter: bool) -> NeuralCollapse:
        return NeuralCollapse(CLASSES, width, measures=measures, scatter=scatter)

    net = PlainModule().net.eval()
    pictures, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % CLASSES

    def measure(device: str) -> dict[str, dict[str, float]]:
        layers = find_network_layers(net, num_classes=CLASSES)
        measures = dict.fromkeys(layers.layer_names, ("nc1", "cdnv"))
        measurement = Measurement(layers, measures, CLASSES, make, pooling="default", device=torch.device(device))
        with measurement.watch(measurement.take), torch.no_grad():
            for batch in range(batches):
                measurement.begin_batch(batch, labels.to(device), slice(7))
                net((pictures + batch % 5).to(device))
                measurement.end_batch()
        if device == "cuda":
            assert waits == set()
        measurement.begin_second_pass()
        return measurement.compute()

    expected = measure("cpu")
    with rehearsed_cuda() as waits:
        to_cuda(net)
        found = measure("cuda")
        assert waits <= COMPUTES | {"measurement:_agree", "layer_sums:_compute", "layer_sums:_numbers"}
    for layer, values in expected.items():
        assert found[layer] == pytest.approx(values, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("scatter", [True, False])
def test_metrics_wait_when_they_are_computed_alone(scatter: bool) -> None:
    measures = [name for name, measure in MEASURES.items() if scatter or not measure.needs_scatter]
    weight = torch.randn(K, D)

    def run(device: str, waits: set[str]) -> dict[str, Tensor]:
        metric = NeuralCollapse(K, D, measures=measures, scatter=scatter).to(device)
        metric.set_classifier(weight.to(device))
        values, target = (part.to(device) for part in features())
        metric.update(values, target)
        metric.begin_second_pass()
        before = set(waits)
        metric.update(values, target)
        assert waits == before
        return metric.compute()

    expected = run("cpu", set())
    with rehearsed_cuda() as waits:
        for name, value in run("cuda", waits).items():
            torch.testing.assert_close(value.cpu(), expected[name], equal_nan=True)
        assert waits - {"a library"} <= COMPUTES


def test_functions_stay_on_the_device() -> None:
    values, target = features()
    tags = torch.eye(K, dtype=torch.int64)[target]
    calls: list[Callable[[Tensor, Tensor, Tensor], Any]] = [
        lambda v, t, _: nc1(v, t),
        lambda v, t, _: class_statistics(v, t, K).means,
        lambda v, _, several: multilabel_collapse(v, several).variability,
        lambda v, t, _: separation_law(torch.tensor([4.0, 2.0, 1.0], device=v.device)).slope,
        lambda v, t, _: logistic_path(v, t, K, [1.0, 1e-2])[0].weight,
    ]
    for call in calls:
        expected = call(values, target, tags)
        with rehearsed_cuda():
            assert_near(call(values.to("cuda"), target.to("cuda"), tags.to("cuda")), expected)
