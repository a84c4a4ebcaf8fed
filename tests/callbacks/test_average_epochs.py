"""Weights averaged over epochs, against the mean of those of a fit without, and averages of Lightning beside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first, quick_where
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import DeltaCheckpoint, ImageClassifier, load_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import AverageEpochs, ResumableRun
from nc_finetune.classifier._frozen import frozen_state
from nc_finetune.methods import (
    AdapterTuning,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    ProbeFirst,
    SideFinetuning,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]
METHODS: dict[str, Callable[[], Any]] = {
    "linear_probe": LinearProbe,
    "layer_ft": lambda: LayerFinetuning("layer2.0"),
    "layer_ft_bn": lambda: LayerFinetuning("layer2.0", batch_norm="train"),
    "side_ft": lambda: SideFinetuning("layer2.0"),
    "lora": lambda: AdapterTuning(rank=2),
    "full_ft_bn": lambda: FullFinetuning(batch_norm="train"),
    "auto": lambda: SideFinetuning("auto"),
}


def make_model(method: str = "layer_ft_bn") -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=METHODS[method](), learning_rate=1e-2)


class Note(L.Callback):
    """Notes the weights after each epoch as they are trained, and the logits that are validated."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []
        self.logits: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.is_last_batch or trainer.global_step == trainer.max_steps:
            self.epochs.append({name: value.double().clone() for name, value in pl_module.state_dict().items()})

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking and batch_idx == 0:
            self.logits.append(pl_module(batch[0]).clone())


def logits(model: ImageClassifier, loader: DataLoader[Any]) -> Tensor:
    with torch.no_grad():
        return model.eval()(next(iter(loader))[0])


@pytest.mark.parametrize("method", quick_where({"layer_ft_bn"}.__contains__, sorted(METHODS.keys() - {"auto"})))
def test_the_mean_of_the_later_half_is_validated_and_left(
    method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    plain, averaged, loader = Note(), Note(), make_loader(seed=1)
    make_trainer(plain, max_epochs=4).fit(make_model(method), make_loader(), loader)
    model, saving = make_model(method), DeltaCheckpoint(tmp_path)
    before = {name: value.clone() for name, value in frozen_state(model).items()}
    trainer = make_trainer(averaged, AverageEpochs(0.5), saving, max_epochs=4, enable_checkpointing=True)
    trainer.fit(model, make_loader(), loader)
    for name, value in model.state_dict().items():
        mean = (plain.epochs[2][name] + plain.epochs[3][name]) / 2
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
    for epoch, (one, other) in enumerate(zip(averaged.logits, plain.logits, strict=True)):
        assert torch.equal(one, other) == (epoch < 3), epoch  # of one epoch the mean is that
    assert torch.equal(logits(model, loader), averaged.logits[-1])
    assert torch.equal(logits(load_delta(saving.best_model_path, make_model(method)), loader), averaged.logits[-1])
    after = frozen_state(model.train())
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name in after)


