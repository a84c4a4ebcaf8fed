"""Whole runs of the methods that do not tune by blocks, and of those that go through phases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from crossed import crossed
from safely import SAFELY
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier
from nc_finetune.backbones import TimmBackbone
from nc_finetune.methods import (
    AdapterTuning,
    BiasTuning,
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    NormTuning,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
    SkipProbe,
)
from nc_finetune.methods.adapters import default_targets

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]
METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "skip probe": SkipProbe,
    "bias": BiasTuning,
    "norm": NormTuning,
    "lora": lambda: AdapterTuning(rank=2),
    "loha": lambda: AdapterTuning("loha", rank=2),
    "lokr": lambda: AdapterTuning("lokr", rank=2),
    "lp-ft": lambda: ProbeFirst(LayerFinetuning(), probe_epochs=1),
    "learned scale": lambda: SkipConnectionFinetuning(scale="learned"),
}
NETS = ("test_resnet", "test_vit", "test_efficientnet")
every_net = pytest.mark.parametrize("net", NETS)


def make_model(net: str, method: FinetuningMethod) -> ImageClassifier:
    torch.manual_seed(0)
    options = {"img_size": 32} if net == "test_vit" else {}
    return ImageClassifier(TimmBackbone(net, None, {"drop_path_rate": 0.3, **options}), 3, method=method)


def snapshot(model: ImageClassifier) -> dict[str, Tensor]:
    net = model.backbone.model
    return {name: value.detach().clone() for name, value in (*net.named_parameters(), *net.named_buffers())}


@pytest.mark.parametrize(("net", "method"), crossed(NETS, METHODS))
def test_what_is_not_tuned_stays_bit_identical_and_what_is_moves(
    net: str, method: str, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model = make_model(net, METHODS[method]())
    before = snapshot(model)
    make_trainer(max_epochs=2, val_check_interval=1).fit(model, make_loader(), make_loader(seed=1))
    after = snapshot(model)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    tuned = {name for name, value in model.backbone.model.named_parameters() if value.requires_grad}
    assert moved <= tuned
    assert bool(moved) == bool(tuned)


@every_net
def test_bias_tuning_trains_biases_alone(net: str) -> None:
    model = make_model(net, BiasTuning())
    tuned = {name for name, value in model.backbone.model.named_parameters() if value.requires_grad}
    assert tuned == {name for name, _ in model.backbone.model.named_parameters() if name.endswith("bias")}


@every_net
def test_norm_tuning_trains_normalisation_layers_alone(net: str) -> None:
    model = make_model(net, NormTuning())
    norms = [part for part in model.backbone.modules() if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm))]
    expected = {id(value) for norm in norms for value in norm.parameters()}
    assert {id(value) for value in model.backbone.parameters() if value.requires_grad} == expected


# --- adapters


@pytest.mark.parametrize(("net", "adapter"), crossed(NETS, ["lora", "loha", "lokr"]))
def test_adapters_start_as_the_pretrained_network(net: str, adapter: str) -> None:
    plain, adapted = make_model(net, LayerFinetuning()), make_model(net, AdapterTuning(adapter, rank=2))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(adapted.eval().backbone(images), plain.eval().backbone(images))
    assert 0 < adapted.tuned_parameters < plain.total_parameters / 4


def test_adapters_are_put_in_once() -> None:
    model = make_model("test_vit", AdapterTuning(rank=2))
    before = model.total_parameters
    model.method.freeze(model.backbone)
    assert model.total_parameters == before


def test_adapters_go_where_they_are_told() -> None:
    method = AdapterTuning(rank=2, target_modules=["blocks.1.mlp.fc1"], options={"lora_alpha": 4})
    model = make_model("test_vit", method)
    tuned = [name for name, value in model.backbone.model.named_parameters() if value.requires_grad]
    assert len(tuned) == 2
    assert all(name.startswith("blocks.1.mlp.fc1.lora_") for name in tuned)


@pytest.mark.parametrize("adapter", ["lora", "loha", "lokr"])
def test_every_kind_of_adapter_learns(adapter: str, make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model = make_model("test_vit", AdapterTuning(adapter, rank=2))
    assert [group["name"] for group in model._parameter_groups()] == ["head", "backbone"]
    before = {name: value.detach().clone() for name, value in model.backbone.model.named_parameters()}
    make_trainer(max_epochs=2).fit(model, make_loader())
    moved = {name for name, value in model.backbone.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert not any("base_layer" in name for name in moved)


@pytest.mark.parametrize(
    ("adapter", "options"),
    [("lora", {"lora_dropout": 0.9}), ("loha", {"rank_dropout": 0.9}), ("lokr", {"module_dropout": 0.5})],
)
def test_the_dropout_of_adapters_works_while_fitting_alone(adapter: str, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_vit", None, {"img_size": 32})  # no stochastic depth
    model = ImageClassifier(backbone, 3, method=AdapterTuning(adapter, rank=2, options=options))
    for value in model.method.tuned_parameters(backbone):
        torch.nn.init.normal_(value)
    images = torch.rand(2, 3, 32, 32)
    model.train()
    assert not torch.equal(model(images), model(images))
    layers = [part for part in backbone.modules() if hasattr(part, "base_layer")]
    assert layers
    assert not any(part.training for layer in layers for part in layer.base_layer.modules())
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (AdapterTuning(rank=8), "has LORA adapters of rank 2 in 12 layers already, with another r than asked for"),
        (AdapterTuning("loha", rank=2), "with another peft_type than asked for; build a new backbone"),
        (AdapterTuning(rank=2, options={"lora_alpha": 4}), "with another lora_alpha than"),
        (AdapterTuning(rank=2, target_modules=["qkv"]), "with another target_modules than"),
    ],
)
def test_other_adapters_on_an_adapted_backbone_are_refused(other: AdapterTuning, match: str) -> None:
    first = make_model("test_vit", AdapterTuning(rank=2))
    with pytest.raises(ValueError, match=match):
        ImageClassifier(first.backbone, 3, method=other)
    assert ImageClassifier(first.backbone, 3, method=AdapterTuning(rank=2)).tuned_parameters == first.tuned_parameters


def tiny_beit() -> TimmBackbone:
    """Its attention reads the weights of ``qkv`` and never calls it."""
    options = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return TimmBackbone("beit_base_patch16_224", None, options)


def test_layers_that_are_never_called_get_no_adapter(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match=r"does not call blocks.0.attn.qkv, blocks.1.attn.qkv: it reads their weights"):
        ImageClassifier(tiny_beit(), 3, method=AdapterTuning(rank=2, target_modules=["qkv", "proj"]))
    model = ImageClassifier(tiny_beit(), 3, method=AdapterTuning(rank=2))
    make_trainer(max_epochs=1).fit(model, make_loader())
    tuned = [value for value in model.backbone.parameters() if value.requires_grad]
    assert tuned
    assert all(value.grad is not None for value in tuned)


def test_where_an_attention_cannot_be_reached_all_of_a_block_gets_adapters_but_what_images_do_not_pass() -> None:
    small = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
    backbone = TimmBackbone("swinv2_tiny_window8_256", None, small)
    linear = ("attn.proj", "mlp.fc1", "mlp.fc2")  # neither attn.qkv nor attn.cpb_mlp, which makes position biases
    assert default_targets(backbone) == [f"{block}.{name}" for block in backbone.block_names for name in linear]
    assert default_targets(tiny_beit()) == [f"blocks.{number}.{name}" for number in (0, 1) for name in linear]


def test_targets_that_are_not_there_are_an_error() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        make_model("test_vit", AdapterTuning(rank=2, target_modules=["nowhere"]))


def test_unknown_adapter_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="unknown adapter 'lorra'; did you mean 'lora'"):
        AdapterTuning("lorra")


def test_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        AdapterTuning(rank=0)


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"nc-finetune\[peft\]"):
        make_model("test_vit", AdapterTuning())


# --- LP-FT


class Watcher(L.Callback):
    """Notes after each epoch whether the network has moved."""

    def __init__(self) -> None:
        self.epochs: list[bool] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.before = snapshot(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        after = snapshot(pl_module)
        moved = any(not torch.equal(value, after[name]) for name, value in self.before.items())
        self.epochs.append(moved)


def test_the_probe_comes_first(make_loader: LoaderFactory, make_trainer: TrainerFactory) -> None:
    model, watcher = make_model("test_resnet", ProbeFirst(FullFinetuning(), probe_epochs=2)), Watcher()
    make_trainer(watcher, max_epochs=3).fit(model, make_loader())
    assert watcher.epochs == [False, False, True]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_resumes_in_either_phase_bit_for_bit(
    epoch: int, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == epoch

    def model() -> ImageClassifier:
        torch.manual_seed(0)
        backbone = TimmBackbone("test_vit", None, {"img_size": 32})
        return ImageClassifier(backbone, 3, method=ProbeFirst(LayerFinetuning(), probe_epochs=1))

    whole, first, second = model(), model(), model()
    make_trainer(max_epochs=3).fit(whole, make_loader())
    halted = make_trainer(Stop(), max_epochs=3)
    halted.fit(first, make_loader())
    halted.save_checkpoint(tmp_path / "half.ckpt")
    make_trainer(max_epochs=3).fit(second, make_loader(), ckpt_path=tmp_path / "half.ckpt", **SAFELY)
    assert halted.current_epoch == epoch + 1
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not all(torch.equal(value, first.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("step", "after"),
    # Of three steps an epoch: in the probe, and twice behind it.
    crossed([2, 4, 5], [LayerFinetuning, lambda: AdapterTuning(rank=2), BiasTuning]),
)
def test_a_run_resumes_in_the_midst_of_an_epoch_in_the_phase_that_it_was_in(
    step: int,
    after: Callable[[], FinetuningMethod],
    tmp_path: Path,
    make_loader: LoaderFactory,
    make_trainer: TrainerFactory,
) -> None:
    class Phases(L.Callback):
        def __init__(self) -> None:
            self.seen: dict[int, bool] = {}

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            self.seen[trainer.global_step] = pl_module.method.probing
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "midst.ckpt")

    def model() -> ImageClassifier:
        torch.manual_seed(0)
        backbone = TimmBackbone("test_vit", None, {"img_size": 32})
        return ImageClassifier(backbone, 3, method=ProbeFirst(after(), probe_epochs=1))

    whole, resumed, phases, again = model(), model(), Phases(), Phases()
    make_trainer(phases, max_epochs=3).fit(whole, make_loader())
    make_trainer(again, max_epochs=3).fit(resumed, make_loader(), ckpt_path=tmp_path / "midst.ckpt", **SAFELY)
    assert [phases.seen[number] for number in range(1, 10)] == [True] * 3 + [False] * 6
    assert again.seen == {number: probing for number, probing in phases.seen.items() if number > step}


def test_a_probe_of_no_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="probe_epochs must be at least 1, got 0; use full_ft itself"):
        ProbeFirst(FullFinetuning(), 0)


# --- a batch of one image


class Statistics(L.Callback):
    """Notes how often BatchNorm layers have counted a batch, step by step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        norms = [part for part in pl_module.modules() if isinstance(part, nn.BatchNorm2d)]
        self.counts.append(max(int(norm.num_batches_tracked) for norm in norms))


@pytest.mark.parametrize(
    ("method", "net"),
    crossed(
        [LayerFinetuning, FullFinetuning, SkipConnectionFinetuning, SideFinetuning],
        ["test_resnet", "test_efficientnet"],
    ),
)
def test_a_last_batch_of_one_image_leaves_the_statistics_alone(
    net: str, method: Any, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    model, watcher = make_model(net, method(batch_norm="train")), Statistics()
    with pytest.warns(UserWarning, match=r"a batch of one image has no statistics: .* drop_last=True") as said:
        make_trainer(watcher, max_epochs=2).fit(model, make_loader(num_samples=9))  # 4, 4 and 1
    assert watcher.counts == [1, 2, 2, 3, 4, 4]
    assert sum("batch of one image" in str(one.message) for one in said) == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_head_with_batch_norm_takes_a_last_batch_of_one_image(
    make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    def head(width: int, classes: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))

    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, head=head)
    with pytest.warns(UserWarning, match="1 BatchNorm layers that train"):
        make_trainer().fit(model, make_loader(num_samples=5))
    assert int(model.head[0].num_batches_tracked) == 1  # type: ignore[index, union-attr, arg-type]
