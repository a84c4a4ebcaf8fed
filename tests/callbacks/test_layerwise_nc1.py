from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1
from nc_finetune.callbacks import MeasurementError
from nc_finetune.functional import nc1
from nc_finetune.methods import FullFinetuning, SkipConnectionFinetuning

LAYERS = ["stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate"]


def make_model(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("test_resnet", 3, weights=None, **options)


def make_data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=5)


def make_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options}
    return L.Trainer(callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, **options)


def by_hand(model: ImageClassifier, layer: nn.Module, take_input: bool = False) -> float:
    """Collect everything that a layer gives, then measure."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(inputs[0] if take_input else output)

    model.eval()
    loader = make_data()
    with torch.no_grad(), layer.register_forward_hook(hook):
        for images, _ in loader:
            model(images)
    features = torch.cat(kept)
    features = features.mean(dim=(2, 3)) if features.ndim == 4 else features
    return nc1(features, torch.arange(24) % 3).item()


def test_every_layer_is_logged_at_the_end_of_fitting(tmp_path: Path) -> None:
    callback = LayerwiseNC1()
    trainer = make_trainer(callback, logger=CSVLogger(tmp_path))
    trainer.fit(make_model(), make_data())
    assert list(callback.values) == LAYERS
    assert {f"nc1/{layer}" for layer in LAYERS} <= set(trainer.callback_metrics)
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]
    assert all(f"nc1/{layer}" in header for layer in LAYERS)


@pytest.mark.parametrize("method", [FullFinetuning(), SkipConnectionFinetuning("layer2.0")])
def test_values_are_those_of_features_extracted_by_hand(method: Any) -> None:
    callback, model = LayerwiseNC1(), make_model(method=method)
    make_trainer(callback).fit(model, make_data())
    block = model.backbone.get_layer("layer2.0")
    assert callback.values["layer2.0"] == pytest.approx(by_hand(model, block), rel=1e-6)
    first = model.backbone.get_layer("layer1.0")
    assert callback.values["stem"] == pytest.approx(by_hand(model, first, take_input=True), rel=1e-6)
    assert callback.values["penultimate"] == pytest.approx(by_hand(model, model.head, take_input=True), rel=1e-6)


def test_it_measures_each_nth_epoch_and_the_last() -> None:
    often, once = LayerwiseNC1(every_n_epochs=2), LayerwiseNC1(every_n_epochs=None)
    make_trainer(often, once, max_epochs=5).fit(make_model(), make_data())
    assert [row["epoch"] for row in often.history] == [1, 3, 4]
    assert [row["epoch"] for row in once.history] == [4]


@pytest.mark.parametrize("limit", [{"max_steps": 3}, {"max_epochs": 1}, {"max_epochs": 3, "limit_train_batches": 2}])
def test_it_measures_once_wherever_fitting_ends(limit: dict[str, Any]) -> None:
    callback = LayerwiseNC1(every_n_epochs=None)
    make_trainer(callback, **limit).fit(make_model(), make_data())
    assert len(callback.history) == 1


def test_training_goes_on_as_if_nothing_had_been_measured() -> None:
    def train(*callbacks: L.Callback) -> ImageClassifier:
        model = make_model(method=FullFinetuning(batch_norm="train"))
        loader = DataLoader(make_data().dataset, batch_size=5, shuffle=True)
        torch.manual_seed(1)
        make_trainer(*callbacks, max_epochs=3).fit(model, loader)
        return model

    plain, measured = train(), train(LayerwiseNC1(every_n_epochs=1))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, measured.state_dict()[name]), name


def test_modes_and_hooks_are_as_before_also_after_an_error() -> None:
    class Failing(LayerwiseNC1):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.head.register_forward_hook(self.fail)  # type: ignore[union-attr, operator]
            modes = {name: part.training for name, part in pl_module.named_modules()}
            with pytest.raises(MeasurementError, match="batch 0: RuntimeError: planted"):
                self.measure(trainer, pl_module)
            assert modes == {name: part.training for name, part in pl_module.named_modules()}
            hooks = [name for name, part in pl_module.named_modules() if part._forward_hooks or part._forward_pre_hooks]
            assert hooks == ["head"]  # the planted one alone
            self.seen = True
            pl_module.head._forward_hooks.clear()  # type: ignore[union-attr]

        def fail(self, *_: Any) -> None:
            raise RuntimeError("planted")

    callback = Failing(every_n_epochs=None, strict=True)
    make_trainer(callback, max_epochs=1).fit(make_model(method=FullFinetuning()), make_data())
    assert callback.seen


def test_datamodule_gives_the_training_split_without_augmentation() -> None:
    def spoil(image: Tensor) -> Tensor:
        return torch.zeros_like(image)

    data = ImageData("sklearn:digits", image_size=32, samples_per_class=4, transform=spoil)
    callback = LayerwiseNC1(layers=["penultimate"])
    torch.manual_seed(0)
    make_trainer(callback, max_epochs=1, limit_val_batches=0).fit(
        ImageClassifier("test_resnet", 10, weights=None), datamodule=data
    )
    assert callback.values["penultimate"] > 0  # black images alone would have been undefined


def test_chosen_layers_come_in_the_order_of_the_network() -> None:
    callback = LayerwiseNC1(layers=["penultimate", "layer1.0"])
    make_trainer(callback, max_epochs=1).fit(make_model(), make_data())
    assert list(callback.values) == ["layer1.0", "penultimate"]


def test_history_survives_a_checkpoint(tmp_path: Path) -> None:
    def trainer_with(callback: L.Callback, epochs: int) -> L.Trainer:
        checkpoint = ModelCheckpoint(tmp_path, save_last=True)
        return make_trainer(callback, checkpoint, max_epochs=epochs, enable_checkpointing=True)

    first, second = LayerwiseNC1(every_n_epochs=1), LayerwiseNC1(every_n_epochs=1)
    trainer_with(first, 2).fit(make_model(), make_data())
    trainer_with(second, 3).fit(make_model(), make_data(), ckpt_path=tmp_path / "last.ckpt")
    assert second.history[:2] == first.history
    assert [row["epoch"] for row in second.history] == [0, 1, 2]


def test_diverged_network_is_nan_with_a_reason() -> None:
    callback, model = LayerwiseNC1(layers=["penultimate"]), make_model()
    trainer = make_trainer(callback, max_epochs=1)
    for part in model.backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    with pytest.warns(UserWarning, match="class means coincide"):
        trainer.fit(model, make_data())
    assert torch.tensor(callback.values["penultimate"]).isnan()


def test_unknown_layer_lists_the_valid_ones_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"unknown layer 'layer9.0'; did you mean .*Valid: stem, layer1.0"):
        make_trainer(LayerwiseNC1(layers=["layer9.0"])).fit(make_model(), make_data())


def test_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        LayerwiseNC1(every_n_epochs=0)
