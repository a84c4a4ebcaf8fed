"""Statistics of the training images at the end of any fit, and the files that hold them."""

import copy
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
from conftest import quick_first
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import (
    AverageEpochs,
    BestEpoch,
    DeltaCheckpoint,
    KeepStatistics,
    PrefixCache,
    ResumableRun,
    SolveHead,
)
from nc_finetune.deployment import load_model
from nc_finetune.doubt import DoubtState
from nc_finetune.files.delta import read_delta
from nc_finetune.functional import class_statistics, temperature
from nc_finetune.functional.conformal import conformal_scores, conformal_threshold
from nc_finetune.functional.readout import solve_head
from nc_finetune.heads import BottleneckHead, CosineHead, MeanHead, SimplexETFHead
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import (
    AdapterTuning,
    FullFinetuning,
    LayerReadout,
    LinearProbe,
    SideFinetuning,
    SkipConnectionFinetuning,
)

TrainerFactory = Callable[..., L.Trainer]
CLASSES = 4
METHODS: dict[str, Callable[[], Any]] = {
    "skip": lambda: SkipConnectionFinetuning("layer2.0"),
    "readout": lambda: LayerReadout("later_half"),
    "auto": LayerReadout,
    "side": lambda: SideFinetuning("layer2.0"),
    "probe": LinearProbe,
    "full": FullFinetuning,
    "adapter": AdapterTuning,
    "tuned readout": lambda: LayerReadout("later_half", method=SkipConnectionFinetuning("layer2.0")),
}


