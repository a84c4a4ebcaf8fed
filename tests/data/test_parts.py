"""The parts of ImageData, each alone: what a checkpoint says, who reads what, which images were bad."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up_images import write_images
from torch.utils.data import TensorDataset

from nc_finetune.data import load_source
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.data.bad_images import report_bad_images
from nc_finetune.data.loaders import ImageLoaders
from nc_finetune.data.split_images import SplitImages
from nc_finetune.data.splits.plan import SplitPlan
from nc_finetune.data.training_order import TrainingLoader, TrainingOrder, TrainingProgress


def loader(seed: int = 0) -> TrainingLoader:
    dataset = TensorDataset(torch.arange(12))
    return TrainingLoader(dataset, sampler=TrainingOrder(dataset, seed=seed), batch_size=3)


def numbers(found: TrainingLoader) -> list[list[int]]:
    return [batch.tolist() for (batch,) in found]


def test_a_checkpoint_lets_the_next_loader_go_on() -> None:
    first, later = TrainingProgress(), TrainingProgress()
    first.follow(loader(seed=5))
    assert first.loader is not None
    batches = iter(first.loader)
    given = [next(batches)[0].tolist() for _ in range(2)]
    later.load_state_dict(first.state_dict("hash"), "hash")
    later.follow(loader(seed=9))
    assert later.loader is not None
    later.follow(loader(seed=9))  # loaded anew, before it has gone on
    assert given + numbers(later.loader) == numbers(loader(seed=5))


def test_a_checkpoint_of_other_splits_is_refused() -> None:
    state = TrainingProgress().state_dict("one")
    assert state == {"splits_hash": "one", "training": None}
    with pytest.raises(ValueError, match=r"trained on other splits \(hash one, here two\); resume with the same"):
        TrainingProgress().load_state_dict(state, "two")


def digits(**options: Any) -> SplitImages:
    return SplitImages(load_source("sklearn:digits"), SplitPlan(), DecodeAndResize(8), **options)


def test_each_process_reads_a_share_of_its_own() -> None:
    images = digits().of("val")
    shares = []
    for rank in range(2):
        trainer = SimpleNamespace(
            world_size=2, global_rank=rank, num_devices=2, strategy=SimpleNamespace(root_device=torch.device("cpu"))
        )
        loaders = ImageLoaders(trainer=trainer, batch_size=50, num_workers=0)
        shares.append([labels for _, labels in loaders.in_order(images, "val")])
    assert [[len(labels) for labels in share] for share in shares] == [[50, 22], [50, 22]]
    joined = torch.stack([torch.cat(share) for share in shares], dim=1).flatten()
    assert joined.tolist() == images.labels


def test_datasets_of_a_source_share_what_is_bad(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)))
    (tmp_path / "dog/3.png").write_bytes(b"no image")
    images = SplitImages(load_source(str(tmp_path)), SplitPlan(test_size=2, val_size=2), DecodeAndResize(8), skip=True)
    sizes = [len(part.__getitems__(range(len(part)))) for part in map(images.of, ("train", "val", "test"))]
    assert sum(sizes) == 11
    assert images.bad is not None
    assert [(bad.table, bad.row) for bad in images.bad.found()] == [("train", 9)]
    with pytest.warns(UserWarning, match="^left out 1 images that do not decode:\n.*3.png: the file is no image"):
        report_bad_images(images.found_bad(), tmp_path / "bad.csv")
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 2
