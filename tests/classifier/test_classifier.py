import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first, quick_where
from crossed import crossed
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.classifier import DivergedError
from nc_finetune.methods import (
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    SkipConnectionFinetuning,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]

KEY = "layer2.0"
METHODS = {
    "linear_probe": LinearProbe,
    "layer_ft": partial(LayerFinetuning, KEY),
    "scl_ft": partial(SkipConnectionFinetuning, KEY),
    "full_ft": FullFinetuning,
}
every_method = pytest.mark.parametrize("method", METHODS)


def make_model(num_classes: int = 3, method: str = "linear_probe", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("test_resnet", num_classes, weights=None, method=METHODS[method](), **options)


def load_once(batch: Any) -> DataLoader[Any]:
    return DataLoader([batch], batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


class Constant(nn.Module):
    """A head that always gives the same logits, and learns nothing."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :1] * 0 + torch.arange(self.num_classes)


class Data(L.LightningDataModule):
    """A datamodule around two loaders, which may say how many classes it has."""

    def __init__(self, loader: DataLoader[Any], num_classes: int | None = None) -> None:
        super().__init__()
        self.loader = loader
        if num_classes is not None:
            self.num_classes = num_classes

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader


# --- how much is tuned


@pytest.mark.parametrize(
    ("name", "method", "num_classes", "percent"),
    quick_first(
        4,
        [
            ("resnet50", LinearProbe(), 100, ["0.86"]),
            ("resnet50", SkipConnectionFinetuning("layer3.0"), 37, ["6.73"]),
            ("vit_base_patch32_224", LinearProbe(), 37, ["0.03"]),
            ("vit_base_patch32_224", LayerFinetuning("blocks.6"), 100, ["8.18", "8.19"]),
            ("resnet50", LinearProbe(), 10, ["0.09"]),
            ("resnet50", LinearProbe(), 47, ["0.41"]),
            ("resnet50", LinearProbe(), 37, ["0.32"]),
            ("resnet50", LayerFinetuning("layer3.0"), 10, ["6.52"]),
            ("resnet50", LayerFinetuning("layer3.0"), 100, ["7.24"]),
            ("resnet50", SkipConnectionFinetuning("layer3.0"), 47, ["6.82"]),
            ("vit_base_patch32_224", LinearProbe(), 100, ["0.09"]),
            ("vit_base_patch32_224", LinearProbe(), 47, ["0.04"]),
            ("vit_base_patch32_224", SkipConnectionFinetuning("blocks.0"), 47, ["8.14"]),
            ("vit_base_patch32_224", SkipConnectionFinetuning("blocks.11"), 37, ["8.13"]),
        ],
    ),
)
def test_tuned_share_is_that_of_the_published_table(
    name: str, method: FinetuningMethod, num_classes: int, percent: list[str]
) -> None:
    with torch.device("meta"):
        model = ImageClassifier(name, num_classes, weights=None, method=method)
    assert f"{100 * model.tuned_parameters / model.total_parameters:.2f}" in percent


def test_counts_of_resnet50_are_those_of_the_method_page() -> None:
    with torch.device("meta"):
        model = ImageClassifier("resnet50", 10, weights=None, method=LayerFinetuning("layer3.0"))
    head = 2048 * 10 + 10
    assert (model.tuned_parameters, model.total_parameters) == (1_512_448 + head, 23_508_032 + head)


def test_layer_fine_tuning_with_and_without_skip_tune_the_same_number() -> None:
    numbers = {method: make_model(method=method).tuned_parameters for method in METHODS}
    assert numbers["linear_probe"] < numbers["layer_ft"] == numbers["scl_ft"] < numbers["full_ft"]


def test_full_fine_tuning_tunes_all() -> None:
    model = make_model(method="full_ft")
    assert model.tuned_parameters == model.total_parameters


# --- the optimizer


def optimizer_of(trainer: L.Trainer, model: ImageClassifier, loader: DataLoader[Any]) -> torch.optim.Optimizer:
    trainer.fit(model, loader)
    return trainer.optimizers[0]


@every_method
def test_optimizer_holds_what_is_trained_each_once(
    method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model = make_model(method=method)
    optimizer = optimizer_of(make_trainer(), model, make_loader())
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(held) == sorted(trained)
    assert len(held) == len(set(held))


@pytest.mark.parametrize(
    ("method", "options", "rates"),
    [
        ("linear_probe", {}, {"head": 1e-3}),
        ("linear_probe", {"head_learning_rate": 0.2}, {"head": 0.2}),
        ("linear_probe", {"learning_rate": 0.1, "head_learning_rate": 0.2}, {"head": 0.1}),
        ("layer_ft", {}, {"head": 1e-3, "block": 3e-3}),
        ("scl_ft", {}, {"head": 1e-3, "block": 3e-3}),
        ("scl_ft", {"learning_rate": 0.1, "head_learning_rate": 0.2}, {"head": 0.2, "block": 0.1}),
        ("scl_ft", {"learning_rate": 0.0}, {"head": 1e-3, "block": 0.0}),
        ("full_ft", {}, {"head": 1e-3, "backbone": 3e-4}),
    ],
)
def test_every_group_starts_with_its_rate(
    method: str,
    options: dict[str, float],
    rates: dict[str, float],
    make_loader: LoaderFactory,
    make_trainer: TrainerFactory,
) -> None:
    model = make_model(method=method, **options)
    groups = optimizer_of(make_trainer(), model, make_loader()).param_groups
    assert {group["name"]: group["initial_lr"] for group in groups} == rates
    sizes = {group["name"]: sum(parameter.numel() for parameter in group["params"]) for group in groups}
    assert sizes["head"] == 96 * 3 + 3


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, {"head": 1e-3, "block": 3e-3, "backbone": 3e-4}),
        (
            {"learning_rate": 0.1, "head_learning_rate": 0.2, "rest_learning_rate": 0.0},
            {"head": 0.2, "block": 0.1, "backbone": 0.0},
        ),
    ],
)
def test_block_head_and_rest_have_rates_of_their_own(
    options: dict[str, float], rates: dict[str, float], make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    backbone = TimmBackbone("test_resnet", None)
    method = FullFinetuning(key_layer=["layer2.0", "layer3.0"])
    model = ImageClassifier(backbone, 3, method=method, **options)
    before = {name: value.clone() for name, value in model.backbone.model.named_parameters()}
    trainer = make_trainer()
    groups = optimizer_of(trainer, model, make_loader()).param_groups
    assert {group["name"]: group["initial_lr"] for group in groups} == rates
    span = [value for name, value in backbone.model.named_parameters() if name.startswith(("layer2.0.", "layer3.0."))]
    (block,) = (group["params"] for group in groups if group["name"] == "block")
    assert [id(value) for value in block] == [id(value) for value in span]
    if not options:
        return
    trainer.fit(model, make_loader())
    moved = {name for name, value in model.backbone.model.named_parameters() if not torch.equal(before[name], value)}
    assert moved
    assert all(name.startswith(("layer2.0.", "layer3.0.")) for name in moved)


def test_rates_fall_to_zero_along_a_cosine_step_by_step(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    rates: list[float] = []

    class RateRecorder(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = make_model(head_learning_rate=0.1)
    optimizer = optimizer_of(make_trainer(RateRecorder(), max_epochs=2), model, make_loader())
    rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(7)])


def test_rates_stay_where_the_end_is_not_known(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    optimizer = optimizer_of(make_trainer(Stop(), max_epochs=-1), make_model(), make_loader())
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_optimizer_may_be_chosen(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model = make_model(optimizer=partial(torch.optim.SGD, momentum=0.5))
    optimizer = optimizer_of(make_trainer(), model, make_loader())
    assert (type(optimizer), optimizer.param_groups[0]["momentum"]) == (torch.optim.SGD, 0.5)


def test_parameters_of_a_loss_are_trained_but_not_counted(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Tempered(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(1.0))

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return super().forward(logits / self.temperature, labels)

    model = make_model(loss=Tempered())
    assert model.tuned_parameters == make_model().tuned_parameters
    make_trainer().fit(model, make_loader())
    assert model.loss.temperature.item() != 1


def test_head_without_parameters_leaves_the_block_alone_to_train(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    groups = optimizer_of(make_trainer(), make_model(method="layer_ft", head=Constant), make_loader()).param_groups
    assert [group["name"] for group in groups] == ["block"]


def test_nothing_to_train_is_an_error(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    match = "nothing to train: the head has no parameters, and linear probe tunes nothing else; choose another method"
    with pytest.raises(ValueError, match=match):
        make_trainer().fit(make_model(head=Constant), make_loader())


# --- its parts


def test_method_is_the_linear_probe_unless_given() -> None:
    assert isinstance(ImageClassifier("test_resnet", 3, weights=None).method, LinearProbe)


def test_backbone_may_be_given_itself() -> None:
    backbone = TimmBackbone("test_vit", weights=None)
    model = ImageClassifier(backbone, 3)
    assert model.backbone is backbone
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_logits_are_the_head_on_the_features_of_the_method() -> None:
    model, images = make_model(method="scl_ft").eval(), torch.rand(2, 3, 32, 32)
    features = SkipConnectionFinetuning(KEY).features(model.backbone, images)
    torch.testing.assert_close(model(images), features @ model.head.weight.T + model.head.bias)


def test_head_is_built_from_both_widths() -> None:
    head = make_model(5, head=partial(nn.Linear, bias=False)).head
    assert (head.in_features, head.out_features, head.bias) == (96, 5, None)


def test_loss_may_be_chosen(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    class Seven(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return logits.sum() * 0 + 7

    trainer = make_trainer()
    trainer.fit(make_model(loss=Seven()), make_loader(), make_loader())
    assert trainer.callback_metrics["train/loss"] == trainer.callback_metrics["val/loss"] == 7


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes_are_an_error(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"num_classes must be at least 2, got {num_classes}; one class leaves"):
        make_model(num_classes)


def test_unknown_key_layer_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="unknown layer 'layer9'"):
        ImageClassifier("test_resnet", 3, weights=None, method=LayerFinetuning("layer9"))


def test_switching_to_train_mode_leaves_what_is_frozen_asleep() -> None:
    model = make_model(method="layer_ft").eval().train()
    assert model.head.training
    assert model.backbone.get_layer(KEY).training
    assert not model.backbone.get_layer("layer3.0").training


def test_head_is_in_train_mode_though_the_model_came_in_eval_mode(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    modes: list[bool] = []

    class ModeRecorder(L.Callback):
        def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
            modes.append(pl_module.head.training)

    make_trainer(ModeRecorder()).fit(make_model().eval(), make_loader())
    assert modes == [True] * 3


def test_eval_mode_is_eval_mode_everywhere() -> None:
    assert not any(part.training for part in make_model(method="full_ft").eval().modules())


# --- numbers


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluating_without_fitting_gives_the_numbers_of_all_samples(
    stage: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, loader = make_model(), make_loader(num_samples=13, batch_size=5)
    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = model.eval()(images)
    (metrics,) = getattr(make_trainer(), stage)(model, loader, verbose=False)
    name = "val" if stage == "validate" else "test"
    assert set(metrics) == {f"{name}/loss", f"{name}/accuracy", f"{name}/balanced_accuracy"}
    assert metrics[f"{name}/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert metrics[f"{name}/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_fitting_logs_what_the_docstring_says(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    trainer = make_trainer()
    trainer.fit(make_model(), make_loader(), make_loader())
    assert set(trainer.callback_metrics) == {"train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy"}


@every_method
def test_training_lowers_the_loss(method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model, loader = make_model(method=method), make_loader()
    (before,) = make_trainer().validate(model, loader, verbose=False)
    make_trainer(max_epochs=5).fit(model, loader)
    (after,) = make_trainer().validate(model, loader, verbose=False)
    assert after["val/loss"] < before["val/loss"]


def test_prediction_is_the_softmax_of_the_logits(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model, loader = make_model(), make_loader()
    batches = make_trainer().predict(model, loader)
    probabilities = torch.cat(batches)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model.eval()(loader.dataset.tensors[0])  # type: ignore[attr-defined]
    torch.testing.assert_close(probabilities, logits.exp() / logits.exp().sum(dim=1, keepdim=True))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(9))


def test_prediction_needs_no_labels(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model, loader = make_model(), make_loader()
    images: Any = loader.dataset.tensors[0]  # type: ignore[attr-defined]
    without = make_trainer().predict(model, DataLoader(images, batch_size=4))
    assert torch.equal(torch.cat(without), torch.cat(make_trainer().predict(model, loader)))  # type: ignore[arg-type]


def test_same_seed_same_numbers_and_another_seed_others(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    def run(seed: int) -> ImageClassifier:
        L.seed_everything(seed, verbose=False)
        backbone = TimmBackbone("test_resnet", None, {"drop_rate": 0.3, "drop_path_rate": 0.3})
        model = ImageClassifier(backbone, 3, method=SkipConnectionFinetuning(KEY))
        loader = DataLoader(make_loader().dataset, batch_size=4, shuffle=True)
        make_trainer(max_epochs=2).fit(model, loader)
        return model

    first = run(0)
    assert same_weights(first, run(0))
    assert not same_weights(first, run(1))


@pytest.mark.parametrize("method", quick_where({"scl_ft", "full_ft"}.__contains__, METHODS))
def test_resuming_equals_an_uninterrupted_run_bit_for_bit(
    method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    whole, resumed, rest = make_model(method=method), make_model(method=method), make_model(method=method)
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    make_trainer(saver, max_epochs=3, enable_checkpointing=True).fit(whole, make_loader(), make_loader())
    trainer = make_trainer(max_epochs=3)
    trainer.fit(resumed, make_loader(), make_loader(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert trainer.global_step == 9
    assert same_weights(resumed, whole)
    # Which an epoch from new would not do:
    make_trainer(max_epochs=1).fit(rest, make_loader())
    assert not same_weights(rest, whole)


# --- what can go wrong


class DivergesOnce(nn.CrossEntropyLoss):
    """Not finite at one training step, and finite again afterwards."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__()
        self.step, self.value, self.calls = step, value, 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        loss = super().forward(logits, labels)
        return loss + self.value if self.calls == self.step else loss  # gradients stay finite


@pytest.mark.parametrize(("value", "step"), crossed([math.nan, math.inf], [1, 2, 4]))
def test_loss_that_is_not_finite_ends_the_run_after_its_epoch(
    value: float, step: int, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    loss, trainer = DivergesOnce(step, value), make_trainer(max_epochs=3)
    epoch = (step - 1) // 3
    match = rf"the training loss was not finite in epoch {epoch}: lower the learning rate \(now \[0.001, 0.003\]\)"
    with pytest.raises(DivergedError, match=match):
        trainer.fit(make_model(method="scl_ft", loss=loss), make_loader())
    assert loss.calls == 3 * (epoch + 1)


def test_model_that_diverged_can_be_trained_again(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model = make_model(loss=DivergesOnce(1, math.inf))
    with pytest.raises(DivergedError):
        make_trainer().fit(model, make_loader())
    trainer = make_trainer()
    model.head.reset_parameters()  # type: ignore[operator]
    trainer.fit(model, make_loader())
    assert trainer.current_epoch == 1


def test_loss_that_is_not_finite_in_validation_alone_goes_on(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    trainer = make_trainer(num_sanity_val_steps=0)
    trainer.fit(make_model(loss=DivergesOnce(4, math.nan)), make_loader(), make_loader())
    assert trainer.callback_metrics["val/loss"].isnan()


IMAGES, LABELS = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        (IMAGES, "got Tensor"),
        ({"image": IMAGES, "label": [0, 1]}, r"got tuple of \['Tensor', 'list'\]"),
        ((IMAGES,), r"got tuple of \['Tensor'\]"),
        ((IMAGES, LABELS, LABELS), r"got tuple of \['Tensor', 'Tensor', 'Tensor'\]"),
        ([IMAGES, ["a", "b"]], r"got list of \['Tensor', 'list'\]"),
        ((), r"got tuple of \[\]"),
    ],
)
def test_batch_that_is_no_pair_of_tensors_is_an_error(batch: Any, given: str, make_trainer: TrainerFactory) -> None:
    with pytest.raises(TypeError, match=rf"a batch must be \(images, labels\), two tensors; {given}$"):
        make_trainer().fit(make_model(), load_once(batch))


@pytest.mark.parametrize(
    ("images", "labels", "given"),
    [
        (IMAGES[:, 0], LABELS, r"images must have shape \(N, 3, H, W\), got \(2, 32, 32\)"),
        (IMAGES, LABELS[:1], r"labels must be integers of shape \(2,\), got torch.int64 of shape \(1,\)"),
        (IMAGES, LABELS[:, None], r"labels must be integers of shape \(2,\), got torch.int64 of shape \(2, 1\)"),
        (IMAGES, LABELS.float(), r"labels must be integers of shape \(2,\), got torch.float32 of shape \(2,\)"),
    ],
)
def test_images_and_labels_of_other_shapes_or_kinds_are_an_error(
    images: Tensor, labels: Tensor, given: str, make_trainer: TrainerFactory
) -> None:
    with pytest.raises(ValueError, match=given):
        make_trainer().fit(make_model(), load_once((images, labels)))


@pytest.mark.parametrize(("labels", "given"), [([0, 3], "0 to 3"), ([-1, 2], "-1 to 2")])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_labels_out_of_range_are_an_error_in_every_stage(
    labels: list[int], given: str, stage: str, make_trainer: TrainerFactory
) -> None:
    batch = (IMAGES, torch.tensor(labels))
    match = rf"labels must lie in \[0, 3\), got {given}; set num_classes to the number of classes in the data"
    with pytest.raises(ValueError, match=match):
        getattr(make_trainer(), stage)(make_model(), load_once(batch))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_may_be_any_integers(
    dtype: torch.dtype, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    images, labels = make_loader().dataset.tensors  # type: ignore[attr-defined]
    model, reference = make_model(), make_model()
    make_trainer().fit(reference, make_loader())
    make_trainer().fit(model, DataLoader(TensorDataset(images, labels.to(dtype)), batch_size=4))
    assert same_weights(model, reference)


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_another_number_of_classes_in_the_data_is_an_error(
    stage: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    with pytest.raises(ValueError, match="the data have 4 classes, the model was built for num_classes=3"):
        getattr(make_trainer(), stage)(make_model(), datamodule=Data(make_loader(), 4))


@pytest.mark.parametrize("num_classes", [3, None])
def test_data_that_fit_or_do_not_say_are_taken(
    num_classes: int | None, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    trainer = make_trainer()
    trainer.fit(make_model(), datamodule=Data(make_loader(), num_classes))
    assert trainer.global_step == 3


def test_datamodule_brings_no_warning_about_who_checks_batches(
    make_loader: LoaderFactory, make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_connector, "warning_cache", WarningCache())  # Lightning warns once a process
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer().fit(make_model(), datamodule=Data(make_loader()))
    assert not [w for w in caught if "on_before_batch_transfer" in str(w.message)]


def test_parameter_groups_reach_a_function_as_they_are(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    seen: list[list[str]] = []

    def build(groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        groups = list(groups)
        seen.append([group["name"] for group in groups])
        return torch.optim.Adam(groups)

    make_trainer().fit(make_model(method="full_ft", optimizer=build), make_loader())
    assert seen == [["head", "backbone"]]
