"""Frozen weights and buffers, bit for bit, through fits in which something else writes."""

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_where
from crossed import crossed
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import BitsandbytesPrecision, TransformerEnginePrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import ImageClassifier, TimmBackbone
from nc_finetune.backbones import FrozenPrefix, batch_norms, restore_classes, synchronize
from nc_finetune.classifier._frozen import frozen_state
from nc_finetune.classifier._weight_writers import TunedSyncBatchNorm
from nc_finetune.heads import SimplexETFHead
from nc_finetune.methods import (
    AdapterTuning,
    BiasTuning,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]

BLOCKS = {"test_resnet": "layer2.0", "test_vit": "blocks.3", "test_efficientnet": "blocks.2.0"}
METHODS: dict[str, Callable[[str], Any]] = {
    "linear_probe": lambda block: LinearProbe(),
    "layer_ft": LayerFinetuning,
    "layer_ft_bn": lambda block: LayerFinetuning(block, batch_norm="train"),
    "scl_ft_learned": lambda block: SkipConnectionFinetuning(block, "learned"),
    "side_ft": SideFinetuning,
    "bias": lambda block: BiasTuning(),
    "lora": lambda block: AdapterTuning(rank=2),
    "lp_ft": lambda block: ProbeFirst(LayerFinetuning(block, batch_norm="train"), probe_epochs=1),
    "full_ft": lambda block: FullFinetuning(),
}


class EveryEpoch(WeightAveraging):
    """An equal average over epochs, as SWA is used most."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


class Thaw(L.Callback):
    """What users do: thaw all, and train it, in the middle of a fit."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.unfreeze()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.train()


