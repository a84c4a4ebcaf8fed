"""Cutting networks in two, whatever they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import quick_where
from torch import Tensor, nn

from nc_finetune.backbones import PENULTIMATE, Backbone, Preprocessing, SplitBackbone, SplitError, create_backbone
from nc_finetune.backbones._split.call_record import CallRecord, record_calls

NETS = (
    *("test_resnet", "test_vit", "test_vit_relpos", "test_convnext", "test_efficientnet", "test_coatnet"),
    *("test_mambaout", "test_nfnet", "test_byobnet", "open_clip:tiny-ViT", "open_clip:tiny-RN", "open_clip:tiny-timm"),
)
# Of each kind one, and of open_clip two.
FEW = {"test_resnet", "test_vit", "test_convnext", "open_clip:tiny-ViT", "open_clip:tiny-RN"}
every_net = pytest.mark.parametrize("name", quick_where(FEW.__contains__, NETS))


class Toy(Backbone):
    """Whatever forward pass a test wants, over three linear blocks."""

    def __init__(self, run: Callable[["Toy", Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)))
        model = nn.ModuleDict({"stem": nn.Linear(3, 4), "blocks": blocks, "extra": nn.Identity()})
        super().__init__(
            model,
            name="toy",
            weights=None,
            num_features=4,
            block_names=("blocks.0", "blocks.1", "blocks.2"),
            preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, 4, "bicubic"),
        )
        self.run = run
        self.eval()

    def penultimate(self, inputs: Tensor) -> Tensor:
        return self.run(self, inputs)


def blocks_of(net: Toy) -> tuple[nn.Module, ...]:
    return net.model["stem"], *net.model["blocks"]


def make_split(net: Backbone, cut: str, *skips: str, size: int = 32, **options: Any) -> tuple[SplitBackbone, Tensor]:
    return SplitBackbone(net, cut, skips, image_shape=(3, size, size), **options), torch.rand(4, 3, size, size)


def make_net(name: str) -> tuple[Backbone, int]:
    """Build a network at random; return it with a size of images that it takes."""
    torch.manual_seed(0)
    options = {"img_size": 32} if name == "test_vit" else None
    size = {"open_clip:tiny-RN": 64, "test_coatnet": 160, "test_vit_relpos": 160}.get(name, 32)
    return create_backbone(name, None, **({"model_options": options} if options else {})).eval(), size


@every_net
def test_what_a_block_sees_is_kept_beside_the_cut(name: str) -> None:
    net, size = make_net(name)
    seen: list[Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].clone())

    for layer in (net.block_names[0], net.middle_block, net.block_names[-1]):
        split, images = make_split(net, PENULTIMATE, size=size, input_layers=[layer])
        with torch.no_grad(), net.get_layer(layer).register_forward_pre_hook(note):
            whole = net(images)
            kept = split.prefix(images)
            with split.resume(kept) as blanks:
                assert torch.equal(net(blanks), whole)
        before, within, after = seen[-3:]
        assert torch.equal(before, within)
        assert torch.equal(before, after)
        assert len(kept[f"input of {layer}"]) == len(images)


@every_net
def test_both_parts_make_the_whole_to_the_last_bit(name: str) -> None:
    net, size = make_net(name)
    for cut in (net.block_names[0], net.middle_block, net.block_names[-1], PENULTIMATE):
        split, images = make_split(net, cut, size=size)
        assert split.check(images, net), cut


def test_the_second_part_runs_nothing_that_comes_before_the_cut() -> None:
    net = create_backbone("test_resnet", None).eval()
    split, images = make_split(net, "layer3.0")
    kept = split.prefix(images)
    net.model.layer2.double()  # would refuse what it sees
    with split.resume(kept) as blanks:
        assert net(blanks).isfinite().all()


def test_gradients_reach_the_cut_layer_and_stop_there() -> None:
    net = create_backbone("test_resnet", None).eval()
    split, images = make_split(net, "layer3.0")
    net(images).square().sum().backward()
    whole = {name: value.grad.clone() for name, value in net.model.layer3.named_parameters()}
    net.zero_grad()
    with split.resume(split.prefix(images)) as blanks:
        net(blanks).square().sum().backward()
    assert all(torch.equal(whole[name], value.grad) for name, value in net.model.layer3.named_parameters())
    assert all(value.grad is None for value in net.model.layer2.parameters())


def test_the_prefix_builds_no_graph() -> None:
    net = create_backbone("test_resnet", None).eval()
    split, images = make_split(net, "layer3.0")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        kept = split.prefix(images)
    assert not saved
    assert not kept["layer3.0"].requires_grad


def test_everything_is_as_it_was_afterwards() -> None:
    net = create_backbone("test_vit", None, model_options={"img_size": 32}).eval()
    split, images = make_split(net, "blocks.3", "blocks.1")
    before = net(images)
    with pytest.raises(KeyError), split.resume(split.prefix(images)):
        raise KeyError
    assert torch.equal(net(images), before)
    assert not any("forward" in vars(part) for part in net.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_pooled_outputs_of_earlier_blocks_are_kept() -> None:
    net = create_backbone("test_resnet", None).eval()
    split, images = make_split(net, "layer3.0", "layer1.0", "layer3.0")
    kept = split.prefix(images)
    assert split.skip_layers == ("layer1.0",)
    assert {name: value.shape[1] for name, value in kept.items()} == {"layer1.0": 32, "layer3.0": 48}


def test_any_number_of_samples_goes_on() -> None:
    net = create_backbone("test_resnet", None).eval()
    split, images = make_split(net, "layer3.0")
    for number in (1, 3):
        with split.resume(split.prefix(images[:number])) as blanks:
            parts = net(blanks)
        assert torch.equal(parts, net(images[:number]))


def test_a_module_may_stand_before_and_behind_the_cut() -> None:
    def run(net: Toy, inputs: Tensor) -> Tensor:
        stem, first, second, third = blocks_of(net)
        extra = net.model["extra"]
        return third(extra(second(extra(first(stem(inputs.mean((2, 3))))))))

    split, images = make_split(Toy(run), "blocks.1")
    assert split.check(images, split.backbone)


def test_what_does_not_depend_on_the_images_is_computed_as_ever() -> None:
    def run(net: Toy, inputs: Tensor) -> Tensor:
        stem, first, second, third = blocks_of(net)
        positions = net.model["extra"](torch.ones(1, 4))
        return third(second(first(stem(inputs.mean((2, 3))))) + positions)

    split, images = make_split(Toy(run), "blocks.1")
    assert split.check(images, split.backbone)


def test_a_connection_past_the_cut_is_found_out() -> None:
    def run(net: Toy, inputs: Tensor) -> Tensor:
        stem, first, second, third = blocks_of(net)
        early = first(stem(inputs.mean((2, 3))))
        return third(second(early)) + early

    split, images = make_split(Toy(run), "blocks.1")
    with pytest.raises(SplitError, match=r"follows 'blocks\.1' in 'toy' needs more than its input"):
        split.check(images, split.backbone)


def test_code_that_refuses_blanks_is_found_out() -> None:
    def run(net: Toy, inputs: Tensor) -> Tensor:
        stem, first, second, third = blocks_of(net)
        early = first(stem(inputs.mean((2, 3))))
        early += 1
        return third(second(early))

    split, images = make_split(Toy(run), "blocks.1")
    with pytest.raises(SplitError, match="does not run from"):
        split.check(images, split.backbone)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda net, inputs: net.model["stem"](inputs.mean((2, 3))), "does not call"),
        (lambda net, inputs: net.model["blocks"][1](inputs.mean((0, 2, 3))[[0, 1, 2, 0]]), "is that of the samples"),
    ],
)
def test_what_cannot_be_cut_says_why(run: Callable[[Toy, Tensor], Tensor], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        make_split(Toy(run), "blocks.1")


def test_samples_may_stand_in_another_dimension() -> None:
    def run(net: Toy, inputs: Tensor) -> Tensor:
        stem, first, second, third = blocks_of(net)
        tokens = stem(inputs.flatten(2).permute(2, 0, 1))  # (T, N, D), as CLIP's older towers have it
        return third(second(first(tokens))).mean(0)

    split, images = make_split(Toy(run), "blocks.1")
    assert split.check(images, split.backbone)
    assert split.prefix(images)["blocks.1"].shape == (4, 32 * 32, 4)


def test_records_of_two_sizes_make_one_of_any() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0, 1))

    def record(number: int) -> CallRecord:
        with record_calls(net, number) as found:
            net(torch.zeros(number, 3, 5, 5))
        return found

    joined = record(2).growing(record(3))
    shapes = [joined[part][0].blank(7, torch.device("cpu")).shape for part in net]
    assert shapes == [(7, 4, 3, 3), (28, 3, 3)]