def test_a_fit_that_ends_before_there_is_an_average_keeps_its_weights(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    models = []
    for callbacks in ([], [AverageEpochs(0.9)]):
        models.append(make_model())
        stopping = EarlyStopping("val/loss", stopping_threshold=1e9)
        make_trainer(*callbacks, stopping, max_epochs=9).fit(models[-1], make_loader(), make_loader(seed=1))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_steps_end_a_fit_as_an_epoch_does(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    """Of 8 steps, in epochs of 3, steps 6 and 8 are in the later half."""
    model, note = make_model("linear_probe"), Note()
    make_trainer(note, AverageEpochs(), max_epochs=-1, max_steps=8).fit(model, make_loader(), make_loader(seed=1))
    assert len(note.epochs) == 3
    mean = (note.epochs[1]["head.weight"] + note.epochs[2]["head.weight"]) / 2
    torch.testing.assert_close(model.head.weight.double(), mean, rtol=1e-5, atol=1e-7)


AVERAGES: dict[str, Callable[[], Any]] = {
    "epochs": lambda: AverageEpochs(0.4),
    "ema": lambda: EMAWeightAveraging(decay=0.7),
    "swa": lambda: StochasticWeightAveraging(3e-3, swa_epoch_start=2),
}


class CutOff(L.Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise InterruptedError


class Choose(L.Callback):
    """Chooses the key layer of a method when a fit is set up, as trials do."""

    comes_first = True

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and pl_module.method.key_layer == "auto" and trainer.ckpt_path is None:
            pl_module.method.set_key_layer("layer2.0")
            pl_module.method.freeze(pl_module.backbone)
            pl_module.train()


@pytest.mark.parametrize(
    ("method", "average"),
    quick_first(1, [("auto", "ema"), ("layer_ft_bn", "epochs"), ("lora", "swa"), ("layer_ft_bn", "ema")]),
)
@pytest.mark.filterwarnings("ignore")
def test_a_fit_that_goes_on_ends_with_the_same_average(
    method: str, average: str, make_loader: LoaderFactory, make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    """Wherever the callback stands that chooses the block: averages copy the model as it was set up."""

    def fit(folder: str, *callbacks: L.Callback, resume: bool = False) -> ImageClassifier:
        model, run = make_model(method), ResumableRun(tmp_path / folder)
        options = {"max_epochs": 4, "enable_checkpointing": True}
        trainer = make_trainer(run, AVERAGES[average](), *callbacks, Choose(), **options)
        trainer.ckpt_path = tmp_path / folder / "last.ckpt" if resume else None
        trainer.fit(model, make_loader(), make_loader(seed=1))
        return model

    whole = fit("whole").state_dict()
    with pytest.raises(InterruptedError):
        fit("parts", CutOff())
    resumed = fit("parts", resume=True).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    alone = make_model("side_ft" if method == "auto" else method)
    run = ResumableRun(tmp_path / "alone")
    make_trainer(AVERAGES[average](), run, max_epochs=4, enable_checkpointing=True).fit(
        alone, make_loader(), make_loader(seed=1)
    )
    assert all(torch.equal(value, whole[name]) for name, value in alone.state_dict().items())


def test_an_average_is_not_put_in_the_place_of_another_model(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    trainer, other, loader = make_trainer(EMAWeightAveraging(), max_epochs=1), make_model("side_ft"), make_loader()
    (expected,) = make_trainer().validate(other, loader, verbose=False)
    trainer.fit(make_model("side_ft"), loader, loader)
    (shown,) = trainer.validate(other, loader, verbose=False)
    assert shown == expected


def test_statistics_that_learn_in_the_last_epoch_alone_are_nobodys_fault(
    make_loader: LoaderFactory, make_trainer: TrainerFactory, recwarn: pytest.WarningsRecorder
) -> None:
    method = ProbeFirst(LayerFinetuning("layer2.0", batch_norm="train"), probe_epochs=1)
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=method)
    make_trainer(max_epochs=2).fit(model, make_loader(), make_loader(seed=1))
    assert not [one for one in recwarn if "leaves frozen were written" in str(one.message)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:SWA is currently only")
def test_an_average_that_came_to_nothing_is_told(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    stopping = EarlyStopping("val/loss", stopping_threshold=1e9)
    swa = StochasticWeightAveraging(1e-3, swa_epoch_start=1)
    with pytest.warns(UserWarning, match=r"its average after epoch 3, and the fit has ended after epoch 0.*Average"):
        make_trainer(stopping, swa, max_epochs=4).fit(make_model(), make_loader(), make_loader(seed=1))


@pytest.mark.parametrize("start", [-0.1, 1.0, 2])
def test_a_start_that_is_no_share_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match=rf"start must be a share of the fit in \[0, 1\), got {start}"):
        AverageEpochs(start)


def test_a_fit_without_an_end_is_refused(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, schedule="constant", head=nn.Linear)
    with pytest.raises(ValueError, match=r"AverageEpochs counts epochs .* the fit has no end; give max_epochs"):
        make_trainer(AverageEpochs(), max_epochs=-1).fit(model, make_loader(), make_loader(seed=1))
