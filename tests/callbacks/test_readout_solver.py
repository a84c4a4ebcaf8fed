"""A readout is solved in one pass, whatever the data come in, and says what it has chosen."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1, load_delta
from nc_finetune.callbacks import CompileBlocks, DeltaCheckpoint, PrefixCache, ProbePath, ReadoutSolver
from nc_finetune.functional.readout import solve_head
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import LayerReadout

TrainerFactory = Callable[..., L.Trainer]
CLASSES = 4
KEYS = {"train/loss", "train/leave_one_out_accuracy", "train/shrinkage", "train/temperature"}


def make_model(layers: Any = "later_half", classes: int = CLASSES, loss: Any = None, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    method = LayerReadout(layers, **options)
    return ImageClassifier("test_resnet", classes, weights=None, method=method, loss=loss)


def make_images(number: int = 24, classes: int = CLASSES, seed: int = 0) -> TensorDataset:
    """Make images whose brightness tells the class, more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    brightness = 40 * labels.view(-1, 1, 1, 1) + 40
    images = brightness + torch.randint(-40, 41, (number, 3, 32, 32), generator=generator)
    images = images + torch.randint(-30, 31, (number, 1, 1, 1), generator=generator)
    return TensorDataset(images.clamp(0, 255).to(torch.uint8), labels)


def loader(dataset: Dataset[Any], batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, **options)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([*zip(*make_images().tensors, strict=True)])


class Dictionaries(Dataset[Any]):
    def __init__(self) -> None:
        self.samples = make_images()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image, label = self.samples[index]
        return {"image": image, "label": label}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData("sklearn:digits", image_size=32, samples_per_class=8, val_size=60, test_size=60)


def fit(model: ImageClassifier, trainer: L.Trainer, *loaders: Any, **options: Any) -> ReadoutSolver:
    if not loaders and "datamodule" not in options:
        loaders = (loader(make_images()), loader(make_images(12, seed=1)))
    trainer.fit(model, *loaders, **options)
    (solver,) = (part for part in trainer.callbacks if isinstance(part, ReadoutSolver))  # type: ignore[attr-defined]
    return solver


@torch.no_grad()
def features(model: ImageClassifier, dataset: TensorDataset, batch_size: int = 8) -> Tensor:
    images = dataset.tensors[0].split(batch_size)
    return torch.cat([model.eval().features(batch) for batch in images])


def head_by_hand(model: ImageClassifier, dataset: TensorDataset, classes: int = CLASSES) -> Any:
    return solve_head(features(model, dataset), dataset.tensors[1], classes)


# --- the head


@pytest.mark.parametrize(
    "train",
    [
        lambda: loader(make_images()),
        lambda: loader(make_images(), batch_size=5, shuffle=True),
        lambda: loader(make_images(), batch_size=5, drop_last=True),
        lambda: loader(Stream()),
        lambda: loader(Dictionaries()),
    ],
    ids=["batches", "shuffled", "drop_last", "iterable", "dictionaries"],
)
def test_head_is_that_of_the_features_of_all_images(make_trainer: TrainerFactory, train: Callable[[], Any]) -> None:
    model, trainer = make_model(), make_trainer(max_epochs=5)
    untouched = copy.deepcopy(model.backbone.state_dict())
    solver = fit(model, trainer, train(), loader(make_images(12, seed=1)))
    head = head_by_hand(model, make_images())
    torch.testing.assert_close(model.head.weight, head.weight.float(), rtol=1e-3, atol=1e-3)
    assert solver.solved is not None
    assert (solver.solved.accuracy, solver.solved.shrinkage) == (head.accuracy, head.shrinkage)
    assert {name: value.item() for name, value in trainer.callback_metrics.items() if name in KEYS} == pytest.approx(
        dict(zip(sorted(KEYS), (head.accuracy, head.loss, head.shrinkage, head.temperature), strict=True)), rel=1e-3
    )
    assert (trainer.current_epoch, trainer.global_step) == (1, 1)
    assert all(torch.equal(value, untouched[name]) for name, value in model.backbone.state_dict().items())
    (shown,) = trainer.validate(model, loader(make_images(12, seed=1)), verbose=False)
    assert shown["val/accuracy"] == trainer.callback_metrics["val/accuracy"]


