"""What a readout sees: pooled outputs of several layers side by side, as they are computed by hand with hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import quick_where
from tiny_clip import register_tiny_clip
from torch import Tensor, nn

from nc_finetune import ImageClassifier
from nc_finetune.backbones import Backbone, OpenClipBackbone, TimmBackbone
from nc_finetune.methods import LayerFinetuning, LayerReadout, ProbeFirst, SideFinetuning, SkipConnectionFinetuning
from nc_finetune.methods.readout import layer_groups

# Small networks of every kind; each stands for a way in which blocks lay out what they give.
SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
VIT = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 2}
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {}),
    "efficientnet": ("test_efficientnet", {}),
    "convnext": ("test_convnext", {}),
    "class token": ("test_vit", {"img_size": 32}),
    "no class token": ("test_vit2", {"img_size": 32}),
    "class token and registers": ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 28}),
    "registers alone": ("test_vit3", {"img_size": 32}),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin v2": ("swinv2_tiny_window8_256", SWIN),
    "rotary": ("eva02_tiny_patch14_224", {**VIT, "img_size": 28}),
    "blocks that give sizes, too": ("mvitv2_tiny", {}),
    "mobilenet v3": ("mobilenetv3_small_050", {}),
    "mobilenet v4": ("mobilenetv4_conv_small", {}),
    "maxvit": ("test_maxvit", {}),
    "coatnet": ("test_coatnet", {}),
    "pyramid": ("pvt_v2_b0", {}),
    "class token behind the blocks": ("cait_xxs24_224", {**VIT, "img_size": 32}),
    "windows of tokens": ("nest_tiny", {}),
    "densenet": ("densenet121", {}),
    "regnet": ("regnety_002", {}),
    "mixer": ("mixer_s32_224", {}),
}
QUICK = {"resnet", "convnext", "class token", "registers alone", "swin"}


def make_backbone(kind: str) -> Backbone:
    torch.manual_seed(0)
    if kind.startswith("clip"):
        return OpenClipBackbone(register_tiny_clip(), None).eval()
    name, options = NETS[kind]
    return TimmBackbone(name, None, options).eval()


def make_images(backbone: Backbone, number: int = 2) -> Tensor:
    own = next((part.img_size for part in backbone.modules() if hasattr(part, "img_size")), None)
    size = own if isinstance(own, tuple) else (backbone.preprocessing.image_size,) * 2
    return torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(1))


def by_hand(backbone: Backbone, layers: tuple[str, ...], images: Tensor, normalize: bool) -> Tensor:
    """Take outputs with hooks of torch's own, and their statistics with its own formulas."""
    outputs: dict[str, Tensor] = {}

    def hook_for(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[layer] = (output[0] if isinstance(output, (tuple, list)) else output).clone()

        return hook

    hooks = [backbone.model.get_submodule(name).register_forward_hook(hook_for(name)) for name in layers[:-1]]
    penultimate = backbone(images)
    for hook in hooks:
        hook.remove()
    pieces = [piece for name in layers[:-1] for piece in statistics(backbone, outputs[name])] + [penultimate]
    if normalize:
        pieces = [torch.stack([row / row.norm() if row.norm() > 0 else row for row in piece]) for piece in pieces]
    return torch.cat(pieces, dim=1)


def statistics(backbone: Backbone, output: Tensor) -> list[Tensor]:
    if output.ndim == 4:
        rows = (output.permute(0, 3, 1, 2) if backbone.maps_channels_last else output).flatten(2)
        return [rows.mean(2), rows.std(2, correction=0)]
    tokens, front = output[:, backbone.num_prefix_tokens :], backbone.num_prefix_tokens and backbone.has_class_token
    return [*([output[:, 0]] if front else []), tokens.mean(1), tokens.std(1, correction=0)]


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", quick_where(QUICK.__contains__, [*NETS, "clip"]))
def test_features_are_those_of_hooks(kind: str, normalize: bool) -> None:
    backbone, method = make_backbone(kind), LayerReadout("all", normalize=normalize)
    layers, images = method.layer_names(backbone), make_images(backbone)
    assert layers == (*backbone.block_names, "penultimate")
    found = method.features(backbone, images)
    expected = by_hand(backbone, layers, images, normalize)
    assert found.shape == (2, method.num_features(backbone)) == (2, sum(method.widths(backbone).values()))
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", [["mean"], ["std"], ["std", "mean", "std"], "mean"])
@pytest.mark.parametrize("kind", ["resnet", "class token"])
def test_every_statistic_has_length_one_and_its_own_columns(kind: str, pooling: Any) -> None:
    backbone, method = make_backbone(kind), LayerReadout("later_half", pooling)
    pieces = [width for widths in method.pieces(backbone).values() for width in widths]
    token = kind == "class token" and "mean" in pooling
    each = len({pooling} if isinstance(pooling, str) else {*pooling}) + token
    assert len(pieces) == each * (len(method.layer_names(backbone)) - 1) + 1
    parts = torch.split(method.features(backbone, make_images(backbone)), pieces, dim=1)
    torch.testing.assert_close(torch.stack([part.norm(dim=1) for part in parts]), torch.ones(len(pieces), 2))


@torch.no_grad()
def test_a_part_that_is_zero_stays_zero() -> None:
    backbone = make_backbone("resnet")
    backbone.get_layer("layer3.0").register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    method = LayerReadout(["layer3.0", "layer2.0"])
    first, second = torch.split(
        method.features(backbone, make_images(backbone)), [*method.widths(backbone).values()], 1
    )
    assert first.norm() > 0
    assert (second == 0).all()


@torch.no_grad()
def test_a_map_of_one_position_has_no_spread() -> None:
    backbone, method = make_backbone("resnet"), LayerReadout(["layer4.0"], ["std"])
    assert (method.features(backbone, torch.rand(2, 3, 64, 64)).norm(dim=1) > 0).all()
    assert (method.features(backbone, torch.rand(2, 3, 32, 32)) == 0).all()


def test_spread_of_equal_positions_has_a_finite_gradient() -> None:
    method, backbone = LayerReadout(["layer4.0"], method=LayerFinetuning("layer3.0")), make_backbone("resnet")
    method.freeze(backbone)
    method.features(backbone, torch.rand(2, 3, 32, 32)).sum().backward()
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


# --- which layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("penultimate", ("penultimate",)),
        ("last_blocks", ("layer2.0", "layer3.0", "layer4.0", "penultimate")),
        ("later_half", ("layer3.0", "layer4.0", "penultimate")),
        ("all", ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate")),
        ("auto", ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate")),
        (None, ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate")),
        ("*", ("layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate")),
        ("layer[34]*", ("layer3.0", "layer4.0")),
        ("layer2.0", ("layer2.0",)),
        (2, ("layer3.0", "layer4.0")),
        ([0, "penult*", -1], ("layer1.0", "layer4.0", "penultimate")),
        (["penultimate", "layer1.0", "layer1.0"], ("layer1.0", "penultimate")),
        (["layer3.0.conv1", "layer4.0"], ("layer4.0", "layer3.0.conv1")),
    ],
)
def test_layers_are_words_names_patterns_or_indices(layers: Any, expected: tuple[str, ...]) -> None:
    backbone, method = make_backbone("resnet"), LayerReadout(layers)
    assert method.layer_names(backbone) == expected
    assert tuple(method.widths(backbone)) == expected


def test_later_half_of_odd_numbers_takes_the_middle_one_in() -> None:
    backbone = make_backbone("convnext")
    assert len(backbone.block_names) == 9
    assert LayerReadout("later_half").layer_names(backbone) == (*backbone.block_names[4:], "penultimate")


@torch.no_grad()
def test_an_inner_module_is_pooled_as_a_block_is() -> None:
    backbone, method = make_backbone("class token"), LayerReadout(["blocks.2.attn"], normalize=False)
    seen: list[Tensor] = []
    hook = backbone.get_layer("blocks.2.attn").register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    images = make_images(backbone)
    found = method.features(backbone, images)
    hook.remove()
    torch.testing.assert_close(found, torch.cat(statistics(backbone, seen[-1]), dim=1))


@pytest.mark.parametrize(
    ("net", "layers", "message"),
    [
        ("resnet", "layer9", r"unknown layer 'layer9'.* words for groups of layers are auto, penultimate, last_blocks"),
        ("resnet", "last_half", r"unknown layer 'last_half'.*later_half, all"),
        ("resnet", ["layer1.0", "block*"], r"unknown pattern of layers 'block\*'"),
        ("resnet", [4], r"index 4 is out of range: there are 4 blocks"),
        ("resnet", 5, r"asks for the last 5 of 4 blocks"),
        ("resnet", [], r"at least one layer must be chosen"),
        ("resnet", ["stem", "penultimate"], r"takes in the stem, which is no module.*name blocks, such as layer1.0"),
        ("resnet", "ste?", r"takes in the stem"),
        ("class token", ["head"], r"forward pass of 'test_vit' does not call 'head' itself; choose among blocks.0, "),
        ("class token", ["patch_embed.proj", "blocks.1.attn.missing"], r"unknown layer 'blocks.1.attn.missing'"),
    ],
)
def test_what_is_no_layer_is_refused_by_name(net: str, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(make_backbone(net), 3, method=LayerReadout(layers))


class Odd(nn.Module):
    """Gives something that no vector can be made of."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, maps: Tensor) -> Any:
        return self.give(maps)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda maps: maps.mean((1, 2, 3)), r"layer 'odd' has no place in a readout: .*got \(2,\); leave it out"),
        (lambda maps: maps[..., None], r"layer 'odd' has no place in a readout: .* dimensions, got \(2, "),
        (lambda maps: (maps, maps), r"layer 'odd' has no place in a readout: it must give one tensor, got tuple of"),
        (lambda maps: None, r"layer 'odd' has no place in a readout: it must give one tensor, got NoneType"),
    ],
)
def test_a_layer_that_cannot_be_pooled_is_named(give: Callable[[Tensor], Any], message: str) -> None:
    backbone = make_backbone("resnet")
    odd = Odd(give)
    backbone.model.odd = odd
    backbone.model.layer1.register_forward_hook(lambda _module, _inputs, output: odd(output) and None)
    with pytest.raises(ValueError, match=message):
        LayerReadout(["odd", "penultimate"]).num_features(backbone)


@torch.no_grad()
def test_the_hidden_state_of_a_layer_that_gives_more_is_pooled() -> None:
    backbone, seen = make_backbone("resnet"), []
    odd = Odd(lambda maps: (maps, (8, 8), None))
    backbone.model.odd = odd
    backbone.model.layer1.register_forward_hook(lambda _module, _inputs, output: seen.append(odd(output)[0]))
    found = LayerReadout(["odd"], normalize=False).features(backbone, make_images(backbone))
    torch.testing.assert_close(found, torch.cat(statistics(backbone, seen[-1]), dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": ["mean", "median"]}, r"unknown statistic to pool by 'median'"),
        ({"pooling": []}, r"pooling must name at least one of mean and std"),
        ({"shrinkage": 0}, r"shrinkage must lie in \(0, 1\], got 0"),
        ({"shrinkage": [0.1, 1.5]}, r"shrinkage must lie in \(0, 1\]"),
        ({"priors": "samples"}, r"unknown priors 'samples'"),
        ({"method": SkipConnectionFinetuning()}, r"layers='auto' is chosen for a frozen network; .*'later_half'"),
    ],
)
def test_options_are_checked_where_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerReadout(**options)


# --- groups among which auto chooses


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("convnext", ["later_half", "penultimate", "last_blocks", "all"]),
        ("class token", ["later_half", "penultimate", "all"]),  # the later half are three blocks
    ],
)
def test_groups_that_mean_the_same_layers_are_one(kind: str, expected: list[str]) -> None:
    backbone, method = make_backbone(kind), LayerReadout()
    columns = method.columns(backbone)
    assert sorted(columns) == sorted(expected)
    images = make_images(backbone)
    with torch.no_grad():
        everything = method.features(backbone, images)
        for name, places in columns.items():
            torch.testing.assert_close(everything[:, places], LayerReadout(name).features(backbone, images))


@pytest.mark.parametrize(("depth", "expected"), [(1, {"later_half", "penultimate"}), (2, 3), (3, 3)])
def test_networks_of_few_blocks_have_fewer_groups(depth: int, expected: Any) -> None:
    backbone = TimmBackbone("vit_small_patch16_224", None, {**VIT, "depth": depth})
    groups = layer_groups(backbone)
    assert groups["last_blocks"] == groups["all"] == (*backbone.block_names, "penultimate")
    columns = LayerReadout().columns(backbone)
    assert "later_half" in columns
    assert (set(columns) == expected) if depth == 1 else (len(columns) == expected)


# --- around a method


@torch.no_grad()
@pytest.mark.parametrize("method", [SkipConnectionFinetuning("blocks.1"), SideFinetuning("blocks.3")])
def test_what_a_method_gives_stands_in_place_of_the_penultimate_feature(method: Any) -> None:
    backbone = make_backbone("class token")
    around = LayerReadout(["blocks.4", "penultimate"], normalize=False, method=method)
    images = make_images(backbone)
    own = method.num_features(backbone)
    torch.testing.assert_close(around.features(backbone, images)[:, -own:], method.features(backbone, images))
    plain = LayerReadout(["blocks.4"], normalize=False).features(backbone, images)
    torch.testing.assert_close(around.features(backbone, images)[:, :-own], plain)


def test_a_readout_by_itself_trains_nothing_and_its_method_what_it_trains() -> None:
    model = ImageClassifier(make_backbone("resnet"), 3, method=LayerReadout("all"))
    assert model.tuned_parameters == sum(p.numel() for p in model.head.parameters()) == 3 * (832 + 1)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    plain = ImageClassifier(make_backbone("resnet"), 3, method=SkipConnectionFinetuning("layer1.0"))
    wrapped = SkipConnectionFinetuning("layer1.0")
    around = ImageClassifier(make_backbone("resnet"), 3, method=LayerReadout("all", method=wrapped))
    heads = [sum(p.numel() for p in one.head.parameters()) for one in (plain, around)]
    assert around.tuned_parameters - heads[1] == plain.tuned_parameters - heads[0] > 0


def test_features_of_a_probe_before_a_readout_are_the_readouts() -> None:
    backbone = make_backbone("resnet")
    method = ProbeFirst(LayerReadout("all", method=SkipConnectionFinetuning("layer1.0")), probe_epochs=1)
    images = make_images(backbone)
    with torch.no_grad():
        torch.testing.assert_close(method.features(backbone, images), method.method.features(backbone, images))


def test_what_a_method_gives_stands_behind_the_layers() -> None:
    torch.manual_seed(0)
    backbone, images = TimmBackbone("test_resnet", None).eval(), torch.rand(2, 3, 32, 32)
    inner = SkipConnectionFinetuning("layer2.0")
    plain, both = (LayerReadout("later_half", method=inner, given=given) for given in (False, True))
    with torch.no_grad():
        expected = torch.cat([plain.features(backbone, images), inner.features(backbone, images)], dim=1)
        assert torch.equal(both.features(backbone, images), expected)
    assert both.num_features(backbone) == expected.shape[1]
    assert [*both.widths(backbone)][-2:] == ["penultimate", "given"]
    with pytest.raises(ValueError, match="given=True is for a head that was trained on what a method gives"):
        LayerReadout("later_half", given=True)


def test_a_second_network_stays_as_it_was() -> None:
    torch.manual_seed(0)
    backbone, images = TimmBackbone("test_resnet", None).eval(), torch.rand(2, 3, 32, 32)
    inner = SkipConnectionFinetuning("layer2.0")
    method = LayerReadout("later_half", method=inner, given=True, frozen=True)
    with torch.no_grad():
        expected = LayerReadout("later_half").features(backbone, images)
        assert torch.equal(method.features(backbone, images)[:, : expected.shape[1]], expected)
        method.freeze(backbone)
        for parameter in method.tuned_parameters(backbone):
            parameter.add_(0.1)
        found, given = method.features(backbone, images), inner.features(backbone, images)
    assert torch.equal(found, torch.cat([expected, given], dim=1))
    assert method.first_tuned_layer(backbone) is None
    assert method.network is not None
    assert not any(parameter.requires_grad for parameter in method.network.parameters())
    with pytest.raises(ValueError, match="frozen=True keeps a network from what a method tunes of it"):
        LayerReadout("later_half", frozen=True)
