"""Fixed heads that the trainer turns towards the class means."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.functional import class_statistics
from nc_finetune.functional.frames import nearest_simplex_etf
from nc_finetune.heads import BottleneckHead, FrameHead, SimplexETFHead
from nc_finetune.methods import SkipConnectionFinetuning

TrainerFactory = Callable[..., L.Trainer]
ALIGNED = partial(SimplexETFHead, orientation="class_means")


def make_model(head: Any = ALIGNED, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    method = SkipConnectionFinetuning("layer2.0")
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=method, head=head, **options)


class AtStart(L.Callback):
    """Copies the frame, and what aligning it must leave alone, when the first batch comes."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "weight"):
            (frame,) = (part for part in pl_module.head.modules() if isinstance(part, FrameHead))
            self.weight = frame.weight.clone()
            self.generator = torch.get_rng_state()
            self.modes = [part.training for part in pl_module.modules()]
            self.backbone = {name: value.clone() for name, value in pl_module.backbone.state_dict().items()}


def features_before_training(model: ImageClassifier, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    projection = getattr(model.head, "projection", nn.Identity())
    with torch.no_grad():
        features = projection(model.eval().method.features(model.backbone, images))
    return nn.functional.normalize(features), labels


@pytest.mark.parametrize("head", [ALIGNED, partial(BottleneckHead, head=ALIGNED)], ids=["plain", "bottleneck"])
def test_frame_starts_at_the_simplex_nearest_to_the_class_means(
    head: Any, make_loader: Callable[..., DataLoader[Any]], make_trainer: TrainerFactory
) -> None:
    loader, start = make_loader(12), AtStart()
    means = class_statistics(*features_before_training(make_model(head), loader)).means
    model = make_model(head)
    make_trainer(start).fit(model, loader)
    alpha = next(part.alpha for part in model.head.modules() if isinstance(part, FrameHead))
    torch.testing.assert_close(start.weight, (alpha * nearest_simplex_etf(means)).float(), rtol=0, atol=1e-4)


def test_nothing_else_is_touched(make_loader: Callable[..., DataLoader[Any]], make_trainer: TrainerFactory) -> None:
    starts = []
    for head in (ALIGNED, SimplexETFHead):
        model, start = make_model(head), AtStart()
        make_trainer(start).fit(model, make_loader(12))
        starts.append(start)
    aligned, plain = starts
    assert torch.equal(aligned.generator, plain.generator)
    assert aligned.modes == plain.modes
    assert all(torch.equal(value, plain.backbone[name]) for name, value in aligned.backbone.items())
    assert not torch.equal(aligned.weight, plain.weight)


def test_a_second_fit_a_resume_and_a_delta_keep_the_frame(
    tmp_path: Path, make_loader: Callable[..., DataLoader[Any]], make_trainer: TrainerFactory
) -> None:
    model, again = make_model(), make_trainer(max_epochs=1)
    again.fit(model, make_loader(12))
    frame = model.head.weight.clone()
    again.save_checkpoint(tmp_path / "it.ckpt")
    save_delta(model, tmp_path / "it.safetensors")

    make_trainer().fit(model, make_loader(12, seed=5))
    resumed = make_model()
    make_trainer(max_epochs=2).fit(resumed, make_loader(12, seed=5), ckpt_path=tmp_path / "it.ckpt")
    loaded = load_delta(tmp_path / "it.safetensors", make_model())
    make_trainer().fit(loaded, make_loader(12, seed=5))
    assert all(torch.equal(found.head.weight, frame) for found in (model, resumed, loaded))


def test_a_class_without_images_is_named(
    make_loader: Callable[..., DataLoader[Any]], make_trainer: TrainerFactory
) -> None:
    with pytest.raises(ValueError, match="training data have no images of class 2; use orientation='random'"):
        make_trainer().fit(make_model(), make_loader(num_classes=2))


def test_images_are_seen_without_augmentation(make_trainer: TrainerFactory) -> None:
    weights = []
    for transform in (None, torch.zeros_like):
        data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, val_size=20, transform=transform)
        torch.manual_seed(0)
        start = AtStart()
        method = SkipConnectionFinetuning("layer2.0")
        model = ImageClassifier(TimmBackbone("test_resnet", None), 10, method=method, head=ALIGNED)
        make_trainer(start, limit_train_batches=1, limit_val_batches=0).fit(model, datamodule=data)
        weights.append(start.weight)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], ALIGNED(weights[0].shape[1], 10).weight)


def test_other_heads_bring_no_callback() -> None:
    assert make_model(SimplexETFHead).configure_callbacks() == []
