"""Warnings that are meant in an ImageClassifier are left out, and those of anybody else are not."""

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
from conftest import LoaderFactory
from plain_module import PlainModule
from plain_module import make_loader as make_plain_loader

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.backbones import TimmBackbone
from nc_finetune.methods import LayerFinetuning

TrainerFactory = Callable[..., L.Trainer]
MEANT = ("module(s) in eval mode", "You have overridden", "returned `None`")


def filters() -> list[Any]:
    patterns = [entry[1] for entry in warnings.filters if entry[1] is not None]
    return [found.pattern for found in patterns if "eval mode" in found.pattern or "configure_opt" in found.pattern]


class Untrained(LayerFinetuning):
    trains = False


@pytest.mark.parametrize("method", [LayerFinetuning, Untrained])
def test_what_is_meant_is_left_out_and_nothing_stays_behind(make_trainer: TrainerFactory, method: Any) -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, val_size=20, num_workers=0)
    model = ImageClassifier(TimmBackbone("test_resnet", None), 10, method=method("layer3.0"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(limit_train_batches=1)
        trainer.fit(model, data)
        trainer.test(model, data, verbose=False)
        assert filters() == []
    assert not [str(one.message) for one in caught if any(words in str(one.message) for words in MEANT)]


def test_others_are_warned_after_it(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    make_trainer().fit(ImageClassifier(TimmBackbone("test_resnet", None), 3), make_loader())

    class Half(PlainModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    module = Half()
    module.net.eval()
    with pytest.warns(UserWarning, match=r"module\(s\) in eval mode"):
        make_trainer().fit(module, make_plain_loader())


def test_a_fit_that_fails_early_leaves_no_filter_for_the_next(
    make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    class Broken(L.Callback):
        def on_fit_start(self, *_: Any) -> None:
            raise RuntimeError("planted")

    model = ImageClassifier(TimmBackbone("test_resnet", None), 3)
    with warnings.catch_warnings():
        with pytest.raises(RuntimeError, match="planted"):
            make_trainer(Broken()).fit(model, make_loader())
        make_trainer().fit(model, make_loader())
        assert filters() == []
