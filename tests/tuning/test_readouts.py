"""Readouts of a tuning: where they compute, and which sizes they try."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tuning_photos import write_photos

from nc_finetune.backbones import TimmBackbone, create_backbone
from nc_finetune.data import ImageData, training_folds
from nc_finetune.tuning.readouts import image_sizes, read_out, typical_side


def digits() -> ImageData:
    return ImageData("sklearn:digits", image_size=32, samples_per_class=4, val_size=0, num_workers=0)


def test_a_model_is_built_where_its_network_computes() -> None:
    data, network = digits(), create_backbone("test_resnet", None)
    found = read_out(network, data, training_folds(data, 2))
    model = found.build(network.to("meta"), data.num_classes)
    assert {part.device.type for part in (*model.parameters(), *model.buffers())} == {"meta"}
    assert found.weight.device.type == "cpu"


def test_images_judge_by_what_nearly_all_others_teach_and_by_folds() -> None:
    data, network = digits(), create_backbone("test_resnet", None)
    folds = training_folds(data, 2)
    found = read_out(network, data, folds)
    assert found.logits.isfinite().all()
    assert found.fold_logits.isfinite().all()
    few = read_out(network, data, folds[:1])
    assert few.fold_logits.isfinite().all(1).nonzero().squeeze(1).tolist() == folds[0].held_out
    alone = read_out(network, data)
    assert torch.equal(alone.weight, found.weight)
    assert alone.fold_logits.isnan().all()


@pytest.mark.parametrize(
    ("net", "pixels", "sizes"),
    [("test_resnet", 8, [64, 96, 128, 160]), ("test_resnet", 500, [128, 160]), ("test_vit", 500, [128, 160])],
)
def test_sizes_grow_from_that_of_the_images_to_that_of_the_network(net: str, pixels: int, sizes: list[int]) -> None:
    assert image_sizes(create_backbone(net, None), pixels) == sizes


def test_sizes_of_a_transformer_are_those_that_its_patches_fill() -> None:
    small = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    backbone = create_backbone("vit_small_patch14_dinov2", None, model_options=small)
    assert image_sizes(backbone, 500) == [126, 196, 294, 448, 518]


def test_typical_side_is_that_of_the_files() -> None:
    assert typical_side(digits()) == 8


def test_the_only_good_image_of_a_class_is_judged_by_nobody(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    lone = photos / "lone"
    lone.mkdir()
    shutil.copy(photos / "class0" / "0.png", lone / "good.png")
    Image.open(lone / "good.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(lone / "good.png")
    (lone / "bad.png").write_bytes(b"no image")
    data = ImageData(str(photos), image_size=32, val_size=0, test_size=0, on_bad_image="skip")
    found = read_out(TimmBackbone("test_resnet", None), data, training_folds(data, 3))
    place = data.class_names.index("lone")
    rows = torch.tensor(data.images("train").labels) == place
    assert not found.logits[rows].isfinite().any()
    assert not found.fold_logits[rows].isfinite().any()
    assert found.logits[~rows].isfinite().all()