class ResetNorms(L.Callback):
    """Forgets the statistics of every BatchNorm before each epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for norm in batch_norms(pl_module):
            norm.reset_running_stats()


WRITERS: dict[str, Callable[[], Any]] = {
    "nobody": list,
    "swa": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1)],
    "swa_ema": lambda: [
        StochasticWeightAveraging(1e-3, swa_epoch_start=1, avg_fn=lambda old, new, n: 0.9 * old + 0.1 * new)
    ],
    "average": lambda: [WeightAveraging()],
    "average_of_epochs": lambda: [EveryEpoch()],
    "ema": lambda: [EMAWeightAveraging(decay=0.9)],
    "ema_of_weights_alone": lambda: [EMAWeightAveraging(decay=0.9, use_buffers=False)],
    "ema_from_epoch_1": lambda: [EMAWeightAveraging(decay=0.99, update_starting_at_epoch=1)],
    "learning_rate_finder": lambda: [LearningRateFinder(num_training_steps=12)],
    "thaw": lambda: [Thaw()],
    "reset_norms": lambda: [ResetNorms()],
}


def make_model(net: str = "test_efficientnet", method: str = "layer_ft", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    options = {"learning_rate": 1e-3, **options}
    backbone = TimmBackbone(net, None, {"img_size": 32} if net == "test_vit" else None)
    for norm in batch_norms(backbone):  # pre-trained statistics, which 0 and 1 are not
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.num_batches_tracked.fill_(1000)
    return ImageClassifier(backbone, 3, method=METHODS[method](BLOCKS[net]), **options)


def frozen_bits(model: ImageClassifier) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in frozen_state(model).items()}


def assert_kept(model: ImageClassifier, before: dict[str, Tensor]) -> None:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    changed = [name for name, value in before.items() if not torch.equal(state[name], value)]
    assert not changed, f"{len(changed)} frozen tensors changed: {changed[:3]}"


def runs_always(case: tuple[str, str, str]) -> bool:
    """Choose each kind of writer for a block, one of them for methods of each kind, and one transformer."""
    net, method, writer = case
    if net != "test_efficientnet":
        return net == "test_vit" and writer == "swa_ema"
    if method == "layer_ft":
        return writer in ("swa", "average", "ema_from_epoch_1", "learning_rate_finder", "thaw", "reset_norms")
    return (method, writer) == ("layer_ft_bn", "average") or method in ("side_ft", "lora", "lp_ft", "full_ft")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("net", "method", "writer"),
    quick_where(
        runs_always,
        [
            *(("test_efficientnet", method, writer) for method in ("layer_ft", "layer_ft_bn") for writer in WRITERS),
            *(("test_efficientnet", method, "ema") for method in METHODS if not method.startswith("layer_ft")),
            *((net, "layer_ft", writer) for net in ("test_vit", "test_resnet") for writer in ("swa_ema", "average")),
        ],
    ),
)
def test_frozen_is_bit_identical_whoever_writes(
    net: str, method: str, writer: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model(net, method)
    model.train()
    before = frozen_bits(model)
    statistics = {name for name in before if "running" in name}
    if method in ("layer_ft_bn", "lp_ft"):  # in train mode in the end
        before = {name: value for name, value in before.items() if "blocks.2.0." not in name}
    head = model.head.weight.detach().clone()
    trainer = make_trainer(*WRITERS[writer](), max_epochs=3, logger=False)
    trainer.fit(model, make_loader(), make_loader(seed=1))
    assert_kept(model, before)
    assert not torch.equal(model.head.weight, head)
    assert statistics or net == "test_vit"


@pytest.mark.parametrize("head", ["align", "given"])
def test_fixed_head_is_not_rounded_by_an_average(
    head: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    def build(width: int, classes: int) -> nn.Module:
        return SimplexETFHead(width, classes, orientation="class_means" if head == "align" else "random")

    kept = []

    class Note(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            kept.append(pl_module.head.weight.clone())

    model = make_model(head=build)
    make_trainer(EMAWeightAveraging(decay=0.9), Note(), max_epochs=3).fit(model, make_loader(), make_loader(seed=1))
    assert torch.equal(model.head.weight, kept[0])


@pytest.mark.parametrize("writer", ["average", "average_of_epochs", "ema"])
def test_tuned_part_gets_the_average_that_the_callback_promises(
    writer: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    weights: list[Tensor] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if writer != "average_of_epochs" or trainer.is_last_batch:
                weights.append(pl_module.head.weight.detach().double().clone())

    model = make_model()
    make_trainer(Note(), *WRITERS[writer](), max_epochs=3).fit(model, make_loader(), make_loader(seed=1))
    expected = weights[0]
    for number, weight in enumerate(weights[1:], start=1):
        share = 0.1 if writer == "ema" else 1 / (number + 1)
        expected = (1 - share) * expected + share * weight
    torch.testing.assert_close(model.head.weight.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("writer", "precision"), crossed(["nobody", "average", "ema"], ["bf16-true", "64-true", "bf16-mixed"])
)
def test_frozen_stays_in_any_precision(
    precision: Any, writer: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model()
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    before = frozen_bits(copy.deepcopy(model).to(dtype))
    make_trainer(*WRITERS[writer](), precision=precision, max_epochs=2).fit(model, make_loader(), make_loader(seed=1))
    assert_kept(model, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": lambda: BackboneFinetuning()}, r"BackboneFinetuning freezes and thaws.*ProbeFirst"),
        ({"callbacks": lambda: type("Mine", (BaseFinetuning,), {})()}, "Mine freezes and thaws"),
        ({"callbacks": lambda: ModelPruning("l1_unstructured", amount=0.5)}, "would prune all layers"),
    ],
)
def test_what_contradicts_the_method_is_refused_before_it_has_run(
    options: Any, message: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        make_trainer(options["callbacks"]()).fit(model, make_loader())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == grads


def test_frozen_layers_cannot_be_pruned_and_tuned_ones_can(
    make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model("test_vit")
    stem = (model.backbone.model.patch_embed.proj, "weight")
    with pytest.raises(
        ValueError, match=r"prune backbone\.model\.patch_embed\.proj\.weight, which layer FT leaves frozen"
    ):
        make_trainer(ModelPruning("l1_unstructured", [stem], amount=0.5)).fit(model, make_loader())
    before = frozen_bits(model)
    tuned = (model.backbone.get_layer("blocks.3").mlp.fc1, "weight")
    for _ in range(2):  # the second fit finds a model that was pruned
        pruning = ModelPruning("l1_unstructured", [tuned, (model.head, "weight")], amount=0.5)
        make_trainer(pruning, max_epochs=2).fit(model, make_loader())
        assert_kept(model, before)
    assert (model.head.weight == 0).any()


@pytest.mark.parametrize("plugin", [BitsandbytesPrecision, TransformerEnginePrecision])
def test_precision_that_replaces_layers_is_refused(
    plugin: type[Any], make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    trainer = make_trainer()
    trainer.strategy._precision_plugin = object.__new__(plugin)  # the packages are not needed to refuse
    with pytest.raises(ValueError, match=f"{plugin.__name__} puts other layers"):
        trainer.fit(make_model(), make_loader())


@pytest.mark.parametrize("method", ["linear_probe", "layer_ft"])
def test_synchronised_norms_leave_frozen_ones_and_their_activations(
    method: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model(method=method)
    kinds = [type(part) for part in model.modules()]
    images = next(iter(make_loader()))[0]

    class Note(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert [type(part) for part in pl_module.modules()] == kinds
            pl_module.eval()
            with torch.no_grad():
                assert torch.equal(pl_module(images), logits)

    model.eval()
    with torch.no_grad():
        logits = model(images)
    before = frozen_bits(model)
    make_trainer(Note(), strategy="ddp", devices=1, sync_batchnorm=True).fit(model, make_loader())
    assert_kept(model, before)
    assert [type(part) for part in model.modules()] == kinds


@pytest.mark.parametrize("method", ["layer_ft_bn", "lp_ft"])
def test_tuned_norms_are_synchronised_and_come_back(method: str, make_loader: LoaderFactory) -> None:
    """Torch does so on a GPU alone; logits in eval mode show that weights, statistics and activations are there."""
    model = make_model(
        method=method, head=lambda width, classes: nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))
    )
    kinds = {name: type(part) for name, part in model.named_modules()}
    images = next(iter(make_loader()))[0]
    model.eval()
    sync = TunedSyncBatchNorm(model)
    with torch.no_grad():
        logits = model(images)
        assert sync.apply(model) is model
        assert torch.equal(model(images), logits)
    changed = [name for name, part in model.named_modules() if type(part) is not kinds[name]]
    assert len(changed) == 1 + len(batch_norms(model.backbone.get_layer("blocks.2.0")))
    assert all(name.startswith(("backbone.model.blocks.2.0.", "head.0")) for name in changed)
    model.train()
    assert all(model.get_submodule(name).training for name in changed) == (method == "layer_ft_bn")
    sync.revert(model)
    assert {name: type(part) for name, part in model.named_modules()} == kinds


def test_synchronising_keeps_objects_and_says_what_it_does_not_know() -> None:
    class Mine(nn.BatchNorm2d):
        pass

    norms = [nn.BatchNorm1d(2), nn.BatchNorm3d(2), *batch_norms(make_model().backbone)[:1]]
    with pytest.warns(UserWarning, match="no synchronised form of Mine"):
        before = synchronize([*norms, mine := Mine(2)])
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert type(mine) is Mine
    restore_classes(before)
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


class Rewrite(L.Callback):
    """Somebody else's average of the weights: rounds what is frozen."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.copy_(0.999 * parameter + 0.001 * parameter)


