"""The cache of a frozen prefix where a model is tested."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.methods import FullFinetuning, SkipConnectionFinetuning

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]


class Doubling(ImageClassifier):
    """Changes its images on the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] // 2, batch[1]


def make_model(kind: type[ImageClassifier] = ImageClassifier) -> ImageClassifier:
    torch.manual_seed(0)
    return kind(TimmBackbone("test_resnet", None), 3, method=SkipConnectionFinetuning("layer2.0"))


def count_calls(model: ImageClassifier) -> list[int]:
    """Note how many images the first block sees, whenever it is run."""
    seen: list[int] = []

    def note(_module: Any, inputs: tuple[Tensor, ...], _output: Any) -> None:
        seen.append(len(inputs[0]))

    model.backbone.get_layer("layer1.0").register_forward_hook(note)
    return seen


@pytest.fixture
def evaluate(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> Callable[..., dict[str, float]]:
    """Test on 41 images, in batches of four, without training."""

    def run(model: ImageClassifier, *callbacks: L.Callback) -> dict[str, float]:
        (found,) = make_trainer(*callbacks).test(model, make_loader(41), verbose=False)
        return dict(found)

    return run


def test_results_are_those_of_images(
    evaluate: Callable[..., dict[str, float]], make_trainer: TrainerFactory, make_loader: LoaderFactory, tmp_path: Path
) -> None:
    def fit_and_test(*callbacks: L.Callback) -> dict[str, float]:
        model, trainer = make_model(), make_trainer(*callbacks, max_epochs=2)
        L.seed_everything(1, verbose=False)
        trainer.fit(model, make_loader())
        (found,) = trainer.test(model, make_loader(41), verbose=False)
        assert model.split is None
        return dict(found)

    cache = PrefixCache(str(tmp_path), splits=["train", "test"])
    assert fit_and_test(cache) == fit_and_test() != evaluate(make_model())
    assert cache.stored_bytes.keys() == {"train", "test"}


def test_a_second_run_finds_what_the_first_has_kept(evaluate: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    plain, first, second = make_model(), make_model(), make_model()
    seen = [count_calls(model) for model in (plain, first, second)]
    caches = [PrefixCache(str(tmp_path), splits=["test"]) for _ in range(2)]
    assert evaluate(plain) == evaluate(first, caches[0]) == evaluate(second, caches[1])
    assert sum(seen[0]) == 41 < sum(seen[1])
    assert sum(seen[2]) < 20  # the few that show that the network can be cut, and that what is there is right
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_kept_unless_asked_for(evaluate: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    cache = PrefixCache(str(tmp_path))
    evaluate(make_model(), cache)
    assert cache.stored_bytes == {}
    assert not list(tmp_path.iterdir())


def test_layers_are_measured_on_images(evaluate: Callable[..., dict[str, float]]) -> None:
    plain, beside, cache = LayerwiseNC1(split="test"), LayerwiseNC1(split="test"), PrefixCache(splits=["test"])
    evaluate(make_model(), plain)
    evaluate(make_model(), beside, cache)
    assert beside.history == plain.history
    assert cache.stored_bytes == {}


def test_batches_that_are_changed_on_the_device_are_kept_as_they_are_then(
    evaluate: Callable[..., dict[str, float]],
) -> None:
    cache = PrefixCache(splits=["test"])
    assert evaluate(make_model(Doubling), cache) == evaluate(make_model(Doubling)) != evaluate(make_model())
    assert cache.stored_bytes.keys() == {"test"}


def test_what_has_no_frozen_prefix_is_tested_all_the_same(evaluate: Callable[..., dict[str, float]]) -> None:
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=FullFinetuning())
    with pytest.warns(UserWarning, match="no frozen prefix"):
        found = evaluate(model, PrefixCache(splits=["test"]))
    assert found == evaluate(model)


def test_augmentation_stays_with_the_training_images(make_trainer: TrainerFactory) -> None:
    def crop(images: Tensor) -> Tensor:  # to another size, which test images do not have
        return images[..., :24, :24]

    def run(*callbacks: L.Callback) -> dict[str, float]:
        torch.manual_seed(0)
        data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, batch_transform=crop, max_test_images=9)
        model = ImageClassifier(TimmBackbone("test_resnet", None), 10, method=SkipConnectionFinetuning("layer2.0"))
        (found,) = make_trainer(*callbacks).test(model, datamodule=data, verbose=False)
        return dict(found)

    cache = PrefixCache(splits=["test"])
    assert run(cache) == run()
    assert cache.stored_bytes.keys() == {"test"}
