import pytest

from nc_finetune.backbones import OpenClipBackbone, TimmBackbone, create_backbone


@pytest.mark.parametrize("name", ["test_resnet", "timm:test_resnet"])
def test_name_alone_is_one_of_timm(name: str) -> None:
    backbone = create_backbone(name, None)
    assert isinstance(backbone, TimmBackbone)
    assert backbone.name == "test_resnet"


def test_library_is_chosen_by_its_prefix_and_gets_its_options() -> None:
    backbone = create_backbone("open_clip:tiny-ViT", None, features="projected")
    assert isinstance(backbone, OpenClipBackbone)
    assert backbone.num_features == 20


def test_unknown_library_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown library of backbones 'openclip'; did you mean 'open_clip'"):
        create_backbone("openclip:ViT-B-32", None)


def test_model_of_open_clip_without_its_library_is_an_error_that_gives_the_name() -> None:
    with pytest.raises(ValueError, match="'ViT-B-32' is a model of open_clip; its name here is 'open_clip:ViT-B-32'"):
        create_backbone("ViT-B-32", None)


def test_name_of_neither_is_timms_error() -> None:
    with pytest.raises(ValueError, match="unknown timm backbone 'resnet19'"):
        create_backbone("resnet19", None)
