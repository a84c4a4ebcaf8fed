"""A head that is solved once a network has been tuned, and the ways back to the one that was trained."""

import copy
import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from conftest import quick_first
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_finetune import ImageClassifier, LayerwiseNC1, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import CompileBlocks, DeltaCheckpoint, PrefixCache, SolveHead
from nc_finetune.deployment.export import export_onnx, export_program
from nc_finetune.functional.readout import solve_head
from nc_finetune.functional.temperature import temperature
from nc_finetune.heads import CosineHead, DiscriminantHead, MeanHead, SimplexETFHead
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import (
    AdapterTuning,
    FullFinetuning,
    LayerReadout,
    LinearProbe,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
    SkipProbe,
)

TrainerFactory = Callable[..., L.Trainer]
CLASSES = 4
METHODS: dict[str, Callable[[], Any]] = {
    "skip": lambda: SkipConnectionFinetuning("layer2.0"),
    "side": lambda: SideFinetuning("layer2.0"),
    "probe": LinearProbe,
    "full": FullFinetuning,
    "skip probe": lambda: SkipProbe(["layer1.0"]),
    "probe first": lambda: ProbeFirst(FullFinetuning(), 1),
    "readout": lambda: LayerReadout("later_half", method=SkipConnectionFinetuning("layer2.0")),
}


