from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nc_finetune.backbones import TimmBackbone, watch_outputs
from nc_finetune.methods import (
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    SkipConnectionFinetuning,
)

KEY = "layer2.0"
BATCHNORM_OF_KEY = [f"{KEY}.bn1", f"{KEY}.bn2", f"{KEY}.downsample.2"]
Build = Callable[..., LayerFinetuning]
with_key_layer = pytest.mark.parametrize("build", [LayerFinetuning, SkipConnectionFinetuning])


def make_resnet() -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone("test_resnet", weights=None)


def make_vit() -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone("test_vit", weights=None, model_options={"img_size": 32})


def make_images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trainable(method: FinetuningMethod, backbone: TimmBackbone) -> set[str]:
    method.freeze(backbone)
    return {name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad}


def in_train_mode(method: FinetuningMethod, backbone: TimmBackbone) -> set[str]:
    method.set_modes(backbone)
    return {name for name, part in backbone.model.named_modules() if part.training}


# --- what is trained


def test_linear_probe_trains_nothing_of_the_backbone() -> None:
    assert trainable(LinearProbe(), make_resnet()) == set()


@with_key_layer
def test_one_block_is_trained(build: Build) -> None:
    backbone = make_resnet()
    block = {f"{KEY}.{name}" for name, _ in backbone.get_layer(KEY).named_parameters()}
    assert trainable(build(KEY), backbone) == block


def test_full_fine_tuning_trains_everything() -> None:
    backbone = make_resnet()
    assert trainable(FullFinetuning(), backbone) == {name for name, _ in backbone.model.named_parameters()}


def test_freezing_again_with_another_method_leaves_nothing_of_the_first() -> None:
    backbone = make_resnet()
    LayerFinetuning(KEY).freeze(backbone)
    assert trainable(LinearProbe(), backbone) == set()


@with_key_layer
def test_unknown_key_layer_is_an_error_that_lists_near_ones(build: Build) -> None:
    match = r"unknown layer 'layer2\.1'; did you mean 'layer2\.0' or .* Valid: layer1\.0, "
    with pytest.raises(ValueError, match=match):
        build("layer2.1").freeze(make_resnet())


@with_key_layer
def test_key_layer_without_parameters_is_an_error_that_lists_those_with(build: Build) -> None:
    match = r"key layer 'layer2\.0\.act1' has no parameters to tune; choose one of layer1\.0, layer2\.0, "
    with pytest.raises(ValueError, match=match):
        build("layer2.0.act1").freeze(make_resnet())


# --- in which mode


@pytest.mark.parametrize("awake", [True, False])
def test_linear_probe_leaves_the_backbone_in_eval_mode(awake: bool) -> None:
    assert in_train_mode(LinearProbe(), make_resnet().train(awake)) == set()


@with_key_layer
@pytest.mark.parametrize("awake", [True, False])
def test_block_is_in_train_mode_but_its_batchnorm(build: Build, awake: bool) -> None:
    backbone = make_resnet().train(awake)
    block = {name for name, _ in backbone.model.named_modules() if f"{name}.".startswith(f"{KEY}.")}
    assert in_train_mode(build(KEY), backbone) == block - set(BATCHNORM_OF_KEY)


@with_key_layer
def test_batchnorm_of_the_block_is_in_train_mode_where_asked(build: Build) -> None:
    assert set(BATCHNORM_OF_KEY) <= in_train_mode(build(KEY, batch_norm="train"), make_resnet())


def test_batchnorm_of_the_whole_network_is_in_eval_mode_unless_asked() -> None:
    backbone = make_resnet()
    everything = {name for name, _ in backbone.model.named_modules()}
    norms = {name for name, part in backbone.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert in_train_mode(FullFinetuning(), backbone) == everything - norms
    assert in_train_mode(FullFinetuning(batch_norm="train"), backbone) == everything


def test_unknown_mode_of_batchnorm_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown mode of BatchNorm 'trian'; did you mean 'train'\? Valid: eval, tr"):
        FullFinetuning(batch_norm="trian")  # type: ignore[arg-type]


# --- what has a graph


@with_key_layer
@pytest.mark.parametrize(("make", "key"), [(make_resnet, KEY), (make_vit, "blocks.3")])
def test_nothing_below_the_key_layer_builds_a_graph(build: Build, make: Callable[[], TimmBackbone], key: str) -> None:
    backbone, outputs = make(), dict[str, Tensor]()
    method = build(key)
    method.freeze(backbone)
    with watch_outputs(backbone.model, backbone.block_names, outputs.__setitem__):
        features = method.features(backbone, make_images())
    depth = backbone.block_names.index(key)
    assert [output.grad_fn is not None for output in outputs.values()] == [i >= depth for i in range(len(outputs))]
    assert features.requires_grad


def test_linear_probe_builds_no_graph() -> None:
    backbone = make_resnet()
    LinearProbe().freeze(backbone)
    assert not LinearProbe().features(backbone, make_images()).requires_grad


@with_key_layer
def test_gradients_reach_the_block_and_nothing_else(build: Build) -> None:
    backbone, method = make_resnet(), build(KEY)
    method.freeze(backbone)
    method.features(backbone, make_images()).sum().backward()
    reached = {name for name, parameter in backbone.model.named_parameters() if parameter.grad is not None}
    assert reached == trainable(method, backbone)


# --- which features


@pytest.mark.parametrize("method", [LinearProbe(), LayerFinetuning(KEY), FullFinetuning()])
def test_features_are_the_penultimate_ones_without_skip(method: FinetuningMethod) -> None:
    backbone = make_resnet().eval()
    assert torch.equal(method.features(backbone, make_images()), backbone(make_images()))


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_skip_of_a_map_is_averaged_padded_scaled_and_added(scale: float) -> None:
    backbone = make_resnet().eval()
    net = backbone.model
    stem = net.maxpool(net.act1(net.bn1(net.conv1(backbone.normalize(make_images())))))
    block = net.layer2(net.layer1(stem))
    padded = torch.zeros(2, 96)
    padded[:, : block.shape[1]] = block.mean(dim=(2, 3))
    assert block.shape[1] < 96
    features = SkipConnectionFinetuning(KEY, scale).features(backbone, make_images())
    torch.testing.assert_close(features, backbone(make_images()) + scale * padded)


def test_skip_of_a_transformer_is_the_raw_class_token_of_the_block() -> None:
    backbone = make_vit().eval()
    net = backbone.model
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(backbone.normalize(make_images()))))
    for block in net.blocks[:4]:
        tokens = block(tokens)
    features = SkipConnectionFinetuning("blocks.3").features(backbone, make_images())
    torch.testing.assert_close(features, backbone(make_images()) + tokens[:, 0])


