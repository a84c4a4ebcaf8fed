"""Side fine-tuning: a copy of one block beside a frozen network."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import quick_where
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData
from nc_finetune.backbones import Backbone, FrozenPrefix, TimmBackbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.deployment.export import export_program, export_state_dict
from nc_finetune.methods import (
    LinearProbe,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
    SkipProbe,
    parameter_groups,
)
from nc_finetune.selection import choose_key_layer

IMAGES = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def make_net(name: str = "test_resnet") -> Backbone:
    torch.manual_seed(0)
    return TimmBackbone(name, None, {"img_size": 32} if "vit" in name else {}).eval()


def make_model(layer: str | None = "layer2.0", **options: Any) -> ImageClassifier:
    return ImageClassifier(make_net(), 3, method=SideFinetuning(layer, **options))


def change(method: SideFinetuning) -> None:
    assert method.block is not None
    with torch.no_grad():
        for parameter in method.block.parameters():
            parameter.mul_(1.5)


def test_it_begins_as_a_probe_with_a_frozen_skip() -> None:
    net = make_net()
    found = SideFinetuning("layer2.0").features(net, IMAGES)
    assert torch.equal(found, SkipProbe(["layer2.0"]).features(net, IMAGES))


@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer2.0"), ("test_vit", "blocks.2")])
def test_the_copy_sees_what_the_block_sees_and_goes_to_the_classifier_alone(name: str, layer: str) -> None:
    net, method = make_net(name), SideFinetuning(layer, scale=0.5)
    method.freeze(net)
    change(method)
    plain, seen = net(IMAGES), []
    handle = net.get_layer(layer).register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    found = method.features(net, IMAGES)
    handle.remove()
    skip = net.pool(method.block(seen[0]))
    assert torch.equal(found, plain + 0.5 * F.pad(skip, (0, net.num_features - skip.shape[1])))
    assert not net.get_layer(layer)._forward_pre_hooks


def test_as_many_parameters_are_trained_as_with_a_skip_and_none_of_the_network() -> None:
    model, skip = make_model(), ImageClassifier(make_net(), 3, method=SkipConnectionFinetuning("layer2.0"))
    assert model.tuned_parameters == skip.tuned_parameters
    assert model.total_parameters == skip.total_parameters
    model.train()
    model(IMAGES).sum().backward()
    assert all(value.grad is None for value in model.backbone.parameters())
    assert all(value.grad is not None for value in model.method.parameters())


def test_the_copy_is_trained_at_the_rate_of_a_key_layer() -> None:
    model = make_model(scale="learned")
    rates = {"learning_rate": 0.5, "head_learning_rate": 0.1, "rest_learning_rate": None}
    head, block = parameter_groups(model.backbone, model.method, [model.head], **rates)
    assert (head["name"], head["lr"], len(head["params"])) == ("head", 0.1, 3)  # weight, bias and scale
    assert (block["name"], block["lr"]) == ("block", 0.5)
    assert {id(value) for value in block["params"]} == {id(value) for value in model.method.block.parameters()}


def test_a_fit_leaves_the_network_as_it_was(make_trainer: Any, make_loader: Callable[..., DataLoader[Any]]) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    block = [value.clone() for value in model.method.parameters()]
    make_trainer().fit(model, make_loader())
    after = model.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(map(torch.equal, block, model.method.parameters()))


def test_models_of_two_tasks_share_one_backbone(make_trainer: Any, make_loader: Any) -> None:
    net = make_net()
    first, second = (ImageClassifier(net, 3, method=SideFinetuning(layer)) for layer in ("layer2.0", "layer1.0"))
    make_trainer().fit(first, make_loader())
    with torch.no_grad():
        before = first.eval()(IMAGES)
        make_trainer().fit(second, make_loader(seed=1))
        assert torch.equal(first.eval()(IMAGES), before)


def test_the_copy_is_in_train_mode_but_its_batchnorm() -> None:
    model = make_model()
    model.eval()
    assert not any(part.training for part in model.method.modules())
    model.train()
    assert model.method.block.training
    assert not model.method.block.bn1.training
    assert not model.backbone.training
    assert make_model(batch_norm="train").method.block.bn1.training


def test_a_callback_that_wakes_the_copy_up_is_put_right(make_trainer: Any, make_loader: Any) -> None:
    class Eval(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            pl_module.eval()

    seen: list[bool] = []
    model = make_model()
    model.method.block.register_forward_hook(lambda module, *_: seen.append(module.training))
    make_trainer(Eval(), limit_val_batches=0).fit(model, make_loader())
    assert seen == [True] * 3


def test_a_copy_belongs_to_one_network() -> None:
    method = SideFinetuning("layer2.0")
    ImageClassifier(make_net(), 3, method=method)
    with pytest.raises(ValueError, match="a copy of another network's block; make a new one for each model"):
        ImageClassifier(make_net(), 3, method=method)


def test_another_key_layer_is_another_copy() -> None:
    model = make_model()
    model.method.set_key_layer("layer3.0")
    model.method.freeze(model.backbone)
    ours, theirs = model.method.block.state_dict(), model.backbone.get_layer("layer3.0").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(value.requires_grad for value in model.method.block.parameters())


def test_several_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="copies one block, got key_layer="):
        SideFinetuning(["layer2.0", "layer3.0"])  # type: ignore[arg-type]


def test_a_block_that_the_network_does_not_call_is_an_error() -> None:
    net = make_net()
    net.model.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not call 'spare' itself"):
        SideFinetuning("spare").features(net, IMAGES)


def test_a_copy_that_writes_into_its_input_leaves_the_network_alone() -> None:
    net, method = make_net(), SideFinetuning("layer2.0")
    method.freeze(net)

    def clear(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].zero_()

    method.block.register_forward_pre_hook(clear)
    skip = net.pool(net.get_layer("layer2.0")(torch.zeros(4, 32, 8, 8)))
    assert torch.allclose(method.features(net, IMAGES), net(IMAGES) + F.pad(skip, (0, 48)), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    quick_where(
        lambda options: not options or options.get("join") == "before_norm",
        [{}, {"scale": "matched"}, {"join": "before_norm"}, {"join": "normed_feature"}],
    ),
)
def test_losses_with_a_cache_are_those_without(options: dict[str, Any], make_trainer: Any, make_loader: Any) -> None:
    name, layer = ("test_vit", "blocks.2") if "join" in options else ("test_resnet", "layer2.0")

    def fit(*callbacks: L.Callback, epochs: int = 2) -> list[Tensor]:
        model = ImageClassifier(make_net(name), 3, method=SideFinetuning(layer, **options))
        model.backbone.model.get_submodule(layer).register_forward_hook(lambda *_: calls.append(1))
        L.seed_everything(0, verbose=False)
        trainer = make_trainer(*callbacks, max_epochs=epochs, num_sanity_val_steps=0)
        trainer.fit(model, make_loader(8), make_loader(8, seed=1))
        return [*model.state_dict().values()]

    calls: list[int] = []
    cache = PrefixCache()
    assert all(map(torch.equal, fit(cache), fit()))
    assert cache.stored_bytes.keys() == {"train", "val"}
    calls.clear()
    fit(PrefixCache(), epochs=1)
    once = len(calls)
    calls.clear()
    fit(PrefixCache(), epochs=2)
    assert len(calls) - once == 4  # the stand-in is called once a batch, for what it sees, and runs nothing


def test_blocks_that_are_called_with_more_than_their_input_are_cached_too() -> None:
    # Rotary positions come as a second input, the same for all images.
    torch.manual_seed(0)
    net = TimmBackbone("eva02_tiny_patch14_224", None, {"img_size": 28})
    model = ImageClassifier(net, 3, method=SideFinetuning("blocks.3")).eval()
    images = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        whole = model(images)
        split = FrozenPrefix(model, images)
        with split.resume(split.prefix(images)) as blanks:
            assert torch.equal(model(blanks), whole)


def test_a_probe_may_come_first(make_trainer: Any, make_loader: Any) -> None:
    method = ProbeFirst(SideFinetuning("layer2.0"), probe_epochs=1)
    model = ImageClassifier(make_net(), 3, method=method)
    before = [value.clone() for value in method.parameters()]
    make_trainer(PrefixCache(), max_epochs=1).fit(model, make_loader())
    assert all(map(torch.equal, before, method.parameters()))
    make_trainer(PrefixCache(), max_epochs=2).fit(model, make_loader())
    assert not any(map(torch.equal, before, method.parameters()))


def test_nothing_is_in_train_mode_while_a_probe_comes_first() -> None:
    for inner in (SideFinetuning("layer2.0"), SkipConnectionFinetuning("layer2.0")):
        model = ImageClassifier(make_net(), 3, method=ProbeFirst(inner, probe_epochs=1))
        (block,) = inner.tuned_modules(model.backbone)
        assert not any(part.training for part in block.modules())
        model.method.start_epoch(1)
        model.train()
        assert block.training


def test_a_probe_in_the_same_folder_keeps_its_own(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="PrefixCache")  # nothing is taken for stale
        for method in (LinearProbe(), SideFinetuning("layer2.0"), SideFinetuning("layer1.0"), LinearProbe()):
            model = ImageClassifier(make_net(), 3, method=method)
            make_trainer(PrefixCache(str(tmp_path), splits=["train"])).fit(model, make_loader())
    assert len(list(tmp_path.iterdir())) == 3


def test_trials_choose_a_block_whose_skip_joins_before_the_norm() -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=3)
    make = partial(SideFinetuning, join="before_norm")
    choice = choose_key_layer(make_net("test_vit"), data, make, epochs=1, blocks=["blocks.1", "blocks.3"])
    assert choice.block in ("blocks.1", "blocks.3")


def test_trials_choose_its_block() -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=3)
    net = make_net()
    before = [value.clone() for value in net.parameters()]
    blocks = ["layer1.0", "layer2.0"]
    choice = choose_key_layer(net, data, SideFinetuning, epochs=2, blocks=blocks)
    measured = choice.rungs[0].measured
    assert choice.block in measured
    assert len({found.nc1 for found in measured.values()}) == 2  # each trial has its own copy
    assert all(map(torch.equal, before, net.parameters()))


@pytest.mark.slow
def test_it_is_exported_as_a_program_and_not_as_a_plain_model(tmp_path: Any) -> None:
    model = make_model().eval()
    change(model.method)
    with torch.no_grad():
        expected = model(IMAGES.float() / 255)
    export_program(model, tmp_path / "it.pt2", image_size=32)
    program = torch.export.load(tmp_path / "it.pt2").module()
    torch.testing.assert_close(program(IMAGES.float() / 255), expected)
    with pytest.raises(ValueError, match="side FT adds to the features"):
        export_state_dict(model, tmp_path / "it.safetensors")