class AddGroup(L.Callback):
    """Trains more than the method says."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.optimizers[0].add_param_group({"params": list(pl_module.backbone.model.conv_stem.parameters())})


def test_what_an_unknown_callback_writes_is_told(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    with pytest.warns(UserWarning, match=r"\d+ tensors that layer FT leaves frozen were written.*conv_stem"):
        make_trainer(Rewrite()).fit(make_model(), make_loader())


def test_frozen_parameters_in_the_optimizer_are_refused(
    make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    with pytest.raises(ValueError, match=r"holds 1 parameters that layer FT leaves frozen.*conv_stem"):
        make_trainer(AddGroup()).fit(make_model(), make_loader())


def tuned_blocks(model: ImageClassifier, before: dict[str, Tensor]) -> set[str]:
    """Return the blocks of the backbone that have changed."""
    state = model.backbone.model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(state[name], value)]
    return {block for block in model.backbone.block_names for name in changed if name.startswith(f"{block}.")}


def snapshot(model: ImageClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.backbone.model.state_dict().items()}


OTHERS: dict[str, Callable[[], Any]] = {
    "layer_ft": lambda: LayerFinetuning("blocks.0.0"),
    "linear_probe": LinearProbe,
    "side_ft": lambda: SideFinetuning("blocks.1.0"),
    "full_ft": FullFinetuning,
    "bias": BiasTuning,
}


@pytest.mark.parametrize("other", quick_where({"layer_ft", "full_ft"}.__contains__, OTHERS))
def test_models_on_one_backbone_train_their_own(
    other: str, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    first = make_model()
    prefix = FrozenPrefix(first, torch.rand(2, 3, 32, 32))
    numbers = first.tuned_parameters, prefix.key()
    ImageClassifier(first.backbone, 3, method=OTHERS[other]())  # freezes and thaws the same backbone
    assert (first.tuned_parameters, prefix.key()) == numbers
    before = snapshot(first)
    make_trainer().fit(first, make_loader())
    assert tuned_blocks(first, before) == {"blocks.2.0"}
    second = ImageClassifier(first.backbone, 3, method=OTHERS[other]())
    before = snapshot(first)
    make_trainer().fit(first, make_loader())  # a second fit, after another model has had its turn
    assert tuned_blocks(first, before) == {"blocks.2.0"}
    before = snapshot(first)
    make_trainer().fit(second, make_loader())
    expected = {"layer_ft": {"blocks.0.0"}, "linear_probe": set(), "side_ft": set()}
    assert tuned_blocks(first, before) == expected.get(other, set(first.backbone.block_names))


DISTURB: dict[str, Callable[[ImageClassifier], ImageClassifier]] = {
    "unfreeze": lambda model: model.unfreeze() or model,
    "freeze": lambda model: model.freeze() or model,
    "train": lambda model: model.backbone.train() and model,
    "deepcopy": copy.deepcopy,
    "load": lambda model: model.load_state_dict(model.state_dict()) and model,
    "load_assigned": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True) and model,
    "half_and_back": lambda model: model.to(torch.float64).to(torch.float32),
}


@pytest.mark.parametrize(("method", "what"), crossed(["layer_ft", "lp_ft", "side_ft", "lora"], DISTURB))
def test_a_fit_freezes_anew(method: str, what: str, make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    model = make_model(method=method)
    model = DISTURB[what](model)
    before = frozen_bits(model)
    if method == "lp_ft":
        before = {name: value for name, value in before.items() if "blocks.2.0." not in name}
    tuned = list(model.method.tuned_parameters(model.backbone))
    kept = [parameter.detach().clone() for parameter in tuned]
    make_trainer(max_epochs=2).fit(model, make_loader())
    assert_kept(model, before)
    assert any(not torch.equal(one, other) for one, other in zip(tuned, kept, strict=True))


def test_batch_size_finder_leaves_frozen_alone(make_trainer: TrainerFactory) -> None:
    class Data(L.LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> DataLoader[Any]:
            images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            return DataLoader(TensorDataset(images, torch.arange(16) % 3), batch_size=self.batch_size)

        val_dataloader = train_dataloader

    model = make_model()
    before = frozen_bits(model)
    make_trainer(BatchSizeFinder(max_trials=2, steps_per_trial=1), max_epochs=2).fit(model, Data())
    assert_kept(model, before)
