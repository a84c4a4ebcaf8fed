from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.callbacks import PrefixCache, ProbePath
from nc_finetune.methods import LayerFinetuning, LinearProbe, SkipProbe

TrainerFactory = Callable[..., L.Trainer]
LoaderFactory = Callable[..., DataLoader[Any]]
METHODS = {"linear_probe": LinearProbe, "skip_probe": lambda: SkipProbe(["layer1.0"])}
PENALTIES = [1e-4, 1e-2, 1.0]


def make_model(method: Any = "linear_probe", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    method = METHODS[method]() if isinstance(method, str) else method
    return ImageClassifier("test_resnet", 10, weights=None, method=method, **options)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData("sklearn:digits", image_size=32, samples_per_class=8, val_size=60, test_size=60)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cached", [False, True])
def test_head_is_the_best_of_the_path_on_validation(
    digits: ImageData, make_trainer: TrainerFactory, method: str, cached: bool
) -> None:
    model, path = make_model(method), ProbePath(PENALTIES)
    untouched = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    trainer = make_trainer(*([PrefixCache()] if cached else []), path, max_epochs=5)
    trainer.fit(model, datamodule=digits)
    assert trainer.global_step == 1  # without a step no checkpoint is written
    (shown,) = trainer.validate(model, datamodule=digits, verbose=False)
    best = max(row["val/accuracy"] for row in path.path)
    assert shown["val/accuracy"] == pytest.approx(best)
    assert path.chosen_l2 == max(row["l2"] for row in path.path if row["val/accuracy"] == best)
    assert [row["l2"] for row in path.path] == sorted(PENALTIES, reverse=True)
    assert all(torch.equal(value, untouched[name]) for name, value in model.backbone.state_dict().items())


def test_gradient_vanishes_at_the_solution(digits: ImageData, make_trainer: TrainerFactory) -> None:
    model = make_model()
    make_trainer(ProbePath([0.1])).fit(model, datamodule=digits)
    model.eval()
    images, labels = (torch.cat(parts) for parts in zip(*digits.eval_dataloader("train"), strict=True))
    features = model.features(images).detach()
    scale = (features - features.mean(0)).square().mean()
    loss = nn.functional.cross_entropy(model.head(features), labels)
    (loss + 0.1 / 2 * scale * model.head.weight.square().sum()).backward()
    assert model.head.weight.grad.abs().max() < 2e-2 * scale.sqrt()
    assert model.head.bias.grad.abs().max() < 5e-3


def test_each_image_goes_through_the_network_once_to_fit(digits: ImageData, make_trainer: TrainerFactory) -> None:
    model = make_model()
    seen: list[int] = []
    model.backbone.model.conv1.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    make_trainer(ProbePath(PENALTIES), num_sanity_val_steps=0).fit(model, datamodule=digits)
    assert sum(seen) == 80 + 60 + 60, "and once more where the validation shows what it came to"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": LayerFinetuning("layer3.0")}, ValueError, "layer FT tunes more"),
        ({"method": SkipProbe(["layer1.0"], "learned")}, ValueError, "learns something beside it"),
        ({"head": lambda width, classes: nn.Sequential(nn.Linear(width, classes))}, TypeError, "head is a Sequential"),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, TypeError, "plain cross-entropy"),
    ],
)
def test_what_is_no_linear_probe_is_refused(
    digits: ImageData, make_trainer: TrainerFactory, options: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make_trainer(ProbePath()).fit(make_model(**options), datamodule=digits)


def test_validation_data_are_needed(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    with pytest.raises(ValueError, match="there is none"):
        make_trainer(ProbePath()).fit(make_model(), make_loader())
