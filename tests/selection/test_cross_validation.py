"""Candidates judged on folds of the training images alone, and refitted on all of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from made_up_images import write_images
from torch import nn

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.classifier import DivergedError
from nc_finetune.data.labelled_images import LabelledImages
from nc_finetune.heads import DiscriminantHead
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import FullFinetuning, LayerFinetuning, LayerReadout, LinearProbe, SideFinetuning
from nc_finetune.selection import CrossValidation, FoldError, shared_caches


def make_data(**options: Any) -> ImageData:
    arguments = {"image_size": 32, "samples_per_class": 4, "val_size": 20, "test_size": 30, "num_workers": 0}
    return ImageData("sklearn:digits", **{**arguments, **options})


def build(make_method: Callable[[], Any] = LinearProbe, **options: Any) -> Callable[[], ImageClassifier]:
    return lambda: ImageClassifier("test_resnet", 10, weights=None, method=make_method(), **options)


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that prefixes are kept in, an empty one."""
    folder = tmp_path / "prefixes"
    folder.mkdir()
    monkeypatch.setattr(shared_caches, "_prefixes", lambda: SimpleNamespace(name=str(folder)))
    return folder


def layer() -> LayerFinetuning:
    return LayerFinetuning("layer3.0")


def test_each_image_is_judged_by_a_model_that_was_not_trained_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    judging, trained = CrossValidation(data, 3, epochs=2), []
    step = ImageClassifier.training_step

    def noted(model: Any, batch: Any, batch_idx: int) -> Any:
        trained.append((model.trainer.datamodule.held_out, list(batch[0])))
        return step(model, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", noted)
    found = CrossValidation(data, 3, epochs=2, callbacks=lambda _: ()).judge("probe", build())
    images = data.images("train")
    for held_out, batch in trained:
        assert not any(torch.equal(image, images[item][0]) for item in held_out for image in batch)
    assert found.items.tolist() == list(range(40))
    assert found.targets.tolist() == images.labels
    assert [sorted(found.items[found.folds == fold].tolist()) for fold in range(3)] == [
        fold.held_out for fold in judging.folds
    ]


def test_logits_are_those_of_the_models_and_the_last_epoch_is_among_them() -> None:
    data, kept = make_data(), []

    def with_end(model: ImageClassifier) -> list[L.Callback]:
        class Keep(L.Callback):
            def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                fold = trainer.datamodule  # type: ignore[attr-defined]
                images = torch.stack([data.images("train")[item][0] for item in fold.held_out])
                with torch.no_grad():
                    kept.append(pl_module.eval()(images))

        return [Keep()]

    found = CrossValidation(data, 2, epochs=3, callbacks=with_end).judge("layer", build(layer, learning_rate=1e-2))
    assert found.epochs == (1, 2, 3)
    for fold, logits in enumerate(kept):
        torch.testing.assert_close(found.logits[-1][found.folds == fold], logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found.logits[0], found.logits[-1])


def test_nothing_outside_of_the_training_split_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = make_data(), []
    decoded = LabelledImages._decoded

    def noted(images: LabelledImages, row: int) -> Any:
        read.append((id(images.table), row))
        return decoded(images, row)

    monkeypatch.setattr(LabelledImages, "_decoded", noted)
    judging = CrossValidation(data, 2, epochs=2)
    found = judging.judge("layer", build(layer))
    judging.refit(build(layer), found.epoch)
    images = data.images("train")
    assert {*read} == {(id(images.table), row) for row in images.indices}


@pytest.mark.parametrize("make", quick_first(1, [layer, lambda: SideFinetuning("layer2.0")]))
def test_a_frozen_prefix_is_run_once_for_all_folds_candidates_and_the_refit(stores: Path, make: Any) -> None:
    judging = CrossValidation(make_data(), 3, epochs=2)
    for rate in (1e-3, 1e-2):
        judging.judge(f"{rate}", build(make, learning_rate=rate))
    judging.refit(build(make, learning_rate=1e-2), 2)
    assert len([*stores.iterdir()]) == 1


@pytest.mark.parametrize("head", [nn.Linear, DiscriminantHead])
def test_caches_change_nothing(stores: Path, head: Any) -> None:
    found = [
        CrossValidation(make_data(), 2, epochs=2, **options).judge("layer", build(layer, head=head))
        for options in ({}, {"callbacks": lambda _: ()})
    ]
    torch.testing.assert_close(found[0].logits, found[1].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_one_seed_one_result_whatever_was_drawn_before() -> None:
    data, found = make_data(), []
    for drawn in (0, 3):
        torch.rand(drawn)
        found.append(CrossValidation(data, 2, epochs=2, seed=1).judge("full", build(FullFinetuning)))
        state = torch.get_rng_state()
    assert torch.equal(found[0].logits, found[1].logits)
    CrossValidation(data, 2, epochs=1, seed=1).judge("probe", build())
    assert torch.equal(state, torch.get_rng_state())


def test_a_refit_trains_on_all_images_at_the_rates_of_the_whole_length(monkeypatch: pytest.MonkeyPatch) -> None:
    data, rates, seen = make_data(batch_size=8), [], []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            seen.append(len(batch[1]))

    trainer, model = CrossValidation(data, 2, epochs=4).refit(build(FullFinetuning), 3, [Watch()])
    assert (trainer.current_epoch, len(rates)) == (3, 15)
    assert sum(seen) == 3 * len(data.train_set)
    expected = [(1 + torch.cos(torch.tensor(torch.pi * step / 20))) / 2 * rates[0] for step in range(15)]
    assert rates == pytest.approx([float(rate) for rate in expected])
    assert "val/loss" not in trainer.callback_metrics
    assert isinstance(model.method, FullFinetuning)


def test_a_first_look_takes_few_folds_and_more_go_on_from_there(tmp_path: Path, builds: list[int]) -> None:
    def counted() -> ImageClassifier:
        builds.append(1)
        return build()()

    judging = CrossValidation(make_data(), 3, epochs=1, progress=tmp_path)
    first, whole = judging.judge("probe", counted, folds=1), judging.judge("probe", counted)
    assert first.items.tolist() == judging.folds[0].held_out
    assert len(builds) == 3
    assert torch.equal(whole.logits[:, whole.folds == 0], first.logits)
    with pytest.raises(ValueError, match="one fold at least, got 0"):
        judging.judge("probe", counted, folds=0)


@pytest.mark.parametrize("epochs", [0, 5])
def test_a_refit_has_epochs_of_those_that_were_judged(epochs: int) -> None:
    with pytest.raises(ValueError, match=rf"epochs of a refit must lie in \[1, 4\], got {epochs}"):
        CrossValidation(make_data(), 2, epochs=4).refit(build(), epochs)


@pytest.mark.slow
def test_a_readout_is_solved_on_each_fold() -> None:
    found = CrossValidation(make_data(samples_per_class=8), 2, epochs=5).judge(
        "readout", build(lambda: LayerReadout("all"))
    )
    assert found.epochs == (1,)
    assert found.score > 0.3


def test_a_fold_that_diverges_or_fails_is_named() -> None:
    judging = CrossValidation(make_data(), 2, epochs=2)
    with pytest.raises(DivergedError, match=r"fold 1 of 2, rate 1e30: the training loss was not finite in epoch"):
        judging.judge("rate 1e30", build(FullFinetuning, learning_rate=1e30))

    def fails() -> ImageClassifier:
        raise MemoryError("8 GiB")

    with pytest.raises(FoldError, match=r"fold 1 of 2, large: the memory of the computer is full: 8 GiB"):
        judging.judge("large", fails)


class Killed(BaseException):
    """A process ends."""


@pytest.fixture
def builds() -> list[int]:
    return []


def test_what_was_judged_before_a_kill_is_not_judged_again(tmp_path: Path, builds: list[int]) -> None:
    def counted(kill_at: int) -> Callable[[], ImageClassifier]:
        def make() -> ImageClassifier:
            builds.append(1)
            if len(builds) == kill_at:
                raise Killed
            return build(FullFinetuning)()

        return make

    data = make_data()
    whole = CrossValidation(data, 3, epochs=2).judge("full", build(FullFinetuning))
    with pytest.raises(Killed):
        CrossValidation(data, 3, epochs=2, progress=tmp_path).judge("full", counted(kill_at=3))
    assert len([*tmp_path.iterdir()]) == 2
    builds.clear()
    again = CrossValidation(data, 3, epochs=2, progress=tmp_path)
    found = again.judge("full", counted(kill_at=99))
    assert len(builds) == 1
    assert torch.equal(found.logits, whole.logits)
    assert 0 < again.seconds_before < found.seconds


@pytest.mark.parametrize("change", quick_first(1, ["damage", "name", "identity", "epochs", "seed", "sample"]))
def test_what_was_kept_of_something_else_is_not_taken(tmp_path: Path, builds: list[int], change: str) -> None:
    def counted() -> ImageClassifier:
        builds.append(1)
        return build()()

    def judge(name: str = "a", sample: int = 4, **options: Any) -> None:
        arguments: dict[str, Any] = {"epochs": 1, "progress": tmp_path, **options}
        CrossValidation(make_data(samples_per_class=sample), 2, **arguments).judge(name, counted)

    judge()
    if change == "damage":
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[:-9])
    judge(
        **{"name": {"name": "b"}, "epochs": {"epochs": 2}, "sample": {"sample": 5}, "damage": {}}.get(
            change, {change: 1 if change == "seed" else "other"}
        )
    )
    assert len(builds) == 4


def test_several_labels_are_judged_by_average_precision(tmp_path: Path) -> None:
    names = [f"train/{number}.png" for number in range(12)]
    write_images(tmp_path, *names)
    lines = [f"{name},{'a|b' if number % 3 else 'a' if number % 2 else 'b'}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *lines]))
    data = ImageData(str(tmp_path), image_size=32, val_size=0, test_size=3, num_workers=0)
    found = CrossValidation(data, 2, epochs=1).judge(
        "pal", lambda: ImageClassifier("test_resnet", 2, weights=None, loss=PickAllLabelsLoss())
    )
    assert found.multi_label
    assert 0 < found.score <= 1


def test_folds_of_this_process_are_not_those_of_an_earlier_one(tmp_path: Path) -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=4)

    def build() -> ImageClassifier:
        return ImageClassifier("test_resnet", 10, weights=None)

    judging = CrossValidation(data, 2, epochs=1, progress=tmp_path)
    judging.judge("probe", build, folds=1)
    found = judging.judge("probe", build)
    assert judging.seconds_before == 0
    later = CrossValidation(data, 2, epochs=1, progress=tmp_path)
    later.judge("probe", build, folds=1)
    later.judge("probe", build)
    assert later.seconds_before == pytest.approx(found.seconds)