@pytest.mark.parametrize("batch_size", quick_first(1, [7, 1, 24]))
def test_batches_change_nothing_beyond_rounding_of_the_features(
    make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """With features that are the same whatever the batch, the head is, too, to the last digits."""
    exact = lambda self, images: images.double().mean((2, 3)) / 255  # noqa: E731
    monkeypatch.setattr(ImageClassifier, "features", exact)
    monkeypatch.setattr(LayerReadout, "widths", lambda self, backbone: {"penultimate": 3})
    heads = []
    for size in (8, batch_size):
        model = make_model("penultimate")
        heads.append(fit(model, make_trainer(), loader(make_images(), size)).solved)
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(heads[0].bias, heads[1].bias, rtol=1e-10, atol=1e-10)


def test_each_training_image_goes_through_the_network_once(make_trainer: TrainerFactory) -> None:
    model = make_model("auto")
    seen: list[int] = []

    def count(_module: Any, inputs: tuple[Tensor], _output: Tensor) -> None:
        seen.append(0 if inputs[0].is_meta else len(inputs[0]))

    model.backbone.model.conv1.register_forward_hook(count)
    fit(model, make_trainer(num_sanity_val_steps=0))
    assert sum(seen) == 24 + 12


@pytest.mark.parametrize(
    "options", quick_first(1, [{"check_val_every_n_epoch": 3}, {}, {"max_epochs": -1}, {"max_steps": 50}])
)
def test_one_epoch_is_all(make_trainer: TrainerFactory, options: Any) -> None:
    trainer = make_trainer(EarlyStopping("val/loss"), **{"max_epochs": 4, **options})
    fit(make_model(), trainer)
    assert (trainer.current_epoch, trainer.global_step) == (1, 1)
    assert {*KEYS, "val/loss", "val/accuracy", "val/balanced_accuracy"} <= {*trainer.callback_metrics}


def test_without_validation_data_there_is_a_head(make_trainer: TrainerFactory) -> None:
    model, trainer = make_model(), make_trainer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step`")
        solver = fit(model, trainer, loader(make_images()))
    assert solver.solved is not None
    assert {name for name in trainer.callback_metrics if "val" in name} == set()


# --- choosing layers


def test_auto_chooses_by_leave_one_out_and_each_fit_anew(digits: ImageData, make_trainer: TrainerFactory) -> None:
    model, trainer = make_model("auto", 10), make_trainer()
    solver = fit(model, trainer, datamodule=digits)
    assert solver.choice is not None
    assert solver.solved is not None
    assert {*solver.choice.accuracies} == {"penultimate", "last_blocks", "later_half", "all"}
    assert model.method.layers == solver.choice.name
    assert solver.solved.accuracy == solver.choice.accuracies[solver.choice.name]
    assert model.head.in_features == model.method.num_features(model.backbone)
    width = model.head.in_features
    again = fit(model, make_trainer(), loader(make_images(20, 10)))
    assert again.choice is not None
    assert {*again.choice.accuracies} == {*solver.choice.accuracies}
    assert model.head.in_features == model.method.num_features(model.backbone)
    assert (model.method.layers != solver.choice.name) == (model.head.in_features != width)


def test_given_layers_are_not_chosen(make_trainer: TrainerFactory) -> None:
    solver = fit(make_model(["layer1.0", "penultimate"]), make_trainer())
    assert solver.choice is None


# --- precision, and features that are not finite


@pytest.mark.parametrize("precision", quick_first(1, ["bf16-mixed", "bf16-true", "16-true", "64-true"]))
def test_head_is_solved_in_any_precision(make_trainer: TrainerFactory, precision: Any) -> None:
    model, trainer = make_model(), make_trainer(precision=precision)
    solver = fit(model, trainer)
    wanted = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    assert model.head.weight.dtype == wanted.get(precision, torch.float32)
    assert solver.solved is not None
    assert solver.solved.weight.dtype == torch.float64
    exact = fit(make_model(), make_trainer()).solved
    assert exact is not None
    assert solver.solved.accuracy == pytest.approx(exact.accuracy, abs=0.1)


@pytest.mark.parametrize(("layer", "layers"), [("layer3.0", "all"), ("layer4.0", "auto")])
def test_a_layer_that_overflows_is_named(make_trainer: TrainerFactory, layer: str, layers: str) -> None:
    model = make_model(layers)

    def overflow(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output + torch.tensor([0.0, torch.inf]).repeat(len(output))[: len(output)].view(-1, 1, 1, 1)

    model.backbone.get_layer(layer).register_forward_hook(overflow)
    with pytest.raises(ValueError, match=f"features of layer '{layer}' must be finite, got nan or infinity"):
        fit(model, make_trainer(num_sanity_val_steps=0))


# --- what has no discriminant


def test_a_class_without_images_is_never_predicted_and_its_validation_loss_is_finite(
    make_trainer: TrainerFactory,
) -> None:
    model, trainer = make_model("auto", 5), make_trainer()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(model, trainer, loader(make_images()), loader(make_images(20, 5, seed=1)))
    assert len([one for one in seen if "no sample of class 4" in str(one.message)]) == 1
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert 4 not in model(make_images(20, 5).tensors[0]).argmax(1)


def test_a_class_of_one_image_is_learned(make_trainer: TrainerFactory) -> None:
    images, labels = make_images().tensors
    labels = torch.where(labels == 3, 0, labels)
    labels[3] = 3
    model = make_model()
    solver = fit(model, make_trainer(), loader(TensorDataset(images, labels)))
    assert solver.solved is not None
    assert solver.solved.logits[3].isnan().all()
    assert solver.solved.accuracy == solver.solved.accuracy
    assert model.eval()(images[3:4]).argmax() == 3


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: make_images(4), "no class has more than one; give at least one of them two"),
        (
            lambda: TensorDataset(torch.full((8, 3, 32, 32), 9, dtype=torch.uint8), torch.arange(8) % 4),
            "samples coincide with the mean of their class",
        ),
    ],
)
def test_images_without_spread_are_refused(
    make_trainer: TrainerFactory, dataset: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make_model(), make_trainer(), loader(dataset()))


def test_several_labels_an_image_are_refused(make_trainer: TrainerFactory) -> None:
    images, labels = make_images().tensors
    model = make_model(loss=PickAllLabelsLoss())
    with pytest.raises(ValueError, match=r"of which each image has one, .*train a head by LinearProbe or SkipProbe"):
        fit(model, make_trainer(), loader(TensorDataset(images, torch.eye(CLASSES)[labels])))


def test_strategies_that_shard_the_network_are_refused(make_trainer: TrainerFactory) -> None:
    trainer = make_trainer()
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(ValueError, match=r"ReadoutSolver needs the whole network in every process"):
        ReadoutSolver().setup(trainer, make_model(), "fit")


def test_a_probe_path_beside_it_is_refused(make_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match="ProbePath fits a head that is trained, and readout brings its own"):
        fit(make_model(), make_trainer(ProbePath()))


# --- what stands around a fit


@pytest.mark.parametrize("layers", quick_first(1, ["auto", "later_half"]))
def test_checkpoint_brings_back_layers_and_head(
    digits: ImageData, make_trainer: TrainerFactory, tmp_path: Path, layers: str
) -> None:
    model = make_model(layers, 10)
    kept = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    fit(model, make_trainer(kept, enable_checkpointing=True), datamodule=digits)
    images = make_images(3).tensors[0]
    content = torch.load(kept.best_model_path)
    assert content.get("hyper_parameters", {}) == {}, "the command line would take them for arguments"
    loaded = ImageClassifier.load_from_checkpoint(kept.best_model_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    resumed, trainer = make_model(layers, 10), make_trainer(max_epochs=2)
    fit(resumed, trainer, datamodule=digits, ckpt_path=kept.best_model_path)
    assert trainer.current_epoch == 2
    assert resumed.method.layers == model.method.layers
    torch.testing.assert_close(resumed.head.weight, model.head.weight)


def test_delta_holds_the_head_alone_and_brings_layers_back(
    digits: ImageData, make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    model = make_model("auto", 10)
    fit(model, make_trainer(DeltaCheckpoint(tmp_path), enable_checkpointing=True), datamodule=digits)
    (delta,) = tmp_path.glob("*.safetensors")
    assert 4 * model.tuned_parameters <= delta.stat().st_size <= 4 * model.tuned_parameters + 4096
    images = make_images(3).tensors[0]
    for layers in ("auto", model.method.layers):
        loaded = load_delta(delta, make_model(layers, 10)).eval()
        with torch.no_grad():
            assert torch.equal(loaded(images), model.eval()(images))
    with pytest.raises(ValueError, match="the delta was made for another method"):
        load_delta(delta, make_model("penultimate", 10))


def test_loggers_are_told_once_at_step_one(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    trainer = make_trainer(LayerwiseNC1(["penultimate"]), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    fit(make_model(), trainer)
    header, *rows = (Path(trainer.log_dir or "") / "metrics.csv").read_text().splitlines()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert {*KEYS, "nc1/penultimate", "val/accuracy"} <= {*header.split(",")}
    assert {row["step"] for row in table} == {"0"}


@pytest.mark.parametrize("callback", quick_first(1, [PrefixCache, CompileBlocks]))
def test_callbacks_change_nothing(make_trainer: TrainerFactory, callback: Callable[[], L.Callback]) -> None:
    plain, beside = make_model("auto"), make_model("auto")
    fit(plain, make_trainer())
    fit(beside, make_trainer(callback()))
    assert plain.method.layers == beside.method.layers
    torch.testing.assert_close(beside.head.weight, plain.head.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_shared_cache_of_all_splits_gives_the_same_scores(
    digits: ImageData, make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    found = []
    for kept in ([], [tmp_path], [tmp_path]):  # filled, and found again
        caches = [PrefixCache(str(folder), splits=("train", "val", "test")) for folder in kept]
        model, trainer = make_model("auto", 10), make_trainer(*caches)
        solver = fit(model, trainer, datamodule=digits)
        (test,) = trainer.test(model, datamodule=digits, verbose=False)
        assert solver.solved is not None
        found.append((model.method.layers, solver.solved.accuracy, test["test/accuracy"], test["test/loss"]))
    assert found[1] == found[2]
    assert found[0][:3] == found[1][:3]
    assert found[0][3] == pytest.approx(found[1][3], rel=1e-4)


@pytest.mark.parametrize(
    "options", quick_first(1, [{"fast_dev_run": True}, {"limit_train_batches": 2}, {"limit_train_batches": 0.1}])
)
def test_a_fit_of_few_batches_looks_at_few_images_of_every_class(make_trainer: TrainerFactory, options: Any) -> None:
    images, labels = make_images(120).tensors
    order = labels.argsort()  # as folders are sorted
    dataset = TensorDataset(images[order], labels[order])
    model = make_model("auto")
    solver = fit(model, make_trainer(**options), loader(dataset), loader(make_images(12, seed=1)))
    assert solver.solved is not None
    assert CLASSES * 2 <= len(solver.solved.logits) <= 24
    assert model.head.weight.norm(dim=1).min() > 0
