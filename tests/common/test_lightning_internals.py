"""Private names of Lightning, on real objects of it: what fails here was renamed."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from nc_finetune import ImageClassifier
from nc_finetune._common import lightning_internals as internals
from nc_finetune.callbacks import DeltaCheckpoint


class Line(L.LightningModule):
    """Learns nothing of use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def on_before_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch + 10 * dataloader_idx

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().sum()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/size", float(len(batch)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Spy(L.Callback):
    """Asks everything in the middle of a fit."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:
            return
        loop = trainer.fit_loop
        self.found.update(
            loaders=internals.loaders_in_use(loop),
            waits=internals.accumulates(loop),
            attached=internals.is_attached(module),
            datamodule=internals.current_datamodule(trainer),
            shifted=internals.before_transfer(module, torch.zeros(1), 2),
        )
        loop.epoch_loop._restarting = True
        internals.forget_restart(loop.epoch_loop)
        self.found["restarting"] = loop.epoch_loop.restarting
        self.found["batch"] = loop._data_fetcher.fetched
        internals.fetch_anew(loop)
        self.found["batch again"] = loop._data_fetcher.fetched

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.found["logged"] = internals.logged_names(trainer.fit_loop.epoch_loop.val_loop)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return {**quiet, "accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 1, "num_sanity_val_steps": 0}


def loader() -> DataLoader[Any]:
    return DataLoader(torch.ones(4, 1), batch_size=1)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_fit_is_asked_in_its_middle(options: dict[str, Any]) -> None:
    spy, train = Spy(), loader()
    trainer = L.Trainer(**options, callbacks=[spy], accumulate_grad_batches=2)
    assert internals.current_datamodule(trainer) is None
    assert internals.loaders_in_use(trainer.fit_loop) is None
    trainer.fit(Line(), train, loader())
    assert spy.found.pop("loaders") == [train]
    assert spy.found.pop("batch again") < spy.found.pop("batch")
    assert spy.found == {
        "waits": True,
        "attached": True,
        "datamodule": None,
        "shifted": torch.full((1,), 20.0),
        "restarting": False,
        "logged": {"val/size"},
    }
    assert internals.loaders_to_come(trainer.fit_loop) is train
    assert not internals.is_attached(Line())


@pytest.mark.filterwarnings("ignore")
def test_a_datamodule_is_known_while_it_is_in_use(options: dict[str, Any]) -> None:
    data, spy = L.LightningDataModule.from_datasets(torch.ones(2, 1), batch_size=1), Spy()  # type: ignore[arg-type]
    trainer = L.Trainer(**options, callbacks=[spy])
    trainer.fit(Line(), datamodule=data)
    assert spy.found["datamodule"] is data
    assert internals.loaders_to_come(trainer.fit_loop) is None


def test_averages_and_what_is_pruned_are_found() -> None:
    averaging, pruning, line = StochasticWeightAveraging(0.1), ModelPruning("l1_unstructured"), Line()
    assert internals.averages([averaging, pruning]) == []
    assert not internals.pruned_parameters(pruning)
    assert hasattr(averaging, "_average_model")
    averaging._average_model = line
    assert internals.averages([averaging, pruning]) == [line]
    chosen = ModelPruning("l1_unstructured", parameters_to_prune=[(line.layer, "weight")])
    assert internals.pruned_parameters(chosen) == [(line.layer, "weight")]


def test_batch_norms_are_synchronised_by_another_plugin() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False)
    strategy, other = trainer.strategy, TorchSyncBatchNorm()
    assert isinstance(strategy, DDPStrategy)
    internals.replace_layer_sync(strategy, Line, other)
    assert strategy._layer_sync is not other
    internals.replace_layer_sync(strategy, TorchSyncBatchNorm, other)
    assert strategy._layer_sync is other
    internals.replace_layer_sync(SingleDeviceStrategy(), TorchSyncBatchNorm, other)


def test_the_sampler_in_a_wrapper_is_found() -> None:
    sampler = SequentialSampler(range(4))
    wrapper = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    assert internals.inner_sampler(wrapper.dataset) is sampler
    assert internals.inner_sampler(range(4)) is None


def test_what_is_compiled_is_known() -> None:
    plain, compiled = nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1))
    compiled[0].compile(backend="eager")
    around = nn.Sequential(torch.compile(nn.Linear(1, 1), backend="eager"))
    assert [internals.is_compiled(module) for module in (plain, compiled, around)] == [False, True, True]
    assert internals.is_compiled(torch.compile(Line(), backend="eager"))


def test_parts_of_a_loader_are_replaced_although_it_is_in_use() -> None:
    used = DataLoader(range(4), batch_size=2, num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
    assert not internals.has_workers(used)
    assert len(list(used)) == 2
    assert internals.has_workers(used)
    internals.replace_parts(used, dataset=range(4, 8), num_workers=0, persistent_workers=False)
    assert torch.cat(list(used)).tolist() == [4, 5, 6, 7]
    assert not internals.has_workers(used)
    with pytest.raises(ValueError, match="should not be set"):
        used.sampler = RandomSampler(range(4))  # what replace_parts is for


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (DeltaCheckpoint, ModelCheckpoint, internals.OF_MODEL_CHECKPOINT),
        (ImageClassifier, L.LightningModule, internals.OF_MODULE),
    ],
)
def test_all_that_is_overridden_is_on_the_list(ours: type, theirs: type, names: tuple[str, ...]) -> None:
    internals.require(theirs, *names)
    alike = {
        name for name in vars(ours) if name.startswith("_") and not name.startswith("__") and hasattr(theirs, name)
    }
    assert {name for name in alike if callable(getattr(theirs, name))} <= set(names)


def test_the_command_overrides_what_is_there() -> None:
    internals.require(LightningCLI, *internals.OF_CLI)


def test_a_name_that_is_gone_is_told_with_the_versions_that_were_tried() -> None:
    expected = (
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint has no _renamed, which nc_finetune needs; it was"
        f" tried with lightning {internals.TRIED}, and this is {importlib.metadata.version('lightning')}: install one"
    )
    for holder in (ModelCheckpoint, ModelCheckpoint()):
        with pytest.raises(RuntimeError, match=expected):
            internals.require(holder, "_save_checkpoint", "_renamed")


def test_the_versions_that_were_tried_are_those_that_may_be_installed() -> None:
    (needed,) = re.findall(r'"(lightning[>=].+?)"', (Path(__file__).parents[2] / "pyproject.toml").read_text())
    first, last = (Version(text) for text in internals.TRIED.split(" to "))
    assert first in (bounds := Requirement(needed).specifier)
    assert last in bounds
    assert Version(f"{first.major}.{first.minor}.{first.micro - 1}") not in bounds
    assert Version(f"{last.major}.{last.minor + 1}.0") not in bounds
