from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from nc_finetune import TimmBackbone
from nc_finetune.backbones import find_network_layers, pool_features


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def resnet(classes: int = 3) -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        *(("resnet18", "fc"), ("vit_b_32", "heads.head"), ("swin_t", "head"), ("convnext_tiny", "classifier.2")),
        *(("efficientnet_b0", "classifier.1"), ("mobilenet_v3_small", "classifier.3"), ("vgg11", "classifier.6")),
    ],
)
def test_classifiers_of_torchvision(name: str, classifier: str) -> None:
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None)
    assert find_network_layers(Holder(net=net)).classifier is net.get_submodule(classifier)


def test_the_classifier_may_stand_beside_the_network() -> None:
    module = Holder(head=nn.Linear(96, 3), net=timm.create_model("test_resnet", num_classes=0))
    assert find_network_layers(module).classifier is module.head


def test_rows_of_the_classifier_decide_where_they_are_known() -> None:
    module = Holder(net=resnet(3), projection=nn.Linear(512, 128))
    assert find_network_layers(module, num_classes=3).classifier is module.net.fc  # type: ignore[union-attr]
    assert find_network_layers(module, num_classes=7).classifier is None


def test_a_named_classifier_is_taken() -> None:
    module = Holder(net=resnet(3), projection=nn.Linear(512, 128))
    assert find_network_layers(module, classifier="fc").classifier is module.net.fc  # type: ignore[union-attr]
    assert find_network_layers(module, classifier="net.fc").classifier is module.net.fc  # type: ignore[union-attr]


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))


def test_layers_of_a_plain_network_are_all_but_the_classifier() -> None:
    whole, parts = find_network_layers(plain()), find_network_layers(Holder(net=plain()[:3], head=nn.Linear(4, 3)))
    assert whole.layer_names == ("stem", "1", "penultimate")
    assert parts.layer_names == ("stem", "net.1", "penultimate")


def test_a_projector_beside_blocks_is_no_network() -> None:
    layers = find_network_layers(Holder(net=resnet(3), projector=plain()), num_classes=3)
    assert layers.block_names[0] == "layer1.0"
    assert layers.classifier is layers.root.projector[-1]


def test_several_plain_networks_need_a_name() -> None:
    class Net(Holder):
        def __init__(self) -> None:
            super().__init__(conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 3))

    module = Holder(student=Net(), teacher=Net())
    with pytest.raises(ValueError, match=r"several parts of Holder: student, teacher; .* network='student'"):
        find_network_layers(module)
    assert find_network_layers(module, network="student").layer_names == ("stem", "conv", "penultimate")


def test_several_networks_need_a_name() -> None:
    module = Holder(student=resnet(), teacher=resnet())
    with pytest.raises(ValueError, match=r"several parts of Holder: student, teacher; .* network='student'"):
        find_network_layers(module)
    layers = find_network_layers(module, network="student")
    assert layers.network is module.student
    assert layers.classifier is module.student.fc  # type: ignore[union-attr]


def test_parts_of_a_network_at_the_top_are_one_network() -> None:
    net = resnet()
    layers = find_network_layers(Holder(layer1=net.layer1, layer2=net.layer2, fc=net.fc))
    assert layers.layer_names == ("stem", "layer1.0", "layer2.0", "penultimate")


def test_a_network_of_ours_says_itself() -> None:
    module = Holder(backbone=TimmBackbone("test_vit", weights=None), head=nn.Linear(64, 3))
    layers = find_network_layers(module)
    assert layers.layout == module.backbone.layout
    assert layers.layout.block_names == layers.block_names == module.backbone.block_names
    assert layers.classifier is module.head


def test_nothing_is_missed_where_there_are_no_blocks() -> None:
    layers = find_network_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert layers.block_names == ()
    assert layers.check_name("1") == "1"


def run(module: nn.Module, images: Tensor, *names: str) -> dict[str, Any]:
    layers, taken = find_network_layers(module), dict[str, Any]()
    module.eval()
    for name in names or layers.layer_names:
        with layers.watch(name, taken.__setitem__), torch.no_grad():
            module(images)
    return {name: layers.pool(output) for name, output in taken.items()}


class Classify(Holder):
    def forward(self, images: Tensor) -> Any:
        return self.net(images)


def test_every_layer_of_a_torchvision_network_gives_vectors() -> None:
    pooled = run(Classify(net=resnet()), torch.randn(2, 3, 32, 32))
    assert [tuple(value.shape) for value in pooled.values()] == [(2, width) for width in (64, 64, 128, 256, 512, 512)]


def test_open_clip_gives_class_tokens() -> None:
    visual = open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=16
    )
    module = Classify(net=visual)
    images = torch.randn(2, 3, 32, 32)
    pooled = run(module, images, "transformer.resblocks.1")["transformer.resblocks.1"]
    kept: list[Tensor] = []
    with torch.no_grad(), visual.transformer.resblocks[1].register_forward_hook(lambda *a: kept.append(a[2])):
        visual(images)
    assert torch.equal(pooled, pool_features(kept[0], 1))


def test_the_same_name_may_be_inside_and_outside() -> None:
    module = Holder(net=resnet(), fc=nn.Linear(2, 2))
    taken: list[Any] = []
    layers = find_network_layers(module, network="net")
    with layers.watch("fc", lambda _, output: taken.append(output)):
        module.net.fc(torch.zeros(1, 512))  # type: ignore[operator]
        module.fc(torch.zeros(1, 2))  # type: ignore[operator]
    assert [tuple(output.shape) for output in taken] == [(1, 3)]


@pytest.mark.parametrize(
    ("net", "known", "name"),
    [
        (timm.create_model("resnetv2_18", num_classes=3), None, "head.fc"),
        (torchvision.models.squeezenet1_1(num_classes=3), 3, "classifier.1"),
    ],
    ids=["timm", "torchvision"],
)
def test_a_convolution_can_be_the_classifier(net: nn.Module, known: int | None, name: str) -> None:
    assert find_network_layers(net, num_classes=known).classifier is net.get_submodule(name)


def test_a_convolution_is_no_classifier_where_nobody_says_so() -> None:
    assert find_network_layers(torchvision.models.squeezenet1_1(num_classes=3)).classifier is None
    assert find_network_layers(timm.create_model("efficientnet_b0", num_classes=0)).classifier is None


def test_inner_names_are_near_matches() -> None:
    module = nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 3))})
    with pytest.raises(ValueError, match=r"unknown layer '0'.*net\.0"):
        find_network_layers(module).check_name("0")
