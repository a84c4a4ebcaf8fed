"""Methods on the visual tower of a CLIP: what is not tuned stays as it was, and deltas come back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import OpenClipBackbone
from nc_finetune.methods import (
    AdapterTuning,
    FinetuningMethod,
    FullFinetuning,
    ProbeFirst,
    SkipConnectionFinetuning,
)

METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "scl": lambda: SkipConnectionFinetuning(join="before_norm", scale="matched"),
    "full": FullFinetuning,
    "lp-ft": lambda: ProbeFirst(SkipConnectionFinetuning(["transformer.resblocks.4", "transformer.resblocks.5"]), 1),
    "lora": lambda: AdapterTuning(rank=2),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "tower.pt"
    torch.save(OpenClipBackbone("ViT-B-32", None, {"force_image_size": 32}).tower_state_dict(), path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_tuned_stays_bit_identical_and_the_delta_comes_back(
    method: str, weights: Path, tmp_path: Path, make_loader: Callable[..., DataLoader[Any]], make_trainer: Any
) -> None:
    def build() -> ImageClassifier:
        backbone = OpenClipBackbone("ViT-B-32", str(weights), {"force_image_size": 32})
        return ImageClassifier(backbone, 3, method=METHODS[method]())

    model = build()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    trainer: L.Trainer = make_trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(model, make_loader(), make_loader())
    after = model.backbone.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    tuned = {name for name, value in model.backbone.named_parameters() if value.requires_grad}
    assert moved <= tuned
    assert bool(moved) == bool(tuned)

    path = tmp_path / "delta.safetensors"
    save_delta(model, path)
    images = torch.rand(2, 3, 32, 32)
    reloaded = load_delta(path)
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(images), model.eval()(images))
