import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TrainerFactory
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from plain_module import CLASSES, PlainModule, make_loader
from reference import neural_collapse as reference
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1

LAYERS = ["layer2.0", "penultimate"]


def features_by_hand(model: PlainModule) -> tuple[Any, Any]:
    kept: list[Tensor] = []
    model.eval()
    with torch.no_grad(), model.net.fc.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0])):  # type: ignore[union-attr]
        labels = [model(images) is not None and target for images, target in make_loader()]
    return torch.cat(kept).double().numpy(), torch.cat(labels).numpy()


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_and_pairs_are_those_of_the_oracle(make_trainer: TrainerFactory, split: str) -> None:
    callback, model = LayerwiseNC1(LAYERS, by_class=True, split=split), PlainModule()
    make_trainer(callback).fit(model, make_loader(), make_loader())
    features, labels = features_by_hand(model)
    spreads, _ = reference.class_spread(features, labels, CLASSES)
    assert list(callback.class_values) == LAYERS
    assert list(callback.class_values["penultimate"].values()) == pytest.approx(spreads, rel=1e-5)
    pairs = reference.pair_cdnv(features, labels, CLASSES)
    found = callback.closest_pairs["penultimate"]
    assert found == pytest.approx({f"{k}|{j}": pairs[k, j] for k in range(3) for j in range(k + 1, 3)}, rel=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert callback.values["penultimate"] == callback.history[0]["nc1/penultimate"]


def test_history_and_table_name_classes_and_loggers_are_spared(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=4)
    callback = LayerwiseNC1(["penultimate"], by_class=True, split=["train", "val"])
    trainer = make_trainer(callback, logger=CSVLogger(tmp_path, name="run"), limit_val_batches=2)
    trainer.fit(ImageClassifier("test_resnet", 10, weights=None), datamodule=data)
    [row] = callback.history
    assert {f"{split}class_spread/{digit}/penultimate" for split in ("", "val/") for digit in range(10)} <= set(row)
    assert sum(key.startswith("pair_cdnv/") for key in row) == 5  # the closest of 45
    assert not [key for key in trainer.callback_metrics if "class_spread" in key or "pair_cdnv" in key]
    with next(tmp_path.rglob("layerwise_nc1.csv")).open() as file:
        [written] = csv.DictReader(file)
    assert float(written["class_spread/3/penultimate"]) == row["class_spread/3/penultimate"]
    for name in ("layerwise_nc1_classes.png", "layerwise_nc1_val_classes.png"):
        with Image.open(next(tmp_path.rglob(name))) as image:
            assert min(image.size) > 300
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_a_class_without_samples_is_nan_and_the_others_stand(make_trainer: TrainerFactory) -> None:
    images, labels = make_loader().dataset.tensors  # type: ignore[attr-defined]
    loader = DataLoader(TensorDataset(images[labels != 1], labels[labels != 1]), batch_size=5)
    callback = LayerwiseNC1(["penultimate"], by_class=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(callback).fit(PlainModule(), loader)
    values = callback.class_values["penultimate"]
    assert np.isnan(values["1"])
    assert values["0"] > 0
    assert values["2"] > 0
    assert list(callback.closest_pairs["penultimate"]) == ["0|2"]
    told = [str(one.message) for one in caught if "LayerwiseNC1" in str(one.message)]
    assert len(told) == 1
    assert "nc1 undefined and reported as nan: no samples of class 1" in told[0]


def test_samples_that_do_not_fit_in_memory_and_wide_features_are_the_same(make_trainer: TrainerFactory) -> None:
    pooled, flat = (
        LayerwiseNC1(["layer2.0"], by_class=True),
        LayerwiseNC1(["layer2.0"], by_class=True, pool="flatten", prefix="flat/"),
    )
    make_trainer(pooled, flat).fit(PlainModule(), make_loader())
    assert pooled.class_values["layer2.0"].keys() == flat.class_values["layer2.0"].keys() == {"0", "1", "2"}
    assert flat.class_values["layer2.0"]["0"] > 0


def test_without_by_class_nothing_changes(make_trainer: TrainerFactory) -> None:
    plain, by_class = LayerwiseNC1(), LayerwiseNC1(by_class=True, prefix="b/")
    make_trainer(plain, by_class).fit(PlainModule(), make_loader())
    assert plain.class_values == {} == plain.closest_pairs
    assert {f"b/{key}" for key in plain.history[0] if "/" in key} <= set(by_class.history[0])
    assert plain.state_key == LayerwiseNC1().state_key != LayerwiseNC1(by_class=True).state_key


def test_measures_by_class_are_asked_for_otherwise() -> None:
    with pytest.raises(ValueError, match="class_spread has one value a class; say by_class=True"):
        LayerwiseNC1(measures=("nc1", "class_spread"))
