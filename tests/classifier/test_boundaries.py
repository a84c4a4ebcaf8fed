"""What users hand over by mistake: one clear error each, or it works."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from conftest import LoaderFactory, TrainerFactory
from crossed import crossed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PredictionWriter
from nc_finetune.heads import SimplexETFHead
from nc_finetune.methods import FinetuningMethod, FullFinetuning, LinearProbe

K = 3


class TrainsNothing(LinearProbe):
    """A method of somebody else's under which not even the head is trained."""

    trains = False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"backbone": timm.create_model("test_resnet")},
            TypeError,
            "backbone must be a name.* got a ResNet; of a model",
        ),
        ({"backbone": TimmBackbone}, TypeError, "got the class TimmBackbone"),
        ({"backbone": nn.Linear(3, 3)}, TypeError, "got a Linear"),
        ({"backbone": None}, TypeError, "got a NoneType"),
        (
            {"backbone": TimmBackbone("test_resnet", None), "weights": None},
            ValueError,
            "beside a backbone that has its",
        ),
        ({"backbone": TimmBackbone("test_resnet", None), "weights": "a1_in1k"}, ValueError, "weights='a1_in1k' were"),
        (
            {"head": nn.Linear(96, K)},
            TypeError,
            "head must build .* got a Linear that is built already; give the class",
        ),
        ({"head": SimplexETFHead(96, K)}, TypeError, "got a SimplexETFHead that is built already"),
        ({"head": "Linear"}, TypeError, "head must build the classifier .* got 'Linear'"),
        ({"head": lambda width, classes: torch.zeros(classes, width)}, TypeError, "it built a Tensor"),
        ({"method": LinearProbe}, TypeError, r"got the class; write method=LinearProbe\(...\)"),
        ({"method": FullFinetuning}, TypeError, r"write method=FullFinetuning\(...\)"),
        ({"method": "linear_probe"}, TypeError, "method must be one of nc_finetune.methods, got 'linear_probe'"),
    ],
)
def test_parts_of_another_kind_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"backbone": "test_resnet", **({} if "backbone" in arguments else {"weights": None}), **arguments}
    with pytest.raises(error, match=message):
        ImageClassifier(num_classes=K, **given)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.5),
        partial(torch.optim.AdamW, lr=3e-5, weight_decay=0.1),
        lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9),
        partial(torch.optim.RMSprop, lr=0.5),
    ],
)
def test_a_rate_inside_the_optimizer_is_refused(
    optimizer: Any, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = ImageClassifier("test_resnet", K, weights=None, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"was given lr=.* leave lr out of it and pass learning_rate="):
        make_trainer().fit(model, make_loader())


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)],
)
def test_an_optimizer_without_or_with_the_same_rate_passes(
    optimizer: Any, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    make_trainer().fit(ImageClassifier("test_resnet", K, weights=None, optimizer=optimizer), make_loader())


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / 0.226


SCALES: list[tuple[Any, type[Exception], str]] = [
    (normalised, ValueError, "must lie in 0...1, got -.* normalised already"),
    (lambda images: images / 127.5 - 1, ValueError, "normalised already"),
    (lambda images: images.float(), ValueError, r"got .* to 25\d; divide by 255"),
    (lambda images: images.double(), ValueError, "divide by 255"),
    (lambda images: images.half(), ValueError, "divide by 255"),
    (lambda images: images / 0, ValueError, "must be finite"),
    (lambda images: (images / 255).index_fill(0, torch.tensor([1]), torch.nan), ValueError, "must be finite"),
    (lambda images: images.long(), TypeError, "must be uint8 in 0...255 or floating point"),
    (lambda images: images[0], ValueError, "must have shape"),
]


@pytest.mark.parametrize(("entry", "scale"), crossed(["fit", "validate", "predict"], SCALES))
def test_images_of_another_scale_are_refused(
    entry: str, scale: tuple[Any, type[Exception], str], make_trainer: TrainerFactory
) -> None:
    change, error, message = scale
    drawn = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, labels = change(drawn), torch.tensor([0, 1, 2, 0])
    loader = DataLoader([(images, labels)], collate_fn=lambda batches: batches[0])  # type: ignore[arg-type]
    trainer = make_trainer()
    with pytest.raises(error, match=message):
        getattr(trainer, entry)(ImageClassifier("test_resnet", K, weights=None), loader)


@pytest.mark.parametrize("low", [0.0, -0.1])
def test_overshoot_of_a_filter_passes(low: float, make_trainer: TrainerFactory) -> None:
    images = torch.rand(4, 3, 32, 32) * 1.2 + low
    loader = DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 0])), batch_size=4)
    make_trainer().fit(ImageClassifier("test_resnet", K, weights=None), loader)


IMAGES = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(IMAGES, batch_size=4),  # type: ignore[arg-type]
        DataLoader(TensorDataset(IMAGES), batch_size=4),
        DataLoader(TensorDataset(IMAGES, torch.full((9,), -1)), batch_size=4),
        DataLoader(TensorDataset(IMAGES, torch.zeros(9, 5), torch.arange(9)), batch_size=4),
        DataLoader([{"image": image} for image in IMAGES], batch_size=4),  # type: ignore[arg-type]
    ],
    ids=["tensor", "tuple of one", "no labels", "more", "mapping"],
)
def test_images_are_predicted_whatever_comes_with_them(loader: DataLoader[Any], make_trainer: TrainerFactory) -> None:
    model = ImageClassifier("test_resnet", K, weights=None).eval()
    found = torch.cat(make_trainer().predict(model, loader))  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(found, model(IMAGES).softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "limit", [{"limit_predict_batches": 2}, {"limit_predict_batches": 0.5}, {"fast_dev_run": True}]
)
def test_predictions_are_written_of_what_a_limit_leaves(
    limit: dict[str, Any], tmp_path: Path, make_trainer: TrainerFactory
) -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, num_workers=0)
    writer = PredictionWriter(tmp_path / "predictions.csv")
    model = ImageClassifier("test_resnet", 10, weights=None)
    found = make_trainer(writer, **limit).predict(model, datamodule=data)
    lines = writer.path.read_text().splitlines()
    assert len(lines) == 1 + sum(map(len, found))  # type: ignore[arg-type]
    assert [line.split(",")[0] for line in lines[1:4]] == ["0", "1", "2"]


def test_predictions_of_several_loaders_are_refused(tmp_path: Path, make_trainer: TrainerFactory) -> None:
    loader = DataLoader(IMAGES, batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="predictions are written of one loader, got 2"):
        make_trainer(PredictionWriter(tmp_path / "it.csv")).predict(
            ImageClassifier("test_resnet", K, weights=None), [loader, loader]
        )


@pytest.mark.parametrize("limits", [{"max_steps": 5}, {"max_steps": 5, "max_epochs": -1}, {"max_epochs": -1}])
def test_nothing_to_train_ends_without_steps(
    limits: dict[str, Any], make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    method: FinetuningMethod = TrainsNothing()
    epochs: list[int] = []

    class Count(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            epochs.append(trainer.current_epoch)

    model = ImageClassifier("test_resnet", K, weights=None, method=method)
    make_trainer(Count(), **{"max_epochs": None, **limits}).fit(model, make_loader())
    assert epochs == [0]
