"""Data of users, who change batches in hooks of their own: everybody sees what training and validation see."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first, quick_where
from crossed import crossed
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, LayerwiseNC1
from nc_finetune._common.data_facts import told_by
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PrefixCache, ProbePath
from nc_finetune.functional import class_statistics, nc1
from nc_finetune.functional.frames import nearest_simplex_etf
from nc_finetune.heads import SimplexETFHead
from nc_finetune.losses import ClassBalanced
from nc_finetune.methods import LayerFinetuning, LinearProbe

TrainerFactory = Callable[..., L.Trainer]
ALIGNED = partial(SimplexETFHead, orientation="class_means")


def make_samples(number: int = 18, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return TensorDataset(images, torch.arange(number) % 3)


def darken(images: Tensor) -> Tensor:
    """What a hook does: far from what the images were."""
    return (1 - images.float() / 255).pow(4)


def as_dicts(rows: Any) -> dict[str, Tensor]:
    images, labels = torch.utils.data.default_collate(rows)
    return {"pixel_values": images, "labels": labels}


class Data(L.LightningDataModule):
    """A user's own, which knows nothing of us."""

    collate: Any = staticmethod(torch.utils.data.default_collate)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(make_samples(), batch_size=5, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(make_samples(12, 1), batch_size=5, collate_fn=self.collate)

    test_dataloader = predict_dataloader = val_dataloader


class After(Data):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return darken(batch[0]), batch[1]


class Before(Data):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return darken(batch[0]), batch[1]


class Transfer(Data):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return darken(batch[0].to(device)), batch[1].to(device)


class Dicts(Data):
    collate = staticmethod(as_dicts)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "pixel_values": darken(batch["pixel_values"])}


