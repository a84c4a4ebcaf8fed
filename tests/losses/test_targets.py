"""Any loss: what it wants for targets, and what its mean over batches is."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import TrainerFactory
from crossed import crossed
from safely import SAFELY
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PredictionWriter
from nc_finetune.losses import ClassBalanced, FocalLoss, PickAllLabelsLoss, check_loss, takes_several_labels
from nc_finetune.metrics import WeightedMean

K, N = 3, 11
WEIGHT = torch.tensor([1.0, 5.0, 0.0])


def loader(target: Tensor, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(target), 3, 32, 32), generator=generator, dtype=torch.uint8)
    return DataLoader(TensorDataset(images, target), batch_size=batch_size)


def one_label() -> Tensor:
    return torch.tensor([2, 2, 2, 2, 0, 1, 0, 1, 2, 0, 0])  # the first batch of four weighs nothing


def several_labels(dtype: torch.dtype = torch.int64) -> Tensor:
    return (torch.arange(N * K).reshape(N, K) % 5 < 2).to(dtype)


def logits_of(model: ImageClassifier, data: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    images, target = data.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        return model.eval()(images), target


class Counted(L.LightningDataModule):
    """A datamodule that knows how often each class occurs."""

    class_counts = (4, 2, 0)

    def __init__(self, data: DataLoader[Any]) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        return self.data

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("batch_size", [1, 4, N])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.CrossEntropyLoss(weight=WEIGHT),
        lambda: nn.CrossEntropyLoss(weight=WEIGHT + 1, label_smoothing=0.2),
        lambda: nn.CrossEntropyLoss(ignore_index=2),
        lambda: nn.CrossEntropyLoss(),
        lambda: FocalLoss(weight=WEIGHT),
        lambda: FocalLoss(),
        lambda: nn.MultiMarginLoss(),
    ],
    ids=["weights", "smoothed", "ignored", "plain", "focal, weights", "focal", "margin"],
)
def test_validation_loss_is_that_of_all_images_whatever_the_batches(
    make: Callable[[], nn.Module], batch_size: int, make_trainer: TrainerFactory
) -> None:
    loss, data = make(), loader(one_label(), batch_size)
    model = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=loss)
    (found,) = make_trainer().validate(model, data, verbose=False)
    assert found["val/loss"] == pytest.approx(loss(*logits_of(model, data)).item(), rel=1e-5)


def test_the_loss_of_a_sum_is_logged_an_image(make_trainer: TrainerFactory) -> None:
    data = loader(one_label())
    model = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=nn.CrossEntropyLoss(reduction="sum"))
    (found,) = make_trainer().validate(model, data, verbose=False)
    assert found["val/loss"] == pytest.approx(F.cross_entropy(*logits_of(model, data)).item(), rel=1e-5)


def test_the_mean_keeps_nan_and_adds_over_processes() -> None:
    metric = WeightedMean()
    metric.update(torch.tensor(float("nan")), torch.tensor(1.0))
    assert metric.compute().isnan()
    first, second = WeightedMean(), WeightedMean()
    first.update(torch.tensor(1.0), torch.tensor(3.0))
    second.update(torch.tensor(5.0), torch.tensor(1.0))
    first.merge_state(second)
    assert first.compute() == 2


LOSSES_OF_SEVERAL: dict[str, Callable[[], nn.Module]] = {
    "BCE": nn.BCEWithLogitsLoss,
    "BCE, pos_weight": lambda: nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])),
    "soft margin": nn.MultiLabelSoftMarginLoss,
    "balanced BCE": lambda: ClassBalanced(nn.BCEWithLogitsLoss()),
    "pick all labels": PickAllLabelsLoss,
}


@pytest.mark.parametrize(
    ("name", "dtype"), crossed(LOSSES_OF_SEVERAL, [torch.int64, torch.uint8, torch.bool, torch.float32])
)
def test_losses_of_several_labels_fit_and_validate(name: str, dtype: torch.dtype, make_trainer: TrainerFactory) -> None:
    loss, data = LOSSES_OF_SEVERAL[name](), loader(several_labels(dtype))
    assert takes_several_labels(loss)
    model = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=loss)
    trainer = make_trainer()
    trainer.fit(model, data, data)
    logits, target = logits_of(model, data)
    wanted = loss(logits, target.float()).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_sigmoids_rank_images_of_a_class_and_softmax_does_not_stand_in(make_trainer: TrainerFactory) -> None:
    data = loader(several_labels())
    model = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=nn.BCEWithLogitsLoss())
    with torch.no_grad():
        model.head.weight.mul_(30)  # type: ignore[union-attr]
    (found,) = make_trainer().validate(model, data, verbose=False)
    logits, target = logits_of(model, data)
    wanted = average_precision_score(target.numpy(), logits.sigmoid().numpy(), average="macro")
    assert found["val/average_precision"] == pytest.approx(wanted, abs=1e-5)


def test_a_delta_keeps_that_probabilities_are_sigmoids(tmp_path: Any, make_trainer: TrainerFactory) -> None:
    data = loader(several_labels())
    model = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=nn.BCEWithLogitsLoss())
    torch.manual_seed(0)
    save_delta(model, tmp_path / "it.safetensors")
    loaded = load_delta(tmp_path / "it.safetensors", ImageClassifier(model.backbone, K, loss=nn.BCEWithLogitsLoss()))
    assert loaded.independent_classes
    writer = PredictionWriter(tmp_path / "predictions.csv")
    make_trainer(writer).predict(loaded, data)
    logits, _ = logits_of(loaded, data)
    lines = writer.path.read_text().splitlines()[1:]
    for line, row in zip(lines, logits.sigmoid().tolist(), strict=True):
        assert line.split(",")[1] == "|".join(str(label) for label, value in enumerate(row) if value >= 0.5)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (F.cross_entropy, TypeError, "loss must be a module .* got cross_entropy; give its module"),
        (nn.CrossEntropyLoss, TypeError, r"got CrossEntropyLoss; write loss=CrossEntropyLoss\(\)"),
        (nn.NLLLoss(), TypeError, "NLLLoss takes log-probabilities, .* use CrossEntropyLoss"),
        (nn.BCELoss(), TypeError, "use BCEWithLogitsLoss"),
        (nn.MSELoss(), TypeError, "use nc_finetune.losses.RescaledMSELoss"),
        (nn.MultiLabelMarginLoss(), TypeError, "use PickAllLabelsLoss"),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "must give one number, not one a sample"),
        ("cross_entropy", TypeError, "loss must be a module"),
    ],
)
def test_what_is_no_loss_of_logits_and_labels_is_refused(loss: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_loss(loss)
    with pytest.raises(error, match=message):
        ImageClassifier("test_resnet", K, weights=None, loss=loss)


@pytest.mark.parametrize(
    ("trained", "loaded"),
    [
        (lambda: nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss),
        (nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(weight=WEIGHT)),
        (lambda: FocalLoss(weight=WEIGHT), FocalLoss),
        (lambda: FocalLoss(weight=WEIGHT), nn.CrossEntropyLoss),
        (ClassBalanced, nn.CrossEntropyLoss),
        (ClassBalanced, ClassBalanced),
        (lambda: nn.CrossEntropyLoss(weight=WEIGHT), ClassBalanced),
    ],
)
def test_checkpoints_load_whatever_the_class_weights(
    trained: Callable[[], nn.Module], loaded: Callable[[], nn.Module], tmp_path: Any, make_trainer: TrainerFactory
) -> None:
    data = loader(one_label() % 2)
    model = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=trained())
    trainer = make_trainer()
    trainer.fit(model, datamodule=Counted(data))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    other = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=loaded())
    make_trainer().test(other, data, ckpt_path=tmp_path / "it.ckpt", verbose=False, **SAFELY)
    assert torch.equal(logits_of(model, data)[0], logits_of(other, data)[0])


def test_a_loss_that_waits_for_weights_takes_those_of_the_checkpoint(
    tmp_path: Any, make_trainer: TrainerFactory
) -> None:
    data = loader(one_label() % 2)
    trainer = make_trainer()
    trainer.fit(ImageClassifier(TimmBackbone("test_resnet", None), K, loss=ClassBalanced()), datamodule=Counted(data))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    other = ImageClassifier(TimmBackbone("test_resnet", None), K, loss=ClassBalanced())
    (found,) = make_trainer().test(other, data, ckpt_path=tmp_path / "it.ckpt", verbose=False, **SAFELY)
    weight = torch.tensor([2 / 3, 4 / 3, 0.0])
    torch.testing.assert_close(other.loss.loss.weight, weight)  # type: ignore[union-attr]
    wanted = F.cross_entropy(*logits_of(other, data), weight=weight).item()
    assert found["test/loss"] == pytest.approx(wanted, rel=1e-5)
