"""The best epoch is what a fit leaves, in memory and in its file, whoever else writes weights."""

import json
import os
import socket
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
from conftest import quick_first, quick_where
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, load_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import AverageEpochs, BestEpoch, PrefixCache, ProbePath, ResumableRun, SolveHead
from nc_finetune.classifier._frozen import frozen_state
from nc_finetune.methods import (
    AdapterTuning,
    FullFinetuning,
    LayerFinetuning,
    LayerReadout,
    LinearProbe,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]
METHODS: dict[str, Callable[[], Any]] = {
    "linear_probe": LinearProbe,
    "layer_ft_bn": lambda: LayerFinetuning("layer2.0", batch_norm="train"),
    "scl_ft": lambda: SkipConnectionFinetuning("layer2.0"),
    "side_ft": lambda: SideFinetuning("layer2.0"),
    "lora": lambda: AdapterTuning(rank=2),
    "lp_ft": lambda: ProbeFirst(LayerFinetuning("layer2.0", batch_norm="train"), 1),
    "full_ft": FullFinetuning,
    "full_ft_bn": lambda: FullFinetuning(batch_norm="train"),
    "tuned_readout": lambda: LayerReadout("later_half", method=LayerFinetuning("layer2.0")),
    "readout": lambda: LayerReadout("later_half"),
}
AVERAGES: dict[str, Callable[[], Any]] = {
    "nobody": list,
    "epochs": lambda: [AverageEpochs()],
    "ema": lambda: [EMAWeightAveraging(decay=0.7)],
    "swa": lambda: [StochasticWeightAveraging(3e-3, swa_epoch_start=1)],
}


