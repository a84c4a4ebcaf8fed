import copy
from collections.abc import Callable
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from crossed import crossed
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from nc_finetune import DeltaCheckpoint, ImageClassifier, ImageData, LayerwiseNC1, load_delta
from nc_finetune.backbones import TimmBackbone, weights_hash
from nc_finetune.callbacks import ProbePath
from nc_finetune.deployment.load import load_model
from nc_finetune.files.delta import read_delta
from nc_finetune.methods import FullFinetuning, LayerFinetuning, LinearProbe, SideFinetuning

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]


def make_model() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=LayerFinetuning("layer2.0"))


def same(one: ImageClassifier, other: ImageClassifier) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_last_epoch_is_saved_and_nothing_else(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, before = make_model(), weights_hash(make_model().backbone.model)
    make_trainer(DeltaCheckpoint(tmp_path / "out"), max_epochs=3, enable_checkpointing=True).fit(model, make_loader())
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "epoch=2-step=9.safetensors"
    assert same(load_delta(path, make_model()), model)
    assert read_delta(path).base_sha256 == before != weights_hash(model.backbone.model)


def test_best_epoch_is_kept_by_a_monitored_metric(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Epochs(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.log("score", float(trainer.current_epoch == 1))

    callback = DeltaCheckpoint(tmp_path / "out", "{epoch}", monitor="score", mode="max")
    make_trainer(Epochs(), callback, max_epochs=3, enable_checkpointing=True).fit(make_model(), make_loader())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["epoch=1.safetensors"]
    assert callback.best_model_path.endswith("epoch=1.safetensors")


def test_every_n_epochs_and_last(tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    callback = DeltaCheckpoint(tmp_path / "out", "{epoch}", every_n_epochs=2, save_top_k=-1, save_last=True)
    make_trainer(callback, max_epochs=4, enable_checkpointing=True).fit(make_model(), make_loader())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["epoch=1.safetensors", "epoch=3.safetensors", "last.safetensors"]


def test_run_resumes_from_the_checkpoint_beside_the_delta(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Interrupt(L.Callback):
        """Cut the run off at the start of its third epoch, which leaves its schedule as it was planned."""

        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise InterruptedError

    def fit(folder: str, *callbacks: L.Callback, **options: Any) -> ImageClassifier:
        model = make_model()
        saving = DeltaCheckpoint(tmp_path / folder, "{epoch}", resumable=True)
        trainer = make_trainer(saving, *callbacks, max_epochs=4, enable_checkpointing=True)
        trainer.fit(model, make_loader(), **options)
        return model

    whole = fit("whole")
    with pytest.raises(InterruptedError):
        fit("parts", Interrupt())
    parts = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert parts == ["epoch=1.ckpt", "epoch=1.safetensors"], "older pairs are removed together"
    resumed = fit("parts", ckpt_path=tmp_path / "parts" / "epoch=1.ckpt")
    assert same(resumed, whole)
    delta = read_delta(tmp_path / "parts" / "epoch=3.safetensors")
    assert delta.base_sha256 == weights_hash(make_model().backbone.model)
    assert same(load_delta(tmp_path / "parts" / "epoch=3.safetensors", make_model()), whole)


def test_class_names_and_image_size_come_from_the_datamodule(tmp_path: Path, make_trainer: TrainerFactory) -> None:
    data = ImageData("sklearn:digits", image_size=16, samples_per_class=1, val_size=20, interpolation="bilinear")
    model = ImageClassifier(TimmBackbone("test_resnet", None), 10)
    make_trainer(DeltaCheckpoint(tmp_path / "out"), enable_checkpointing=True).fit(model, data)
    (path,) = (tmp_path / "out").iterdir()
    config = read_delta(path).config
    assert config.class_names == [str(digit) for digit in range(10)]
    assert (config.image_size, config.interpolation) == (16, "bilinear")


METHODS: dict[str, Callable[[], Any]] = {
    "linear_probe": LinearProbe,
    "layer_ft": lambda: LayerFinetuning("layer2.0"),
    "layer_ft_bn": lambda: LayerFinetuning("layer2.0", batch_norm="train"),
    "side_ft": lambda: SideFinetuning("layer2.0"),
    "full_ft": FullFinetuning,
}


def make(method: str) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=METHODS[method](), learning_rate=3e-3)


class EveryEpoch(WeightAveraging):
    """An equal average over epochs, which is updated after the validation of each."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


class Validated(L.Callback):
    """Notes the logits of one batch as each validation had them, by the score that it logged."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.scores: list[float] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking and batch_idx == 0:
            self.logits.append(pl_module(batch[0]).clone())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.scores.append(float(trainer.callback_metrics["val/loss"]))


AVERAGES: dict[str, Callable[[], Any]] = {
    "ema": lambda: EMAWeightAveraging(decay=0.7),
    "ema_of_weights": lambda: EMAWeightAveraging(decay=0.7, use_buffers=False),
    "average": WeightAveraging,
    "average_of_epochs": EveryEpoch,
    "swa": lambda: StochasticWeightAveraging(3e-3, swa_epoch_start=1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("monitor", "method", "average"),
    crossed([None, "val/loss"], ["linear_probe", "layer_ft_bn", "full_ft"], AVERAGES),
)
def test_delta_is_the_model_that_was_validated(
    monitor: str | None,
    method: str,
    average: str,
    tmp_path: Path,
    make_loader: LoaderFactory,
    make_trainer: TrainerFactory,
) -> None:
    base = weights_hash(make(method).backbone.model)
    validated, saving = Validated(), DeltaCheckpoint(tmp_path / "out", monitor=monitor)
    trainer = make_trainer(AVERAGES[average](), validated, saving, max_epochs=3, enable_checkpointing=True)
    loader = make_loader(seed=1)
    trainer.fit(make(method), make_loader(), loader)
    chosen = -1 if monitor is None else min(range(len(validated.scores)), key=validated.scores.__getitem__)
    loaded = load_delta(saving.best_model_path, make(method)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(next(iter(loader))[0]), validated.logits[chosen])
    assert read_delta(saving.best_model_path).base_sha256 == base
    (shown,) = trainer.test(loaded, loader, verbose=False)
    assert shown["test/loss"] == pytest.approx(validated.scores[chosen], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_trainer_takes_deltas_for_checkpoints(
    method: str, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    saving = DeltaCheckpoint(tmp_path / "out", "{epoch}", monitor="val/loss", mode="max", save_last=True)
    trainer = make_trainer(saving, max_epochs=3, enable_checkpointing=True)
    model, loader = make(method), make_loader(seed=1)
    trainer.fit(model, make_loader(), loader)
    (last,) = make_trainer().test(load_delta(saving.last_model_path, make(method)), loader, verbose=False)
    assert saving.best_model_score is not None
    for way in ({}, {"model": model}):
        (best,) = trainer.test(**way, dataloaders=loader, ckpt_path="best", verbose=False)
        assert best["test/loss"] == pytest.approx(float(saving.best_model_score), rel=1e-6)
        (again,) = trainer.test(**way, dataloaders=loader, ckpt_path="last", verbose=False)
        assert again == last
    (fresh,) = make_trainer().validate(make(method), loader, ckpt_path=saving.best_model_path, verbose=False)
    assert fresh["val/loss"] == pytest.approx(float(saving.best_model_score), rel=1e-6)
    with pytest.raises(ValueError, match=r"no state of the optimizer.*resumable=True.*load_delta"):
        trainer.fit(model, make_loader(), loader, ckpt_path="last")
    other = ImageClassifier(TimmBackbone("test_vit", None, {"img_size": 32}), 3)
    with pytest.raises(ValueError, match="another"):
        make_trainer().test(other, loader, ckpt_path=saving.best_model_path)


@pytest.mark.parametrize("which", ["last", "best", "path"])
def test_fit_goes_on_from_a_resumable_delta(
    which: str, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    saving = DeltaCheckpoint(tmp_path / "out", "{epoch}", resumable=True, save_last="link")
    make_trainer(saving, max_epochs=1, enable_checkpointing=True).fit(make_model(), make_loader())
    path = str(tmp_path / "out" / "last.safetensors") if which == "path" else which
    more = make_trainer(saving, max_epochs=2, enable_checkpointing=True)
    more.fit(make_model(), make_loader(), ckpt_path=path)
    assert more.global_step == 6


def test_names_of_metrics_make_no_folders(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    names = {
        "{epoch}-{val/accuracy:.2f}": r"epoch=0-val_accuracy=0.33",
        "fold_1/{val/loss:.0f}-{step}": r"fold_1/val_loss=1-step=3",
    }
    for template, expected in names.items():
        saving = DeltaCheckpoint(tmp_path / "out", template)
        metrics = {"epoch": torch.tensor(0), "val/accuracy": torch.tensor(1 / 3)}
        metrics |= {"val/loss": torch.tensor(1.2), "step": torch.tensor(3)}
        assert saving.format_checkpoint_name(metrics) == f"{tmp_path / 'out' / expected}.safetensors"
        plain = DeltaCheckpoint(tmp_path / "out", "a{epoch}-b{val/loss:.1f}", auto_insert_metric_name=False)
        assert Path(plain.format_checkpoint_name(metrics)).name == "a0-b1.2.safetensors"
    saving = DeltaCheckpoint(tmp_path / "out", "{epoch}-{val/accuracy:.2f}", monitor="val/accuracy", mode="max")
    make_trainer(saving, enable_checkpointing=True).fit(make_model(), make_loader(), make_loader(seed=1))
    (path,) = (tmp_path / "out").iterdir()
    assert path.name.startswith("epoch=0-val_accuracy=0.")


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"every_n_train_steps": 2, "save_top_k": -1}, 4),
        ({"train_time_interval": timedelta(0), "save_top_k": -1}, 9),
        ({"every_n_train_steps": 2}, 1),
        ({"every_n_epochs": 2, "save_top_k": -1}, 1),
        ({"every_n_epochs": 20}, 1),  # nothing is due: the last state
        ({"every_n_train_steps": 1000}, 1),
        ({"monitor": "val/loss", "save_top_k": 2}, 2),
        ({"save_top_k": 0}, 0),
        ({"save_top_k": 0, "save_last": True}, 1),
        ({"save_on_train_epoch_end": False}, 1),
    ],
)
def test_it_saves_when_a_model_checkpoint_does(
    options: Any, number: int, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    saving = DeltaCheckpoint(tmp_path / "out", **options)
    trainer = make_trainer(saving, max_epochs=3, enable_checkpointing=True)
    trainer.fit(make_model(), make_loader(), make_loader(seed=1))
    files = list((tmp_path / "out").iterdir()) if (tmp_path / "out").is_dir() else []
    assert len(files) == number
    for path in files:
        load_delta(path, make_model())


def test_loggers_are_told(tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    told: list[str] = []

    class Uploader(CSVLogger):
        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            told.append(Path(checkpoint_callback.best_model_path).name)

    saving = DeltaCheckpoint(tmp_path / "out", "{epoch}")
    make_trainer(saving, max_epochs=2, enable_checkpointing=True, logger=Uploader(tmp_path)).fit(
        make_model(), make_loader()
    )
    assert told == ["epoch=0.safetensors", "epoch=1.safetensors"]


@pytest.mark.parametrize(
    ("method", "precision"), zip(METHODS, cycle(("bf16-true", "64-true", "bf16-mixed")), strict=False)
)
def test_delta_of_any_precision_is_loaded(
    method: str, precision: Any, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    saving = DeltaCheckpoint(tmp_path / "out")
    trainer = make_trainer(saving, precision=precision, max_epochs=2, enable_checkpointing=True)
    model, images = make(method), next(iter(make_loader()))[0]
    base = weights_hash(model.backbone.model)
    trainer.fit(model, make_loader())
    model.eval()
    assert read_delta(saving.best_model_path).base_sha256 == base
    loaded = load_delta(saving.best_model_path, make(method)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    (tested,) = trainer.test(make(method), make_loader(), ckpt_path=saving.best_model_path, verbose=False)
    assert tested == trainer.test(model, make_loader(), verbose=False)[0]


def test_delta_of_half_precision_builds_its_model(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    saving = DeltaCheckpoint(tmp_path / "out")
    with make_trainer(precision="bf16-true").init_module():
        model = ImageClassifier("tf_efficientnet_lite0", 3, weights="package")
    make_trainer(saving, precision="bf16-true", enable_checkpointing=True).fit(model, make_loader())
    loaded, _ = load_model(saving.best_model_path)
    model.eval()
    images = next(iter(make_loader()))[0]
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_pruning_is_refused(make_loader: LoaderFactory, make_trainer: TrainerFactory, tmp_path: Path) -> None:
    model = make_model()
    pruning = ModelPruning("l1_unstructured", [(model.head, "weight")], amount=0.5)
    with pytest.raises(ValueError, match="ModelPruning takes apart"):
        make_trainer(DeltaCheckpoint(tmp_path), pruning, enable_checkpointing=True).fit(model, make_loader())


@pytest.mark.parametrize("monitor", quick_first(2, [None, "nc1/penultimate", "val/accuracy", "val/loss", "train/loss"]))
def test_solved_probe_is_saved_and_measured(monitor: str | None, tmp_path: Path, make_trainer: TrainerFactory) -> None:
    data = ImageData("sklearn:digits", image_size=16, samples_per_class=2, val_size=20, test_size=20)
    model = ImageClassifier(TimmBackbone("test_resnet", None), 10)
    untrained = copy.deepcopy(model)
    saving, measuring = DeltaCheckpoint(tmp_path / "out", monitor=monitor), LayerwiseNC1(split=["train", "val"])
    path = ProbePath([1e-3, 1e-1])
    trainer = make_trainer(path, measuring, saving, max_epochs=5, enable_checkpointing=True)
    trainer.fit(model, data)
    best = max(path.path, key=lambda row: (row["val/accuracy"], row["l2"]))
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(best["val/accuracy"])
    assert torch.equal(load_delta(saving.best_model_path, untrained).head.weight, model.head.weight)
    assert {"nc1/stem", "val/nc1/penultimate"} <= {key for row in measuring.history for key in row}
    (tested,) = trainer.test(datamodule=data, ckpt_path="best", verbose=False)
    assert tested == trainer.test(model, data, verbose=False)[0]
