"""The recipe of FSDP: on the command line, and its very options on two CPU processes."""

import json
import os
import socket
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
import yaml
from lightning.fabric.strategies.fsdp import _move_torchmetrics_to_device
from lightning.pytorch.strategies import FSDPStrategy
from plain_module import make_samples
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import DeltaCheckpoint, ImageClassifier, LayerwiseNC1, TimmBackbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.cli import main
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.methods import SkipConnectionFinetuning

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class CPUStrategy(FSDPStrategy):
    """FSDP past the refusals of the CPU: Lightning's is of its own class alone, torch wants to be told the device."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        options = dict(self.kwargs)
        if options.pop("sync_module_states"):  # torch does so on accelerators only
            for value in model.state_dict().values():
                torch.distributed.broadcast(value, 0)
        where = {"sharding_strategy": self.sharding_strategy, "device_id": torch.device("cpu")}
        sharded = FullyShardedDataParallel(model, **where, **options)
        _move_torchmetrics_to_device(sharded, self.root_device)
        return sharded


def recipe_options() -> dict[str, Any]:
    strategy = yaml.safe_load(find_recipe("strategies/fsdp").read_text(encoding="utf-8"))["trainer"]["strategy"]
    return {**strategy["init_args"], **strategy["dict_kwargs"]}


def make_model() -> ImageClassifier:
    return ImageClassifier(TimmBackbone("test_resnet", None), 3, method=SkipConnectionFinetuning("layer2.0"))


def fit(strategy: Any, file: Path) -> int:
    """Fit, write a checkpoint, and return how many numbers of parameters this process holds in between."""
    L.seed_everything(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0, verbose=False)
    model = make_model()
    L.seed_everything(0, verbose=False)  # of the order of the images, which processes share
    trainer = L.Trainer(max_epochs=2, strategy=strategy, devices=2, accelerator="cpu", **QUIET)
    images, labels = make_samples(12).tensors
    trainer.fit(model, DataLoader(TensorDataset(images.sigmoid(), labels), batch_size=2))
    trainer.save_checkpoint(file)
    return sum(parameter.numel() for parameter in trainer.model.parameters())  # type: ignore[union-attr]


def run_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    whole = fit("ddp", Path(folder, "ddp.ckpt"))
    share = fit(CPUStrategy(process_group_backend="gloo", **recipe_options()), Path(folder, "fsdp.ckpt"))
    Path(folder, f"{rank}.json").write_text(json.dumps([whole, share]))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = tmp_path_factory.mktemp("fsdp")
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(target)), nprocs=2, start_method="forkserver"
    )
    return target


def weights(file: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


def test_fsdp_trains_what_ddp_trains(folder: Path) -> None:
    sharded, copied = weights(folder / "fsdp.ckpt"), weights(folder / "ddp.ckpt")
    assert sharded.keys() == copied.keys()
    L.seed_everything(0, verbose=False)
    for name, start in make_model().state_dict().items():
        way, apart = (copied[name] - start).float().norm(), (sharded[name] - copied[name]).float().norm()
        assert apart <= 0.02 * way, (name, way, apart)  # Adam makes much of what rounds differently


def test_frozen_parameters_keep_every_bit_under_fsdp(folder: Path) -> None:
    L.seed_everything(0, verbose=False)
    before, after = make_model(), weights(folder / "fsdp.ckpt")
    moved = {name for name, parameter in before.named_parameters() if not torch.equal(parameter, after[name])}
    assert moved == {name for name, parameter in before.named_parameters() if parameter.requires_grad}


def test_a_process_holds_a_share_of_the_parameters(folder: Path) -> None:
    (whole, first), (_, second) = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert max(first, second) < 0.6 * whole
    assert first + second >= whole


def test_a_checkpoint_of_fsdp_is_one_like_any_other(folder: Path) -> None:
    make_model().load_state_dict(weights(folder / "fsdp.ckpt"))


def test_the_recipe_is_read_and_reaches_the_check_of_the_accelerator(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--model.backbone", "test_resnet", "--model.weights", "null", "--model.method.init_args.key_layer"]
    words = ["digits/efficientnet_lite0_scl_ft", "strategies/fsdp", *tiny, "layer2.0", "--trainer.accelerator", "cpu"]
    assert main(["fit", *words]) == 2
    assert "`fsdp` requires a GPU accelerator" in capsys.readouterr().err


@pytest.mark.parametrize("callback", [LayerwiseNC1(), PrefixCache(), DeltaCheckpoint()])
def test_callbacks_that_need_the_whole_network_refuse_shares(callback: L.Callback) -> None:
    trainer: Any = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(ValueError, match=rf"{type(callback).__name__} needs the whole network in every process"):
        callback.setup(trainer, make_model(), "fit")