def make_model(method: str = "layer_ft_bn", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", None)
    return ImageClassifier(backbone, 3, method=METHODS[method](), **{"learning_rate": 1e-2, **options})


def loader(seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (9, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return DataLoader(TensorDataset(images, torch.arange(9) % 3), batch_size=4)


class Validated(L.Callback):
    """Notes the logits of one batch, and the loss, of each validation."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.losses: list[float] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and batch_idx == 0:
            self.logits.append(pl_module(batch[0]).clone())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.losses.append(float(trainer.callback_metrics["val/loss"]))


class CutOff(L.Callback):
    """Cuts a fit off at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise InterruptedError


def same(one: ImageClassifier, other: ImageClassifier) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def logits(model: ImageClassifier) -> Tensor:
    with torch.no_grad():
        return model.eval()(next(iter(loader(1)))[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "average"),
    quick_where(
        {
            ("layer_ft_bn", "nobody"),
            ("side_ft", "ema"),
            ("scl_ft", "epochs"),
            ("full_ft_bn", "swa"),
            ("lp_ft", "nobody"),
            ("readout", "ema"),
        }.__contains__,
        # Statistics that learn, which averages treat in ways of their own, beside each; the other methods beside two.
        [
            (method, average)
            for (number, method), (place, average) in product(enumerate(METHODS), enumerate(AVERAGES))
            if method in ("layer_ft_bn", "full_ft_bn", "lp_ft") or (number + place) % 2 == 0 or method == "readout"
        ],
    ),
)
def test_the_best_epoch_is_left(method: str, average: str, make_trainer: TrainerFactory, tmp_path: Path) -> None:
    """The best by the highest loss, which is an early epoch."""
    model = make_model(method)
    before = {name: value.clone() for name, value in frozen_state(model).items()}
    best, validated = BestEpoch("val/loss", "max", dirpath=tmp_path), Validated()
    trainer = make_trainer(best, *AVERAGES[average](), validated, max_epochs=4, enable_checkpointing=True)
    trainer.fit(model, loader(), loader(1))
    chosen = max(range(len(validated.losses)), key=validated.losses.__getitem__)
    assert best.best_epoch == chosen
    assert torch.equal(logits(model), validated.logits[chosen])
    after = frozen_state(model.train())  # modes tell which statistics learn
    assert all(torch.equal(after[name], before[name]) for name in before.keys() & after.keys())
    assert torch.equal(logits(load_delta(best.best_model_path, make_model(method))), validated.logits[chosen])
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "after.ckpt")
    assert torch.equal(logits(loaded), validated.logits[chosen])
    for options in ({}, {"ckpt_path": "best"}):
        for evaluate, name in ((trainer.validate, "val"), (trainer.test, "test")):
            (shown,) = evaluate(model, loader(1), verbose=False, **options)
            assert shown[f"{name}/loss"] == pytest.approx(validated.losses[chosen], rel=1e-6)


def test_early_stopping_leaves_the_best_epoch_and_the_file_alone_can_have_it(
    make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    for in_memory in (True, False):
        best, validated = BestEpoch("val/loss", "max", in_memory=in_memory, dirpath=tmp_path), Validated()
        stopping = EarlyStopping("val/loss", mode="max", patience=2)
        model = make_model()
        trainer = make_trainer(best, stopping, validated, max_epochs=9, enable_checkpointing=True)
        trainer.fit(model, loader(), loader(1))
        assert best.best_epoch is not None
        assert len(validated.losses) == best.best_epoch + 3 < 9
        assert torch.equal(logits(model), validated.logits[best.best_epoch if in_memory else -1])
        assert torch.equal(logits(load_delta(best.best_model_path, make_model())), validated.logits[best.best_epoch])


@pytest.mark.parametrize("average", quick_where("epochs".__eq__, AVERAGES))
@pytest.mark.filterwarnings("ignore")
def test_a_head_is_solved_on_the_best_epoch(average: str, make_trainer: TrainerFactory, tmp_path: Path) -> None:
    model, best = make_model("scl_ft"), BestEpoch("val/loss", "max", dirpath=tmp_path)
    solver = SolveHead(take="solved")
    options = {"max_epochs": 3, "enable_checkpointing": True}
    trainer = make_trainer(best, solver, PrefixCache(), *AVERAGES[average](), **options)
    trainer.fit(model, loader(), loader(1))
    alone = load_delta(best.best_model_path, make_model("scl_ft"))
    assert solver.taken == "solved"
    tuned = dict(alone.backbone.named_parameters())
    assert all(torch.equal(value, tuned[name]) for name, value in model.backbone.named_parameters())
    assert torch.equal(model.taken_head.trained.weight, alone.head.weight)
    trainer.save_checkpoint(tmp_path / "taken.ckpt")
    assert torch.equal(logits(ImageClassifier.load_from_checkpoint(tmp_path / "taken.ckpt")), logits(model))


def test_a_solved_probe_is_its_only_epoch(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    model, path = make_model("linear_probe"), ProbePath([1e-3, 1e-1])
    best = BestEpoch("val/accuracy", dirpath=tmp_path)
    make_trainer(path, best, EMAWeightAveraging(), max_epochs=3, enable_checkpointing=True).fit(
        model, loader(), loader(1)
    )
    assert best.best_epoch == 0
    assert model.head.weight.any()
    assert torch.equal(load_delta(best.best_model_path, make_model("linear_probe")).head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("method", "average"),
    quick_first(
        1,
        [("layer_ft_bn", "epochs"), ("side_ft", "ema"), ("lora", "swa"), ("side_ft", "nobody"), ("lora", "nobody")],
    ),
)
@pytest.mark.filterwarnings("ignore")
def test_a_fit_that_goes_on_ends_with_the_same_best_epoch(method: str, average: str, tmp_path: Path) -> None:
    """Each part of it logs into a folder of its own, as the command does, and files stand in any order."""

    def fit(folder: str, *callbacks: L.Callback, resume: bool = False) -> tuple[ImageClassifier, BestEpoch]:
        model, best, run = make_model(method), BestEpoch("val/loss", "max"), ResumableRun(tmp_path / folder)
        stopping = EarlyStopping("val/loss", mode="max", patience=2)
        trainer = L.Trainer(
            max_epochs=9,
            accelerator="cpu",
            callbacks=[*callbacks, run, best, *AVERAGES[average](), stopping],
            logger=CSVLogger(tmp_path / folder),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader(), loader(1), ckpt_path=tmp_path / folder / "last.ckpt" if resume else None)
        return model, best

    whole, best = fit("whole")
    with pytest.raises(InterruptedError):
        fit("parts", CutOff(1))
    resumed, again = fit("parts", resume=True)
    assert same(resumed, whole)
    assert (again.best_epoch, again.best_model_score) == (best.best_epoch, best.best_model_score)
    last = (tmp_path / "parts" / "last.ckpt").read_bytes()
    finished, again = fit("parts", resume=True)  # stopped early, and stays so
    assert same(finished, whole)
    assert again.best_epoch == best.best_epoch
    assert (tmp_path / "parts" / "last.ckpt").read_bytes() == last


def test_a_fit_at_its_end_puts_the_best_epoch_back(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    def fit(**options: Any) -> ImageClassifier:
        model, best = make_model(), BestEpoch("val/loss", "max", dirpath=tmp_path)
        trainer = make_trainer(best, ResumableRun(tmp_path), max_epochs=2, enable_checkpointing=True)
        trainer.fit(model, loader(), loader(1), **options)
        return model

    assert same(fit(ckpt_path=None), fit(ckpt_path=tmp_path / "last.ckpt"))


def test_a_file_that_is_gone_is_told(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    best = BestEpoch("val/loss", "max", dirpath=tmp_path / "deltas")
    trainer = make_trainer(best, ResumableRun(tmp_path), max_epochs=1, enable_checkpointing=True)
    trainer.fit(make_model(), loader(), loader(1))
    Path(best.best_model_path).unlink()
    trainer = make_trainer(best, ResumableRun(tmp_path), max_epochs=3, enable_checkpointing=True)
    model = make_model()
    with pytest.warns(UserWarning, match=r"epoch=0.*\.safetensors, of the best epoch before, is gone"):
        trainer.fit(model, loader(), loader(1), ckpt_path=tmp_path / "last.ckpt")
    assert best.best_epoch in (1, 2)
    assert torch.equal(logits(load_delta(best.best_model_path, make_model())), logits(model))


def test_another_fit_knows_nothing_of_the_one_before(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    best, validated = BestEpoch(dirpath=tmp_path), Validated()
    make_trainer(best, max_epochs=2, enable_checkpointing=True).fit(make_model(), loader(), loader(1))
    best.best_model_score = torch.tensor(-1.0)
    best.best_k_models = dict.fromkeys(best.best_k_models, torch.tensor(-1.0))
    model = make_model("side_ft")
    make_trainer(best, validated, max_epochs=2, enable_checkpointing=True).fit(model, loader(), loader(1))
    assert float(best.best_model_score) == pytest.approx(min(validated.losses))
    assert torch.equal(logits(model), validated.logits[validated.losses.index(min(validated.losses))])


@pytest.mark.parametrize("average", quick_where("ema".__eq__, AVERAGES))
@pytest.mark.filterwarnings("ignore")
def test_a_plain_checkpoint_of_the_best_epoch_is_what_was_validated(
    average: str, make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    validated, saving = Validated(), ModelCheckpoint(tmp_path, monitor="val/loss", mode="max")
    callbacks = (*AVERAGES[average](), validated, SolveHead(take="solved"), saving)
    trainer = make_trainer(*callbacks, max_epochs=3, enable_checkpointing=True)
    model = make_model("side_ft")
    trainer.fit(model, loader(), loader(1))
    (shown,) = trainer.test(model, loader(1), ckpt_path="best", verbose=False)
    assert shown["test/loss"] == pytest.approx(max(validated.losses), rel=1e-6)
    loaded = ImageClassifier.load_from_checkpoint(saving.best_model_path)
    (shown,) = trainer.validate(loaded, loader(1), verbose=False)  # once it put the average in place of any model
    assert shown["val/loss"] == pytest.approx(max(validated.losses), rel=1e-6)


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val/loss", "min"),
        ("nc1/penultimate", "min"),
        ("val/balanced_accuracy", "max"),
        ("val/average_precision", "max"),
    ],
)
def test_what_is_best_is_known(monitor: str, mode: str) -> None:
    assert BestEpoch(monitor).mode == mode


def test_what_cannot_be_is_refused(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whether 'score' is best at its minimum or maximum is not known; give mode"):
        BestEpoch("score")
    trainer = make_trainer(BestEpoch(dirpath=tmp_path), enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"chooses by 'val/loss', and there are no validation images; hold some out"):
        trainer.fit(make_model(), loader())


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    torch.set_num_threads(1)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    found = {}
    for average in ("nobody", "epochs"):
        for resume in (False, True):
            model, best = make_model("side_ft"), BestEpoch("val/loss", "max", dirpath=Path(folder, average))
            stopping = EarlyStopping("val/loss", mode="max", patience=2)
            callbacks = [ResumableRun(Path(folder, average)), best, stopping, *AVERAGES[average]()]
            trainer = L.Trainer(
                max_epochs=9, strategy="ddp", devices=2, accelerator="cpu", callbacks=callbacks, **quiet
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.fit(
                    model, loader(), loader(1), ckpt_path=Path(folder, average, "last.ckpt") if resume else None
                )
            left = logits(model).tolist()
            assert left == logits(load_delta(best.best_model_path, make_model("side_ft"))).tolist()
            found[f"{average} {resume}"] = [left, best.best_epoch, float(best.best_model_score)]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_left_with_the_same_epoch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for average in ("nobody", "epochs"):
        assert first[f"{average} True"] == first[f"{average} False"]