class Model(ImageClassifier):
    """Changes batches itself."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return darken(batch[0]), batch[1]


class ModelBefore(ImageClassifier):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return darken(batch[0]), batch[1]


# The model's kind, and how the data are given: as a datamodule or as loaders.
CASES: dict[str, tuple[type[ImageClassifier], Callable[[], dict[str, Any]]]] = {
    "datamodule, after": (ImageClassifier, lambda: {"datamodule": After()}),
    "datamodule, before": (ImageClassifier, lambda: {"datamodule": Before()}),
    "datamodule, transfer": (ImageClassifier, lambda: {"datamodule": Transfer()}),
    "dicts": (ImageClassifier, lambda: {"datamodule": Dicts()}),
    "module": (Model, lambda: {"datamodule": Data()}),
    "module before, loaders": (ModelBefore, lambda: loaders(Data())),
    "module, loaders": (Model, lambda: loaders(Data())),
}
# One of each kind: a datamodule's hook, batches of another form, a module's hook.
CHANGED_BY_HOOKS = ("datamodule, transfer", "dicts", "module before, loaders")


def loaders(data: Data) -> dict[str, Any]:
    return {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}


def make_model(kind: type[ImageClassifier] = ImageClassifier, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return kind(TimmBackbone("test_resnet", None), 3, **{"method": LayerFinetuning("layer3.0"), **options})


def darkened_features(model: ImageClassifier, samples: TensorDataset) -> tuple[Tensor, Tensor]:
    images, labels = samples.tensors
    with torch.no_grad():
        return model.eval().features(darken(images)), labels


@pytest.fixture
def case(request: pytest.FixtureRequest) -> tuple[type[ImageClassifier], Callable[[], dict[str, Any]]]:
    return CASES[request.param]


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.values.append(trainer.callback_metrics["val/loss"].item())


@pytest.mark.parametrize(("case", "precision"), crossed(CASES, ["32-true", "bf16-mixed"]), indirect=["case"])
def test_kept_losses_are_those_of_images(make_trainer: TrainerFactory, case: Any, precision: Any) -> None:
    kind, give = case

    def run(*callbacks: L.Callback) -> list[float]:
        losses = Losses()
        L.seed_everything(1, verbose=False)
        model = make_model(kind)
        make_trainer(losses, *callbacks, max_epochs=2, precision=precision).fit(model, **give())
        return losses.values

    cache = PrefixCache()
    assert run(cache) == pytest.approx(run(), rel=1e-6)
    assert cache.stored_bytes.keys() == {"train", "val"}


@pytest.mark.parametrize("case", quick_where(CHANGED_BY_HOOKS.__contains__, CASES), indirect=True)
def test_heads_align_to_what_training_sees(make_trainer: TrainerFactory, case: Any) -> None:
    kind, give = case
    expected = make_model(kind, head=ALIGNED)
    features, labels = darkened_features(expected, make_samples())
    means = class_statistics(torch.nn.functional.normalize(features), labels).means

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            self.weight = getattr(self, "weight", pl_module.head.weight.clone())

    model, look = make_model(kind, head=ALIGNED), Look()
    make_trainer(look).fit(model, **give())
    frame = (model.head.alpha * nearest_simplex_etf(means)).float()
    torch.testing.assert_close(look.weight, frame, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("case", "cached"), crossed(CASES, [True, False]), indirect=["case"])
def test_a_probe_is_judged_as_validation_judges_it(make_trainer: TrainerFactory, case: Any, cached: bool) -> None:
    kind, give = case
    model, path, data = make_model(kind, method=LinearProbe()), ProbePath([1e-3, 1e-1]), give()
    trainer = make_trainer(*([PrefixCache()] if cached else []), path)
    trainer.fit(model, **data)
    [shown] = trainer.validate(
        model,
        **({"datamodule": data["datamodule"]} if "datamodule" in data else {"dataloaders": data["val_dataloaders"]}),
        verbose=False,
    )
    [chosen] = [row for row in path.path if row["l2"] == path.chosen_l2]
    assert shown["val/loss"] == pytest.approx(chosen["val/loss"], rel=1e-4)


@pytest.mark.parametrize("case", quick_where(CHANGED_BY_HOOKS.__contains__, CASES), indirect=True)
def test_layers_are_measured_on_what_training_sees(make_trainer: TrainerFactory, case: Any) -> None:
    kind, give = case
    model, callback = make_model(kind), LayerwiseNC1(["penultimate"], split=("train", "val"), strict=True)
    make_trainer(callback).fit(model, **give())
    [row] = callback.history
    for samples, key in ((make_samples(), "nc1/penultimate"), (make_samples(12, 1), "val/nc1/penultimate")):
        assert row[key] == pytest.approx(nc1(*darkened_features(model, samples)).item(), rel=1e-4)


class Told(Data):
    num_classes = 3
    class_names = ("ant", "bee", "cow")
    class_counts = (7, 7, 4)
    deterministic = True


class Named(TensorDataset):
    classes = ["ant", "bee", "cow"]  # noqa: RUF012


def test_what_a_datamodule_tells_is_used(make_trainer: TrainerFactory) -> None:
    loss = ClassBalanced(torch.nn.CrossEntropyLoss())
    model = make_model(loss=loss)
    trainer = make_trainer()
    trainer.fit(model, datamodule=Told())
    assert tuple(told_by(trainer).class_names(3)) == Told.class_names
    with pytest.raises(ValueError, match="the data have 3 classes, the model was built for num_classes=4"):
        make_trainer().fit(ImageClassifier(TimmBackbone("test_resnet", None), 4), datamodule=Told())


def test_loaders_alone_tell_what_their_datasets_know(make_trainer: TrainerFactory) -> None:
    named = Named(*make_samples(10).tensors)
    model, trainer = make_model(loss=ClassBalanced(torch.nn.CrossEntropyLoss())), make_trainer()
    trainer.fit(model, DataLoader(named, batch_size=5))
    facts = told_by(trainer)
    assert facts.class_names(3) == Named.classes
    assert facts.class_names(4) is None
    assert facts.class_counts(3) == [4, 3, 3]


def test_loaders_that_come_after_a_datamodule_are_told_of_themselves(make_trainer: TrainerFactory) -> None:
    trainer, model = make_trainer(), make_model()
    trainer.fit(model, datamodule=Told())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, DataLoader(make_samples(), batch_size=5))
    assert told_by(trainer).class_names(3) is None
    assert told_by(trainer).deterministic is None


@pytest.mark.parametrize("number", quick_first(1, [2, 3]))
def test_lists_of_validation_loaders(make_trainer: TrainerFactory, number: int) -> None:
    def run(*callbacks: L.Callback) -> dict[str, float]:
        L.seed_everything(1, verbose=False)
        trainer = make_trainer(*callbacks, max_epochs=2)
        model = make_model()
        held_out = [DataLoader(make_samples(7 + seed, seed), batch_size=3) for seed in range(number)]
        trainer.fit(model, DataLoader(make_samples(), batch_size=5), held_out)
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        for place, loader in enumerate(held_out):
            [alone] = make_trainer().validate(model, loader, verbose=False)
            suffix = f"/dataloader_idx_{place}" if place else ""
            for name in ("val/loss", "val/accuracy", "val/balanced_accuracy"):
                assert values[f"{name}{suffix}"] == pytest.approx(alone[name], rel=1e-5)
        return values

    cache = PrefixCache()
    assert run(cache) == pytest.approx(run(), rel=1e-6)
    assert cache.stored_bytes.keys() == {"train", "val"}


class PlainNet(L.LightningModule):
    """No residual block anywhere, and one that knows nothing of us."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3, stride=2)
        self.fc = torch.nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv2(self.conv1(images).relu()).relu().mean((2, 3)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0].float()), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_a_plain_network_and_one_hot_labels_are_measured(make_trainer: TrainerFactory) -> None:
    images, labels = make_samples().tensors
    histories = []
    for given in (labels, torch.nn.functional.one_hot(labels, 3).float()):
        callback = LayerwiseNC1(strict=True)
        loader = DataLoader(TensorDataset(images.float(), given), batch_size=6)
        make_trainer(callback, max_epochs=1).fit(PlainNet(), loader)
        histories.append({name: value for name, value in callback.history[-1].items() if name.startswith("nc1/")})
    assert list(histories[0]) == ["nc1/stem", "nc1/conv1", "nc1/conv2", "nc1/penultimate"]
    assert histories[0] == histories[1]
    with torch.no_grad():
        features = PlainNet().conv1(images.float()).mean((2, 3))
    assert histories[0]["nc1/conv1"] == pytest.approx(float(nc1(features, labels)), rel=1e-4)


def test_what_steps_do_to_a_batch_is_asked_for(make_trainer: TrainerFactory) -> None:
    loader = DataLoader(make_samples(), batch_size=6)
    with pytest.warns(UserWarning, match="should be the same.*pass unpack=, a function that does so"):
        make_trainer(LayerwiseNC1(), max_epochs=1).fit(PlainNet(), loader)


def test_a_head_that_only_steps_run_is_named_as_the_reason(make_trainer: TrainerFactory) -> None:
    class InSteps(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            net = PlainNet()
            self.encoder = torch.nn.Sequential(net.conv1, net.conv2, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
            self.head = net.fc

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self.head(self.encoder(batch[0].float())), batch[1])

        configure_optimizers = PlainNet.configure_optimizers

    images, labels = make_samples().tensors
    loader = DataLoader(TensorDataset(images.float(), labels), batch_size=6)
    callback = LayerwiseNC1(network="encoder")
    with pytest.warns(UserWarning, match=r"layer penultimate: .* InSteps has no forward\(\), so its network"):
        make_trainer(callback, max_epochs=1).fit(InSteps(), loader)
    assert callback.history[-1]["nc1/0"] > 0