def make_model(method: str = "skip", head: Any = None, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    head = head or (None if method in ("readout", "auto") else CosineHead)
    return ImageClassifier(TimmBackbone("test_resnet", None), CLASSES, method=METHODS[method](), head=head, **options)


def make_images(number: int = 40, seed: int = 0, classes: int = CLASSES) -> TensorDataset:
    """Make images whose brightness tells the class, more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % classes
    images = 40 * labels.view(-1, 1, 1, 1) + 40 + torch.randint(-40, 41, (number, 3, 32, 32), generator=generator)
    images = images + torch.randint(-30, 31, (number, 1, 1, 1), generator=generator)
    return TensorDataset(images.clamp(0, 255).to(torch.uint8), labels)


TRAIN, VAL = make_images(), make_images(32, seed=1)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([*zip(*TRAIN.tensors, strict=True)])


def loader(dataset: Any = TRAIN, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, **options)


def fit(model: ImageClassifier, trainer: L.Trainer, train: Any = None, val: Any = VAL, **options: Any) -> DoubtState:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step`")
        trainer.fit(model, loader() if train is None else train, loader(val) if val else None, **options)
    assert model.doubt is not None
    return model.doubt


@torch.no_grad()
def seen(model: ImageClassifier, dataset: TensorDataset = TRAIN) -> tuple[Tensor, Tensor]:
    features = model.eval().features(dataset.tensors[0])
    return features, model.head(features)


def same(first: DoubtState, second: DoubtState, **tolerance: float) -> None:
    for name, value in first.state_dict().items():
        if name != "vectors":  # known but for their signs
            torch.testing.assert_close(value, second.state_dict()[name], **(tolerance or {"rtol": 1e-4, "atol": 1e-4}))


# --- what is taken


@pytest.mark.parametrize("method", quick_first(2, METHODS))
def test_statistics_are_those_of_what_the_head_sees(make_trainer: TrainerFactory, method: str) -> None:
    model = make_model(method)
    state = fit(model, make_trainer(KeepStatistics(), max_epochs=2))
    features, _ = seen(model)
    sums = class_statistics(features, TRAIN.tensors[1])
    torch.testing.assert_close(state.means, sums.means.float(), rtol=1e-4, atol=1e-4)
    assert state.counts.tolist() == [10] * 4
    trace = state.values.sum() + state.rest * (features.shape[1] - len(state.values))
    torch.testing.assert_close(trace, sums.spreads.sum().float(), rtol=1e-3, atol=1e-3)
    tuned = method not in ("readout", "auto", "probe")
    assert state.numbers[0] == (32 if tuned else 40)
    assert state.sources[0] == (2 if tuned else 1)


def test_a_readout_needs_no_further_pass(make_trainer: TrainerFactory) -> None:
    model, plain, keeps = make_model("auto"), make_model("auto"), KeepStatistics()
    state = fit(model, make_trainer(keeps))
    make_trainer().fit(plain, loader(), loader(VAL))
    assert keeps.passes == 0
    assert plain.doubt is None
    assert torch.equal(model.head.weight, plain.head.weight)
    features, _ = seen(model)
    head = solve_head(features, TRAIN.tensors[1], CLASSES)
    assert state.shrinkage.item() == pytest.approx(head.shrinkage)
    scores = conformal_scores(head.logits.softmax(1), TRAIN.tensors[1])
    assert state.threshold(0.9).item() == pytest.approx(conformal_threshold(scores, 0.9).item(), abs=1e-4)
    assert state.numbers.tolist() == [40, 40]


def test_temperature_and_sets_of_a_tuned_network_are_those_of_validation_images(make_trainer: TrainerFactory) -> None:
    model = make_model()
    state = fit(model, make_trainer(KeepStatistics(), max_epochs=2))
    _, logits = seen(model, VAL)
    expected = temperature(logits, VAL.tensors[1])
    assert state.temperature.item() == pytest.approx(expected.item(), rel=1e-3)
    scores = conformal_scores((logits.double() / expected).softmax(1), VAL.tensors[1])
    for coverage in (0.5, 0.9):
        assert state.threshold(coverage).item() == pytest.approx(conformal_threshold(scores, coverage).item(), abs=1e-3)
    predicted = make_trainer().predict(model, loader(VAL))
    assert predicted is not None
    torch.testing.assert_close(torch.cat(predicted), (logits / state.temperature).softmax(1), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    found = model.doubts(VAL.tensors[0])
    torch.testing.assert_close(found.probabilities, torch.cat(predicted), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_without_validation_images_it_says_what_is_missing(make_trainer: TrainerFactory) -> None:
    tuned, probe = make_model(), make_model("probe")
    with pytest.warns(UserWarning, match="will look stranger than they are; hold some out"):
        state = fit(tuned, make_trainer(KeepStatistics()), val=None)
    assert state.is_too_sure
    assert not state.has_scores
    assert state.temperature == 1
    with pytest.warns(UserWarning, match="probabilities stay as they are, and there are no sets; hold some out"):
        state = fit(probe, make_trainer(KeepStatistics()), val=None)
    assert not state.is_too_sure


@pytest.mark.parametrize(
    "train",
    quick_first(
        1, [lambda: loader(Stream()), lambda: loader(shuffle=True), lambda: loader(drop_last=True, batch_size=7)]
    ),
)
def test_any_data_give_the_same(make_trainer: TrainerFactory, train: Callable[[], Any]) -> None:
    frozen = {"learning_rate": 0.0, "head_learning_rate": 0.0}
    plain, model = make_model(**frozen), make_model(**frozen)
    expected = fit(plain, make_trainer(KeepStatistics()))
    found = fit(model, make_trainer(KeepStatistics()), train())
    same(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("head", quick_first(1, [SimplexETFHead, BottleneckHead, nn.Linear]))
def test_any_head(make_trainer: TrainerFactory, head: Any) -> None:
    assert fit(make_model(head=head), make_trainer(KeepStatistics())).has_scores


# --- beside other callbacks


@pytest.mark.parametrize(
    ("layers", "take", "frozen"),
    quick_first(
        1,
        [
            ("later_half", "mean", True),
            ("later_half", "mean", False),
            ("later_half", "solved", True),
            (None, "mean", False),
        ],
    ),
)
def test_it_comes_after_a_head_is_solved(
    make_trainer: TrainerFactory, tmp_path: Path, layers: Any, take: Any, frozen: bool
) -> None:
    model, untouched = make_model("full"), make_model("full")
    path = tmp_path / "solved.safetensors"
    solver = SolveHead(layers, take, frozen=frozen, path=str(path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PrefixCache: full FT leaves no frozen prefix")
        state = fit(model, make_trainer(KeepStatistics(), solver, PrefixCache(), max_epochs=2))
    _, logits = seen(model, VAL)
    assert state.temperature.item() == pytest.approx(temperature(logits, VAL.tensors[1]).item(), rel=1e-2)
    own, _ = seen(model)
    torch.testing.assert_close(
        state.means, class_statistics(own, TRAIN.tensors[1]).means[:, : state.width].float(), rtol=1e-3, atol=1e-3
    )
    if frozen:
        readout = LayerReadout("later_half")
        with torch.no_grad():
            before = readout.features(untouched.eval().backbone, TRAIN.tensors[0])
        torch.testing.assert_close(own[:, : state.width], before, rtol=1e-3, atol=1e-3)
        assert state.sources.tolist() == [1, 2]  # of a network that was not tuned training images are left out
    if take == "mean":
        assert isinstance(model.head, MeanHead)
    assert any(name.startswith("doubt.") for name in read_delta(path).tensors)


@pytest.mark.parametrize("kind", quick_first(1, ["best", "averaged", "delta"]))
def test_files_of_the_weights_that_are_left_have_them(make_trainer: TrainerFactory, tmp_path: Path, kind: str) -> None:
    saving: dict[str, list[Any]] = {
        "best": [BestEpoch(dirpath=tmp_path)],
        "averaged": [AverageEpochs(), DeltaCheckpoint(tmp_path, save_last=True, monitor="val/loss", save_top_k=2)],
        "delta": [DeltaCheckpoint(tmp_path, resumable=True)],
    }
    model = make_model(learning_rate=0.3 if kind == "best" else None)
    trainer = make_trainer(*saving[kind], KeepStatistics(), max_epochs=3, enable_checkpointing=True)
    state = fit(model, trainer)
    expected = copy.deepcopy(model).eval().doubts(VAL.tensors[0])
    written = {path: read_delta(path).tensors for path in tmp_path.glob("*.safetensors")}
    own = model.state_dict()
    for tensors in written.values():
        fits = all(torch.equal(value, own[name]) for name, value in tensors.items() if name in own)
        assert any(name.startswith("doubt.") for name in tensors) == fits
    assert any(name.startswith("doubt.") for tensors in written.values() for name in tensors)
    path = next(path for path, tensors in written.items() if any(name.startswith("doubt.") for name in tensors))
    loaded = load_delta(path, make_model()).eval()
    assert loaded.doubt is not None
    same(loaded.doubt, state, rtol=0, atol=0)
    for one, other in zip(expected, loaded.doubts(VAL.tensors[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    trainer.test(model, loader(VAL), ckpt_path=str(path), verbose=False)
    assert model.doubt is not None
    same(model.doubt, state, rtol=0, atol=0)


def test_old_files_have_none_and_are_loaded_as_ever(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    old, new = make_model(), make_model()
    save_delta(old, tmp_path / "old.safetensors")
    fit(new, make_trainer(KeepStatistics()))
    assert load_delta(tmp_path / "old.safetensors", new).doubt is None
    with pytest.raises(ValueError, match="the model has no statistics of its training images, which the callback Keep"):
        new.doubts(VAL.tensors[0])


def test_a_checkpoint_after_the_fit_has_them(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    model = make_model()
    trainer = make_trainer(KeepStatistics())
    state = fit(model, trainer)
    path = tmp_path / "after.ckpt"
    trainer.save_checkpoint(path)
    for loaded in (load_model(path)[0], ImageClassifier.load_from_checkpoint(path)):
        assert loaded.doubt is not None
        same(loaded.doubt, state, rtol=0, atol=0)
    fresh = make_model()
    make_trainer().test(fresh, loader(VAL), ckpt_path=str(path), verbose=False)
    assert fresh.doubt is not None
    same(fresh.doubt, state, rtol=0, atol=0)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(fresh, loader(), loader(VAL), ckpt_path=str(path))  # trains on: what was kept is old
    assert fresh.doubt is None


def test_a_further_fit_forgets_and_takes_anew(make_trainer: TrainerFactory) -> None:
    model, keeps = make_model(), KeepStatistics()
    first = copy.deepcopy(fit(model, make_trainer(keeps)))
    make_trainer().fit(model, loader(), loader(VAL))
    assert model.doubt is None
    second = fit(model, make_trainer(keeps))
    assert not torch.equal(first.means, second.means)


@pytest.mark.parametrize("kind", quick_first(1, ["resumable", "checkpoint", "delta"]))
def test_a_fit_that_was_at_its_end_has_them_too(make_trainer: TrainerFactory, tmp_path: Path, kind: str) -> None:
    def callbacks() -> list[Any]:
        saving = {
            "resumable": lambda: ResumableRun(tmp_path),
            "checkpoint": lambda: ModelCheckpoint(tmp_path, filename="it"),
            "delta": lambda: BestEpoch(dirpath=tmp_path, filename="it", resumable=True),
        }
        return [KeepStatistics(), saving[kind]()]

    plain, again = make_model(), make_model()
    expected = fit(plain, make_trainer(*callbacks(), max_epochs=2, enable_checkpointing=True))
    options: dict[str, Any] = {} if kind == "resumable" else {"ckpt_path": str(tmp_path / "it.ckpt")}
    found = fit(again, make_trainer(*callbacks(), max_epochs=2, enable_checkpointing=True), **options)
    same(found, expected)


def test_random_numbers_and_weights_are_those_of_a_fit_without_it(make_trainer: TrainerFactory) -> None:
    states = []
    for callbacks in ([], [KeepStatistics(rank=3)]):
        model = make_model()
        torch.manual_seed(1)
        make_trainer(*callbacks).fit(model, loader(), loader(VAL))
        states.append((torch.get_rng_state(), model.head.weight))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize("precision", quick_first(1, ["bf16-true", "bf16-mixed", "64-true"]))
def test_any_precision(make_trainer: TrainerFactory, tmp_path: Path, precision: Any) -> None:
    model = make_model()
    state = fit(model, make_trainer(KeepStatistics(), precision=precision))
    assert state.means.dtype == torch.float32
    save_delta(model, tmp_path / "it.safetensors")
    loaded = load_delta(tmp_path / "it.safetensors", make_model())
    assert loaded.doubt is not None
    same(loaded.doubt, state, rtol=0, atol=0)
    assert loaded.eval().doubts(VAL.tensors[0]).unlike.isfinite().all()


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    torch.set_num_threads(1)
    found = {}
    for method in ("skip", "readout"):
        model = make_model(method)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        saving = DeltaCheckpoint(folder, filename=method)
        trainer = L.Trainer(
            max_epochs=1, strategy="ddp", devices=2, accelerator="cpu", callbacks=[KeepStatistics(), saving], **quiet
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = fit(model, trainer, loader(make_images(37), 4), make_images(31, seed=1))
        found[method] = {name: value.tolist() for name, value in state.state_dict().items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_same(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for method, kept in first.items():
        model = load_delta(tmp_path / f"{method}.safetensors", make_model(method))
        assert model.doubt is not None
        features, _ = seen(model, make_images(37))
        expected = class_statistics(features, make_images(37).tensors[1])
        assert kept["counts"] == expected.counts.tolist()
        torch.testing.assert_close(model.doubt.means, expected.means.float(), rtol=1e-3, atol=1e-3)
        assert kept["numbers"] == ([31, 31] if method == "skip" else [37, 37])


# --- what is refused, or left alone


def test_what_has_no_statistics_is_refused(make_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        KeepStatistics(0)
    with pytest.raises(ValueError, match="the loss takes several labels an image; leave it out"):
        fit(make_model(loss=PickAllLabelsLoss()), make_trainer(KeepStatistics()))
    with pytest.raises(ValueError, match="there are several KeepStatistics"):
        fit(make_model(), make_trainer(KeepStatistics(), KeepStatistics()))
    with pytest.raises(TypeError, match="KeepStatistics needs an ImageClassifier, got BoringModel"):
        make_trainer(KeepStatistics()).fit(BoringModel())


def test_one_image_a_class_has_none_and_says_so(make_trainer: TrainerFactory) -> None:
    model = make_model()
    with pytest.warns(UserWarning, match="KeepStatistics keeps no statistics: .*no class has more than one"):
        make_trainer(KeepStatistics()).fit(model, loader(make_images(4)), loader(VAL))
    assert model.doubt is None


def test_a_network_that_has_collapsed_has_none(make_trainer: TrainerFactory) -> None:
    model = make_model("probe")
    black = TensorDataset(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 4)
    with pytest.warns(UserWarning, match="KeepStatistics keeps no statistics: samples coincide"):
        make_trainer(KeepStatistics()).fit(model, loader(black), loader(VAL))
    assert model.doubt is None
