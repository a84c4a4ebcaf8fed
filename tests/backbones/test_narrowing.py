import pytest
import torch

from nc_finetune.backbones import TimmBackbone, narrow_features
from nc_finetune.classifier import ImageClassifier
from nc_finetune.methods import FullFinetuning


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "resnet26"])  # a strided last block; both kinds of block
def test_the_feature_is_as_wide_as_asked_for_and_learns(name: str) -> None:
    backbone = narrow_features(TimmBackbone(name, weights=None), 7)
    model = ImageClassifier(backbone, 3, method=FullFinetuning())
    images = torch.rand(2, 3, 64, 64)
    assert model.backbone(images).shape == (2, backbone.num_features) == (2, 7)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_the_last_block_changes() -> None:
    before = {name: p.shape for name, p in TimmBackbone("resnet26", weights=None).model.named_parameters()}
    after = {name: p.shape for name, p in narrow_features(TimmBackbone("resnet26", None), 7).model.named_parameters()}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name.rpartition(".")[0] for name in changed} == {
        *("layer4.1.conv3", "layer4.1.bn3"),
        *("layer4.1.downsample.0", "layer4.1.downsample.1"),
    }


def test_weights_that_would_be_lost_are_refused() -> None:
    backbone = TimmBackbone("test_resnet", weights=None)
    backbone.weights = "a1_in1k"
    with pytest.raises(ValueError, match="'test_resnet' has those of 'a1_in1k'; build it with weights=None"):
        narrow_features(backbone, 10)


@pytest.mark.parametrize("name", ["test_vit", "seresnet50", "test_convnext"])
def test_other_networks_are_refused(name: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name, weights=None)
    with pytest.raises(ValueError, match=f"the last block of '{name}' is not that of a plain ResNet"):
        narrow_features(backbone, 10)


@pytest.mark.parametrize("width", [0, 96])
def test_the_width_must_be_narrower(width: int) -> None:
    with pytest.raises(ValueError, match=rf"width must lie in \[1, 96\), got {width}"):
        narrow_features(TimmBackbone("test_resnet", weights=None), width)
