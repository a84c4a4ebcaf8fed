from typing import Any

import pytest
import torch
from torch import nn

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.losses import ClassBalanced, FocalLoss, PickAllLabelsLoss, class_weights


@pytest.mark.parametrize("inner", [nn.CrossEntropyLoss, FocalLoss, PickAllLabelsLoss])
@pytest.mark.parametrize("beta", [0.9, 1.0])
def test_weights_are_those_of_the_counts(inner: Any, beta: float) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    targets = nn.functional.one_hot(labels, 3) if inner is PickAllLabelsLoss else labels
    balanced = ClassBalanced(inner(), beta)
    balanced.use_class_counts([20, 10, 30])
    expected = inner(weight=class_weights([20, 10, 30], beta))(logits, targets)
    torch.testing.assert_close(balanced(logits, targets), expected)


def test_a_class_without_images_weighs_nothing() -> None:
    balanced = ClassBalanced()
    balanced.use_class_counts([10, 0, 30])
    assert balanced.loss.weight.tolist() == [1.5, 0.0, 0.5]  # type: ignore[union-attr, operator]


def test_a_loss_without_class_weights() -> None:
    with pytest.raises(ValueError, match=r"MSELoss has no class weights; choose a loss with a buffer 'weight'"):
        ClassBalanced(nn.MSELoss())


def test_a_loss_that_is_weighted_already() -> None:
    with pytest.raises(ValueError, match=r"has class weights already; leave weight out"):
        ClassBalanced(nn.CrossEntropyLoss(weight=torch.ones(3)))


def test_a_fit_takes_the_counts_from_the_data(make_trainer: Any) -> None:
    data = ImageData("sklearn:digits", image_size=32, train_share=0.05)
    model = ImageClassifier("test_resnet", 10, weights=None, loss=ClassBalanced())
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=1)
    trainer.fit(model, datamodule=data)
    torch.testing.assert_close(model.loss.loss.weight, class_weights(data.class_counts))
    assert {"val/accuracy", "val/balanced_accuracy"} <= set(trainer.callback_metrics)