def test_scale_is_one_unless_given() -> None:
    backbone = make_resnet().eval()
    default, one = SkipConnectionFinetuning(KEY), SkipConnectionFinetuning(KEY, scale=1)
    assert torch.equal(default.features(backbone, make_images()), one.features(backbone, make_images()))


def test_skip_is_what_the_block_gave_though_a_later_layer_writes_into_it() -> None:
    backbone = make_resnet().eval()
    outputs: dict[str, Tensor] = {}
    with watch_outputs(backbone.model, [KEY], lambda name, output: outputs.update({name: output.clone()})):
        backbone(make_images())
    backbone.model.layer3.register_forward_pre_hook(lambda _, inputs: (inputs[0].mul_(0),))
    skip = SkipConnectionFinetuning(KEY).features(backbone, make_images()) - backbone(make_images())
    expected = F.pad(outputs[KEY].mean(dim=(2, 3)), (0, 96 - outputs[KEY].shape[1]))
    torch.testing.assert_close(skip, expected, rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_the_skip_in_proportion_to_its_scale() -> None:
    backbone = make_resnet().eval()
    weight = backbone.get_parameter(f"model.{KEY}.bn2.weight")

    def gradient(scale: float) -> Tensor:
        features = SkipConnectionFinetuning(KEY, scale).features(backbone, make_images())
        return torch.autograd.grad(features.sum(), weight)[0]

    straight = gradient(0) - gradient(1)
    assert straight.norm() > 0
    torch.testing.assert_close(gradient(0) - gradient(3), 3 * straight, rtol=1e-4, atol=1e-5)


def test_skip_leaves_no_hook_behind() -> None:
    backbone = make_resnet()
    SkipConnectionFinetuning(KEY).features(backbone, make_images())
    assert not backbone.get_layer(KEY)._forward_hooks


def test_skip_wider_than_the_penultimate_feature_is_an_error() -> None:
    match = r"the skip from 'blocks\.3\.mlp\.fc1' is 192 wide, the feature of 'test_vit' that it joins only 64; "
    with pytest.raises(ValueError, match=match):
        SkipConnectionFinetuning("blocks.3.mlp.fc1").features(make_vit(), make_images())


def test_key_layer_that_the_forward_pass_does_not_call_is_an_error() -> None:
    backbone = make_resnet()
    backbone.model.add_module("spare", nn.Linear(2, 2))
    match = r"the forward pass of 'test_resnet' does not call 'spare' itself; choose one of layer1\.0, "
    with pytest.raises(ValueError, match=match):
        SkipConnectionFinetuning("spare").features(backbone, make_images())


def test_key_layer_that_gives_a_tuple_is_an_error_that_names_it() -> None:
    backbone = make_resnet()
    layer = backbone.get_layer("layer1.0.conv1")
    layer.register_forward_hook(lambda _module, _inputs, output: (output,))
    with pytest.raises(TypeError, match=r"layer 'layer1\.0\.conv1' must give one tensor, got tuple"):
        SkipConnectionFinetuning("layer1.0.conv1").features(backbone, make_images())


@pytest.mark.parametrize(
    ("method", "name", "learning_rate"),
    [
        (LinearProbe(), "linear_probe", None),
        (LayerFinetuning(KEY), "layer_ft", 3e-3),
        (SkipConnectionFinetuning(KEY), "scl_ft", 3e-3),
        (FullFinetuning(), "full_ft", 3e-4),
    ],
)
def test_names_and_rates_are_those_of_the_recipes(method: Any, name: str, learning_rate: float | None) -> None:
    assert (method.name, method.default_learning_rate) == (name, learning_rate)


def test_key_layer_is_known_where_there_is_one() -> None:
    assert [method.key_layer for method in (LinearProbe(), LayerFinetuning(KEY), FullFinetuning())] == [None, KEY, None]