def make_model(method: str = "skip", head: Any = CosineHead, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", None)
    return ImageClassifier(backbone, CLASSES, method=METHODS[method](), head=head, **options)


def make_images(number: int = 24, seed: int = 0) -> TensorDataset:
    """Make images whose brightness tells the class, more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    brightness = 40 * labels.view(-1, 1, 1, 1) + 40
    images = brightness + torch.randint(-40, 41, (number, 3, 32, 32), generator=generator)
    images = images + torch.randint(-30, 31, (number, 1, 1, 1), generator=generator)
    return TensorDataset(images.clamp(0, 255).to(torch.uint8), labels)


TRAIN, VAL = make_images(), make_images(16, seed=1)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([*zip(*TRAIN.tensors, strict=True)])


def loader(dataset: Any = TRAIN, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, **options)


def fit(model: ImageClassifier, trainer: L.Trainer, train: Any = None, val: Any = VAL, **options: Any) -> SolveHead:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step`")
        trainer.fit(model, loader() if train is None else train, loader(val) if val else None, **options)
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next(part for part in found if isinstance(part, SolveHead))


@torch.no_grad()
def logits(model: ImageClassifier, dataset: TensorDataset = VAL) -> Tensor:
    return model.eval()(dataset.tensors[0])


def probabilities(model: ImageClassifier) -> Tensor:
    return logits(model).softmax(1)


# --- what is solved, and what is taken


@pytest.mark.parametrize(
    ("method", "layers"),
    quick_first(
        2,
        [
            ("skip", "later_half"),
            ("side", "later_half"),
            ("probe", None),
            ("full", "later_half"),
            ("skip probe", None),
            ("probe first", "later_half"),
            ("skip", None),
        ],
    ),
)
def test_head_is_solved_from_the_tuned_network(make_trainer: TrainerFactory, method: str, layers: Any) -> None:
    plain, model = make_model(method), make_model(method)
    untouched = copy.deepcopy(plain.backbone.state_dict())
    make_trainer(max_epochs=2).fit(plain, loader(), loader(VAL))
    solver = fit(model, make_trainer(SolveHead(layers, "solved"), max_epochs=2))
    seen = plain.method if layers is None else LayerReadout(layers, method=plain.method)
    with torch.no_grad():
        expected = solve_head(seen.features(plain.eval().backbone, TRAIN.tensors[0]), TRAIN.tensors[1], CLASSES)
    assert solver.taken == "solved"
    assert type(model.head) is DiscriminantHead
    scale = solver.scores["solved"].temperature
    torch.testing.assert_close(model.head.weight, (expected.weight / scale).float(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(model.head.bias, (expected.bias / scale).float(), rtol=2e-3, atol=2e-3)
    tuned, trained = (part.backbone.state_dict() for part in (model, plain))
    assert all(torch.equal(value, trained[name]) for name, value in tuned.items())
    assert any(not torch.equal(value, untouched[name]) for name, value in tuned.items()) == (
        method in ("skip", "full", "probe first")
    )


@pytest.mark.parametrize("method", quick_first(1, ["full", "side", "readout"]))
def test_layers_of_the_network_as_it_was_stand_beside_the_tuned_one(make_trainer: TrainerFactory, method: str) -> None:
    head = DiscriminantHead if method == "readout" else CosineHead
    plain, model, untouched = make_model(method, head), make_model(method, head), make_model()
    make_trainer(max_epochs=2).fit(plain, loader(), loader(VAL))
    trainer = make_trainer(SolveHead("later_half", "mean", frozen=True), PrefixCache(), max_epochs=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PrefixCache: full FT leaves no frozen prefix")
        solver = fit(model, trainer)
    readout = LayerReadout("later_half")
    with torch.no_grad():
        solved, trained = model.eval().head.parts(model.features(VAL.tensors[0]))
        seen, of_val = (readout.features(untouched.eval().backbone, part.tensors[0]) for part in (TRAIN, VAL))
        expected = solve_head(seen, TRAIN.tensors[1], CLASSES)
        wanted = of_val.double() @ expected.weight.T + expected.bias
    torch.testing.assert_close(solved, wanted.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(trained, logits(plain), rtol=1e-4, atol=1e-4)
    assert solver.solved is not None
    assert solver.solved.accuracy == expected.accuracy
    model.unfreeze()
    network = model.method.network
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    fit(model, make_trainer(solver))  # which knows the network as it was
    with torch.no_grad():
        again, _ = model.eval().head.parts(model.features(VAL.tensors[0]))
    torch.testing.assert_close(again, solved, rtol=1e-4, atol=1e-4)
    if method == "full":
        with pytest.raises(ValueError, match="keeps the network as it came, and this one has been tuned since"):
            fit(model, make_trainer(SolveHead("later_half", frozen=True)))


def test_a_fit_that_began_at_a_readout_is_solved_again(make_trainer: TrainerFactory) -> None:
    model = make_model("readout", DiscriminantHead)
    solver = fit(model, make_trainer(SolveHead(take="solved")))
    assert type(model.head) is DiscriminantHead
    assert solver.solved is not None
    assert model.head.in_features == model.method.num_features(model.backbone)


@pytest.mark.parametrize("layers", quick_first(1, ["later_half", None]))
def test_the_mean_is_taken_unless_one_is_clearly_likelier(make_trainer: TrainerFactory, layers: Any) -> None:
    plain, model, mean = make_model(), make_model(), make_model()
    make_trainer().fit(plain, loader(), loader(VAL))
    solver = fit(model, make_trainer(SolveHead(layers)))
    fit(mean, make_trainer(SolveHead(layers, "mean")))
    labels, trained = VAL.tensors[1], logits(plain).double()
    with torch.no_grad():
        solved = mean.head.parts(mean.features(VAL.tensors[0]))[0].double()
    joined = solved / temperature(solved, labels) + trained / temperature(trained, labels)
    for name, found in {"trained": trained, "solved": solved, "mean": joined / 2}.items():
        score, best = solver.scores[name], temperature(found, labels)
        assert score.accuracy == pytest.approx((found.argmax(1) == labels).double().mean().item())
        assert score.log_likelihood == pytest.approx(-F.cross_entropy(found / best, labels).item(), rel=1e-3, abs=1e-4)
    losses = {
        name: F.cross_entropy(found / temperature(found, labels), labels, reduction="none")
        for name, found in {"trained": trained, "solved": solved, "mean": joined}.items()
    }
    gains = {name: losses["mean"] - loss for name, loss in losses.items()}
    clear = [name for name, gain in gains.items() if gain.mean() > gain.std() / 4]
    assert solver.taken == max(clear, key=lambda name: gains[name].mean().item(), default="mean")
    assert solver.samples == 16
    chosen = {"trained": trained, "solved": solved, "mean": joined}[solver.taken].argmax(1)
    assert torch.equal(logits(model).argmax(1), chosen)
    best = temperature(joined / 2, labels)
    torch.testing.assert_close(probabilities(mean), (joined / 2 / best).softmax(1).float(), rtol=1e-3, atol=1e-4)


def test_a_trained_head_that_is_likelier_stays(make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    head = model.head
    monkeypatch.setattr("nc_finetune.callbacks.solve_head.clearly_best", lambda losses, prefer: "trained")
    solver = fit(model, make_trainer(SolveHead("later_half")))
    assert solver.taken == "trained"
    assert model.head is head
    assert not model.taken_head.is_used


@pytest.mark.slow
def test_a_solved_head_that_is_always_wrong_has_no_say(
    make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, model = make_model(), make_model()
    make_trainer(max_epochs=9).fit(plain, loader(), loader(VAL))
    wrong = TensorDataset(TRAIN.tensors[0], TRAIN.tensors[1].roll(1))
    monkeypatch.setattr("nc_finetune.callbacks.solve_head.training_loader", lambda *_, **__: loader(wrong))
    fit(model, make_trainer(SolveHead(), max_epochs=9))
    assert torch.equal(logits(model).argmax(1), logits(plain).argmax(1))


def test_without_validation_images_the_mean_is_taken_with_logits_equally_far_apart(
    make_trainer: TrainerFactory,
) -> None:
    model = make_model()
    solver = fit(model, make_trainer(SolveHead("later_half")), val=None)
    assert (solver.taken, solver.scores, solver.samples) == ("mean", {}, 0)
    assert solver.solved is not None
    with torch.no_grad():
        _, trained = model.eval().head.parts(model.features(TRAIN.tensors[0]))
    left_out = solver.solved.logits
    apart = [(found.amax(1) - found.amin(1)).mean().item() for found in (left_out, trained)]
    assert model.head.scales.tolist() == pytest.approx([0.5, 0.5 * apart[0] / apart[1]], rel=1e-3)


@pytest.mark.parametrize(
    "head", quick_first(1, [SimplexETFHead, nn.Linear, partial(CosineHead, learn_temperature=True)])
)
def test_any_head_joins_a_mean(make_trainer: TrainerFactory, head: Any) -> None:
    plain, model = make_model(head=head), make_model(head=head)
    make_trainer(max_epochs=2).fit(plain, loader(), loader(VAL))
    fit(model, make_trainer(SolveHead("later_half", "mean"), max_epochs=2))
    with torch.no_grad():
        _, trained = model.eval().head.parts(model.features(VAL.tensors[0]))
    torch.testing.assert_close(trained, logits(plain), rtol=1e-4, atol=1e-5)


def test_what_comes_after_a_fit_uses_the_taken_head(make_trainer: TrainerFactory) -> None:
    model, trainer = make_model(), make_trainer(SolveHead("later_half", "mean"))
    fit(model, trainer)
    (shown,) = trainer.test(model, loader(VAL), verbose=False)
    assert shown["test/accuracy"] == pytest.approx((logits(model).argmax(1) == VAL.tensors[1]).float().mean().item())
    (validated,) = trainer.validate(model, loader(VAL), verbose=False)
    assert validated["val/accuracy"] == shown["test/accuracy"]
    predicted = trainer.predict(model, loader(VAL))
    torch.testing.assert_close(torch.cat(predicted), probabilities(model))  # type: ignore[arg-type]


def test_one_line_and_the_loggers_say_what_was_taken(
    make_trainer: TrainerFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(SolveHead(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        solver = fit(make_model(), trainer)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("SolveHead")]
    assert "points on 16 validation images: trained" in line
    assert f"shrinkage {solver.solved.shrinkage:g}" in line  # type: ignore[union-attr]
    header = (Path(trainer.log_dir or "") / "metrics.csv").read_text().splitlines()[0].split(",")
    names = [f"{name}_{figure}" for name in solver.scores for figure in ("accuracy", "log_likelihood")]
    logged = {f"solve_head/{name}" for name in (*names, "leave_one_out_accuracy", "shrinkage")}
    assert logged <= {*header}
    assert logged == {name for name in trainer.callback_metrics if name.startswith("solve_head")}
    assert trainer.callback_metrics["solve_head/mean_accuracy"] == pytest.approx(solver.scores["mean"].accuracy)


@pytest.mark.parametrize(
    "train",
    quick_first(
        1, [partial(loader, Stream()), partial(loader, shuffle=True), partial(loader, drop_last=True, batch_size=7)]
    ),
)
def test_any_data_give_the_same_head(make_trainer: TrainerFactory, train: Callable[[], Any]) -> None:
    frozen = {"learning_rate": 0.0, "head_learning_rate": 0.0}
    plain, model = make_model(**frozen), make_model(**frozen)
    fit(plain, make_trainer(SolveHead("later_half", "solved")))
    fit(model, make_trainer(SolveHead("later_half", "solved")), train())
    torch.testing.assert_close(model.head.weight, plain.head.weight, rtol=1e-3, atol=1e-3)


def test_random_numbers_are_those_of_a_fit_without_it(make_trainer: TrainerFactory) -> None:
    states = []
    for callbacks in ([], [SolveHead("later_half", "mean")]):
        model = make_model()
        torch.manual_seed(1)
        make_trainer(*callbacks).fit(model, loader(), loader(VAL))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# --- files, resuming and further fits


@pytest.mark.parametrize(
    ("kind", "layers", "take"),
    quick_first(1, [(ModelCheckpoint, "later_half", "mean"), (DeltaCheckpoint, None, "solved")]),
)
def test_a_checkpoint_of_the_fit_brings_the_trained_head_back(
    make_trainer: TrainerFactory, tmp_path: Path, kind: Any, layers: Any, take: Any
) -> None:
    plain, model = make_model(), make_model()
    kept = kind(tmp_path, monitor="val/loss")
    make_trainer(max_epochs=2).fit(plain, loader(), loader(VAL))
    trainer = make_trainer(SolveHead(layers, take), kept, enable_checkpointing=True, max_epochs=2)
    fit(model, trainer)
    taken, after = probabilities(model), tmp_path / "after.safetensors"
    save_delta(model, after)
    (best,) = trainer.test(model, loader(VAL), ckpt_path="best", verbose=False)
    assert type(model.head) is CosineHead
    assert not isinstance(model.method, LayerReadout)
    (expected,) = make_trainer().test(plain, loader(VAL), verbose=False)
    assert best == pytest.approx(expected, rel=1e-5)
    trainer.test(model, loader(VAL), ckpt_path=str(after), verbose=False)  # and forth
    torch.testing.assert_close(probabilities(model), taken, rtol=0, atol=1e-6)
    load_delta(after, model)
    torch.testing.assert_close(probabilities(model), taken, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "take", "frozen"),
    quick_first(1, [("later_half", "mean", True), ("later_half", "solved", False), (None, "mean", False)]),
)
def test_files_of_the_taken_head_are_loaded_to_the_same_predictions(
    make_trainer: TrainerFactory, tmp_path: Path, layers: Any, take: Any, frozen: bool
) -> None:
    fresh = make_model("full")
    torch.save(fresh.backbone.model.state_dict(), tmp_path / "base.pth")
    model = ImageClassifier(
        "test_resnet", CLASSES, weights=str(tmp_path / "base.pth"), method=METHODS["skip"](), head=CosineHead
    )
    trainer = make_trainer(SolveHead(layers, take, frozen=frozen), max_epochs=2)
    fit(model, trainer)
    taken = probabilities(model)
    save_delta(model, tmp_path / "taken.safetensors")
    trainer.save_checkpoint(tmp_path / "taken.ckpt")
    for found in (
        load_delta(tmp_path / "taken.safetensors"),
        ImageClassifier.load_from_checkpoint(tmp_path / "taken.ckpt"),
    ):
        torch.testing.assert_close(probabilities(found), taken, rtol=0, atol=1e-6)
        assert not found.taken_head.is_used
    assert torch.load(tmp_path / "taken.ckpt").get("hyper_parameters", {}) == {}
    for file in ("taken.safetensors", "taken.ckpt"):  # onto a model that was never fitted
        found = ImageClassifier(
            "test_resnet", CLASSES, weights=str(tmp_path / "base.pth"), method=METHODS["skip"](), head=CosineHead
        )
        tester = make_trainer()
        tester.test(found, loader(VAL), ckpt_path=str(tmp_path / file), verbose=False)
        torch.testing.assert_close(probabilities(found), taken, rtol=0, atol=1e-6)
        assert found.taken_head.is_used
        assert type(found.taken_head.trained) is CosineHead
    with pytest.raises(ValueError, match="the delta was made for another method"):
        load_delta(tmp_path / "taken.safetensors", make_model("full"))
    with pytest.raises(ValueError, match="written after a fit and holds the head that SolveHead took"):
        fit(make_model(), make_trainer(SolveHead(), max_epochs=3), ckpt_path=str(tmp_path / "taken.ckpt"))


def test_a_file_is_written_at_the_end(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "runs" / "taken.safetensors"
    fit(model, make_trainer(SolveHead("later_half", "mean", path=str(path))))
    taken = probabilities(model)
    model.head.scales.zero_()
    load_delta(path, model)
    torch.testing.assert_close(probabilities(model), taken, rtol=0, atol=0)


@pytest.mark.slow
def test_a_network_that_has_adapters_is_kept_with_them(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    torch.save(TimmBackbone("test_vit", None).model.state_dict(), tmp_path / "base.pth")
    model = ImageClassifier("test_vit", CLASSES, weights=str(tmp_path / "base.pth"), method=AdapterTuning())
    resized = TensorDataset(F.interpolate(TRAIN.tensors[0], (160, 160)), TRAIN.tensors[1])
    fit(model, make_trainer(SolveHead("later_half", frozen=True)), loader(resized), None)
    save_delta(model, tmp_path / "taken.safetensors")
    loaded = load_delta(tmp_path / "taken.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(loaded(resized.tensors[0]), model.eval()(resized.tensors[0]))


@pytest.mark.parametrize("layers", quick_first(1, ["later_half", None]))
def test_a_fit_goes_on_with_the_trained_head(make_trainer: TrainerFactory, tmp_path: Path, layers: Any) -> None:
    """Resumed from the middle, be it by the same model or a fresh one, it ends where an uninterrupted one does."""
    solver = partial(SolveHead, layers, "mean")
    whole = make_model()
    fit(whole, make_trainer(solver(), max_epochs=3, check_val_every_n_epoch=3))
    expected = probabilities(whole)
    half, every = (
        make_model(),
        ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
    )
    fit(half, make_trainer(solver(), every, enable_checkpointing=True, max_epochs=3, check_val_every_n_epoch=3))
    assert half.taken_head.is_used
    for model in (half, make_model()):
        trainer = make_trainer(solver(), max_epochs=3, check_val_every_n_epoch=3)
        fit(model, trainer, ckpt_path=str(tmp_path / "epoch=0.ckpt"))
        assert type(model.head) is MeanHead
        torch.testing.assert_close(probabilities(model), expected, rtol=1e-4, atol=1e-5)


def test_a_second_fit_trains_the_trained_head(make_trainer: TrainerFactory) -> None:
    plain, model = make_model(), make_model()
    for _ in range(2):
        make_trainer().fit(plain, loader(), loader(VAL))
        trainer = make_trainer(SolveHead("later_half", "mean"))
        fit(model, trainer)
    assert not isinstance(model.method.method, LayerReadout)
    model.taken_head.put_back()
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)


def test_a_fit_that_is_at_its_end_leaves_the_taken_head(make_trainer: TrainerFactory) -> None:
    model, trainer = make_model(), make_trainer(SolveHead("later_half", "mean"))
    solver = fit(model, trainer)
    taken = probabilities(model)
    trainer.fit(model, loader(), loader(VAL))  # its one epoch is over
    assert solver.taken == "mean"
    assert torch.equal(probabilities(model), taken)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader(), loader(VAL))
    assert type(model.head) is MeanHead
    assert not torch.equal(probabilities(model), taken)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_a_mean_is_exported(make_trainer: TrainerFactory, tmp_path: Path, frozen: bool) -> None:
    model = make_model()
    fit(model, make_trainer(SolveHead("later_half", "mean", frozen=frozen)))
    export_onnx(model, tmp_path / "model.onnx", image_size=32)  # both compare logits with the model's
    export_program(model, tmp_path / "model.pt2", image_size=32)


def test_heads_that_nobody_can_describe_are_told_apart_by_their_shapes(
    make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    model = make_model(head=lambda width, classes: nn.Linear(width, classes, bias=False))
    trainer = make_trainer(SolveHead("later_half", "mean"), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    fit(model, trainer)
    assert model.head_config is None
    trainer.test(model, loader(VAL), ckpt_path="best", verbose=False)
    assert type(model.head) is nn.Linear


# --- beside others


@pytest.mark.slow
def test_compiled_blocks_change_nothing(make_trainer: TrainerFactory) -> None:
    plain, beside = make_model(), make_model()
    fit(plain, make_trainer(SolveHead("all", "mean")))
    fit(beside, make_trainer(SolveHead("all", "mean"), CompileBlocks()))
    torch.testing.assert_close(probabilities(beside), probabilities(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", quick_first(1, ["all", None]))
def test_a_cache_changes_nothing(make_trainer: TrainerFactory, layers: Any) -> None:
    plain, beside = make_model(), make_model()
    fit(plain, make_trainer(SolveHead(layers, "mean"), max_epochs=2))
    trainer = make_trainer(
        SolveHead(layers, "mean"), PrefixCache(splits=("train", "val", "test")), LayerwiseNC1(), max_epochs=2
    )
    fit(beside, trainer)
    torch.testing.assert_close(probabilities(beside), probabilities(plain), rtol=1e-4, atol=1e-5)
    (shown,) = trainer.test(beside, loader(VAL), verbose=False)
    assert shown["test/accuracy"] == pytest.approx((logits(plain).argmax(1) == VAL.tensors[1]).float().mean().item())


def test_averaged_weights_are_there_before_the_head_is_solved(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    plain, model = make_model(), make_model()
    make_trainer(EMAWeightAveraging(decay=0.5), max_epochs=2).fit(plain, loader(), loader(VAL))
    trainer = make_trainer(SolveHead(take="mean"), EMAWeightAveraging(decay=0.5), max_epochs=2)
    fit(model, trainer)
    with torch.no_grad():
        solved, trained = model.eval().head.parts(model.features(VAL.tensors[0]))
        expected = solve_head(plain.eval().features(TRAIN.tensors[0]), TRAIN.tensors[1], CLASSES)
        wanted = plain.features(VAL.tensors[0]).double() @ expected.weight.T + expected.bias
    torch.testing.assert_close(trained, logits(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solved, wanted.float(), rtol=1e-2, atol=1e-2)
    trainer.save_checkpoint(tmp_path / "taken.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "taken.ckpt")
    torch.testing.assert_close(probabilities(loaded), probabilities(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", quick_first(1, ["bf16-true", "bf16-mixed", "64-true"]))
def test_a_head_is_taken_in_any_precision(make_trainer: TrainerFactory, precision: Any) -> None:
    model, trainer = make_model(), make_trainer(SolveHead("later_half", "mean"), precision=precision)
    fit(model, trainer)
    assert {value.dtype for value in model.head.state_dict().values() if value.is_floating_point()} == {
        {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    }
    trainer.test(model, loader(VAL), verbose=False)


@pytest.mark.parametrize(
    "options", quick_first(1, [{"fast_dev_run": True}, {"limit_train_batches": 2, "limit_val_batches": 1}])
)
def test_few_batches_are_enough(make_trainer: TrainerFactory, options: Any) -> None:
    solver = fit(make_model(), make_trainer(SolveHead("later_half"), **options), loader(make_images(120)))
    assert solver.samples == 8
    assert solver.solved is not None
    assert 8 <= len(solver.solved.logits) <= 24


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    torch.set_num_threads(1)
    found = {}
    for layers in (None, "later_half", "all"):
        model, solver = make_model(), SolveHead(layers, "mean", frozen=layers == "all")
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = L.Trainer(
            max_epochs=2, strategy="ddp", devices=2, accelerator="cpu", callbacks=[solver, PrefixCache()], **quiet
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, loader(make_images(23), 4), loader(make_images(15, seed=1), 4))
        likelihoods = {name: score.log_likelihood for name, score in solver.scores.items()}
        found[str(layers)] = [
            probabilities(model).tolist(),
            likelihoods,
            solver.samples,
            logits(model).isfinite().all().item(),
        ]
        if rank == 0:
            save_delta(model, Path(folder, f"{layers}.safetensors"))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_same_head(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for layers, (_, likelihoods, samples, finite) in first.items():
        assert finite
        assert samples == 15
        model = load_delta(tmp_path / f"{layers}.safetensors", _taken(layers))
        with torch.no_grad():
            solved, trained = model.eval().head.parts(model.features(make_images(15, seed=1).tensors[0]))
            expected = solve_head(
                model.method.features(model.backbone, make_images(23).tensors[0])[:, : model.head.first.in_features],
                make_images(23).tensors[1],
                CLASSES,
            )
        torch.testing.assert_close(model.head.first.weight, expected.weight.float(), rtol=5e-3, atol=5e-3)
        labels = make_images(15, seed=1).tensors[1]
        for name, found in {"solved": solved.double(), "trained": trained.double()}.items():
            wanted = -F.cross_entropy(found / temperature(found, labels), labels).item()
            assert likelihoods[name] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def _taken(layers: str) -> ImageClassifier:
    """Build a model as those of the processes are since their fit."""
    method = METHODS["skip"]()
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", None)
    trained = method.num_features(backbone)
    if layers == "None":
        return ImageClassifier(
            backbone, CLASSES, method=method, head=partial(MeanHead, first=DiscriminantHead, second=CosineHead)
        )
    readout = LayerReadout(layers, method=method, given=True, frozen=layers == "all")
    widths = (readout.num_features(backbone) - trained, trained)
    head = partial(MeanHead, first=DiscriminantHead, second=CosineHead, widths=widths)
    return ImageClassifier(backbone, CLASSES, method=readout, head=head)


# --- what is refused, or left alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"take": "best"}, "unknown head to take 'best'"),
        ({"layers": "auto"}, "layers='auto' is chosen for a frozen network"),
        ({"shrinkage": 0.0}, "shrinkage must lie in"),
        ({"priors": "even"}, "unknown priors 'even'"),
        ({"frozen": True}, "frozen=True is of layers of the network as it was; name them"),
        ({"path": "taken.ckpt"}, "path must end in .safetensors, as of a delta, got 'taken.ckpt'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolveHead(**arguments)


@pytest.mark.parametrize(
    ("model", "callbacks", "message"),
    [
        (lambda: make_model(loss=PickAllLabelsLoss()), [SolveHead()], "of which each image has one"),
        (
            lambda: ImageClassifier("test_resnet", CLASSES, weights=None, method=LayerReadout()),
            [SolveHead()],
            "comes after training, and readout trains nothing; leave it out",
        ),
        (lambda: make_model("readout"), [SolveHead("all")], "looks at several layers already; leave layers='all' out"),
        (make_model, [SolveHead(), SolveHead("all")], "there are several SolveHead, and a model takes one head"),
        (make_model, [SolveHead("layer9")], "unknown layer 'layer9'"),
    ],
)
def test_fits_that_cannot_end_with_it_are_refused(
    make_trainer: TrainerFactory, model: Callable[[], ImageClassifier], callbacks: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(model(), make_trainer(*callbacks))


def test_shards_and_other_modules_are_refused(make_trainer: TrainerFactory) -> None:
    trainer = make_trainer()
    with pytest.raises(TypeError, match="SolveHead needs an ImageClassifier, got LightningModule"):
        SolveHead().setup(trainer, L.LightningModule(), "fit")
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(ValueError, match="SolveHead needs the whole network in every process"):
        SolveHead().setup(trainer, make_model(), "fit")


def test_a_network_that_has_collapsed_keeps_its_trained_head(
    make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = TensorDataset(torch.full((8, 3, 32, 32), 9, dtype=torch.uint8), torch.arange(8) % CLASSES)
    model = make_model()
    with pytest.warns(UserWarning, match="nothing to solve, and the trained head stays: samples coincide"):
        solver = fit(model, make_trainer(SolveHead()), loader(constant))
    assert (solver.taken, solver.solved, type(model.head)) == ("trained", None, CosineHead)


def test_classes_without_images_are_left_to_the_trained_head(make_trainer: TrainerFactory) -> None:
    images, labels = TRAIN.tensors
    known = TensorDataset(images[labels < 3], labels[labels < 3])
    model = make_model()
    with pytest.warns(UserWarning, match="no sample of class 3"):
        solver = fit(model, make_trainer(SolveHead("later_half", "mean")), loader(known))
    assert math.isfinite(solver.scores["mean"].log_likelihood)
    assert 3 not in logits(model).argmax(1)
