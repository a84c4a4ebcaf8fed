"""Training that begins at the discriminant of what the head sees."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune.callbacks import PrefixCache
from nc_finetune.functional.readout import solve_head
from nc_finetune.heads import DiscriminantHead
from nc_finetune.methods import FullFinetuning, LayerReadout, ProbeFirst, SkipConnectionFinetuning

TrainerFactory = Callable[..., L.Trainer]
LoaderFactory = Callable[..., DataLoader[Any]]
METHODS: dict[str, Callable[[], Any]] = {
    "skip": lambda: SkipConnectionFinetuning("layer2.0"),
    "full": FullFinetuning,
    "probe first": lambda: ProbeFirst(SkipConnectionFinetuning("layer2.0"), 1),
    "readout": lambda: LayerReadout("later_half", method=SkipConnectionFinetuning("layer2.0")),
}


def make_model(method: str = "skip", head: Any = DiscriminantHead, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("test_resnet", 3, weights=None, method=METHODS[method](), head=head, **options)


class AtStart(L.Callback):
    """Copies the head when the first batch comes, and notes what the optimizer holds."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not hasattr(self, "state"):
            self.state = {name: value.clone() for name, value in pl_module.head.state_dict().items()}
            self.generator = torch.get_rng_state()
            held = {id(part) for group in trainer.optimizers[0].param_groups for part in group["params"]}
            self.is_trained = all(id(part) in held for part in pl_module.head.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_training_begins_at_the_discriminant(
    method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    loader, start, model = make_loader(12), AtStart(), make_model(method)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    with torch.no_grad():
        expected = solve_head(model.eval().features(images), labels, 3)
    make_trainer(start, max_epochs=2).fit(model, loader)
    torch.testing.assert_close(start.state["weight"], expected.weight.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(start.state["bias"], expected.bias.float(), rtol=1e-3, atol=1e-3)
    assert start.is_trained
    assert not torch.equal(model.head.weight, start.state["weight"])  # and is trained from there


def test_leaving_one_out_is_logged(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    trainer, model = make_trainer(max_epochs=2), make_model(head=partial(DiscriminantHead, shrinkage=0.3))
    trainer.fit(model, make_loader(12))
    assert trainer.callback_metrics["train/shrinkage"] == pytest.approx(0.3)
    assert 0 <= trainer.callback_metrics["train/leave_one_out_accuracy"] <= 1
    assert trainer.current_epoch == 2


def test_random_numbers_are_those_of_another_head(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    starts = []
    for head in (DiscriminantHead, nn.Linear):
        model, start = make_model(head=head), AtStart()
        torch.manual_seed(1)
        make_trainer(start).fit(model, make_loader(12))
        starts.append(start.generator)
    assert torch.equal(*starts)


def test_a_second_fit_a_resume_and_a_delta_keep_the_head(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, trainer = make_model(), make_trainer(max_epochs=1)
    trainer.fit(model, make_loader(12))
    trained = model.head.weight.clone()
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    save_delta(model, tmp_path / "it.safetensors")
    resumed, start = make_model(), AtStart()
    found = [start]
    make_trainer(start, max_epochs=2).fit(resumed, make_loader(12, seed=5), ckpt_path=tmp_path / "it.ckpt")
    again = [
        model,
        load_delta(tmp_path / "it.safetensors", make_model()),
        ImageClassifier.load_from_checkpoint(tmp_path / "it.ckpt"),
    ]
    for other in again:
        found.append(AtStart())
        make_trainer(found[-1]).fit(other, make_loader(12, seed=5))
    assert all(torch.equal(start.state["weight"], trained) for start in found)


def test_with_a_cache_it_is_the_same(make_trainer: TrainerFactory) -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=4, val_size=20)
    starts = []
    for callbacks in ([], [PrefixCache()]):
        torch.manual_seed(0)
        model = ImageClassifier("test_resnet", 10, weights=None, method=METHODS["readout"](), head=DiscriminantHead)
        starts.append(AtStart())
        make_trainer(*callbacks, starts[-1], limit_train_batches=1, limit_val_batches=0).fit(model, datamodule=data)
    torch.testing.assert_close(starts[0].state, starts[1].state, rtol=1e-3, atol=1e-3)


def test_several_labels_are_refused(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model = make_model(loss=nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match="DiscriminantHead is solved for classes of which each image has one"):
        make_trainer().fit(model, make_loader(12))


def test_a_part_of_another_head_is_refused(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model = make_model(head=lambda width, classes: nn.Sequential(nn.ReLU(), DiscriminantHead(width, classes)))
    with pytest.raises(ValueError, match="here it is a part of a Sequential; give it to the model itself"):
        make_trainer().fit(model, make_loader(12))
