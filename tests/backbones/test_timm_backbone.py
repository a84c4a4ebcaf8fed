import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import quick_where
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from nc_finetune.backbones import (
    Preprocessing,
    TimmBackbone,
    find_block_names,
    packaged_weights,
    watch_input,
    watch_outputs,
    weights_hash,
)

# Name, number of blocks, the first, the last, width of the first and of the last, num_features.
INVENTORY = [
    ("resnet18", 8, "layer1.0", "layer4.1", 64, 512, 512),
    ("resnet50", 16, "layer1.0", "layer4.2", 256, 2048, 2048),
    ("resnetv2_50", 16, "stages.0.blocks.0", "stages.3.blocks.2", 256, 2048, 2048),
    ("vit_base_patch32_224", 12, "blocks.0", "blocks.11", 768, 768, 768),
    ("vit_base_patch32_clip_224", 12, "blocks.0", "blocks.11", 768, 768, 768),
    ("convnext_atto", 12, "stages.0.blocks.0", "stages.3.blocks.1", 40, 320, 320),
    ("efficientnet_b0", 16, "blocks.0.0", "blocks.6.0", 16, 320, 1280),
    ("tf_efficientnet_lite0", 16, "blocks.0.0", "blocks.6.0", 16, 320, 1280),
    ("mobilenetv3_small_050", 12, "blocks.0.0", "blocks.5.0", 8, 288, 1024),
    ("densenet121", 7, "features.denseblock1", "features.denseblock4", 256, 1024, 1024),
    ("inception_v3", 11, "Mixed_5b", "Mixed_7c", 256, 2048, 2048),
    ("cait_xxs24_224", 24, "blocks.0", "blocks.23", 192, 192, 192),
    ("poolformer_s12", 12, "stages.0.blocks.0", "stages.3.blocks.1", 64, 512, 512),
    ("caformer_s18", 18, "stages.0.blocks.0", "stages.3.blocks.2", 64, 512, 512),
    ("regnety_002", 13, "s1.b1", "s4.b7", 24, 368, 368),
    ("mixer_s32_224", 8, "blocks.0", "blocks.7", 512, 512, 512),
    # Maps with channels last, whether or not timm says so.
    ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0", "layers.3.blocks.1", 96, 768, 768),
    ("swinv2_cr_tiny_224", 12, "stages.0.blocks.0", "stages.3.blocks.1", 96, 768, 768),
    ("volo_d1_224", 18, "network.0.0", "network.4.1", 192, 384, 384),
    ("samvit_base_patch16_224", 12, "blocks.0", "blocks.11", 768, 768, 768),
    ("nest_tiny", 12, "levels.0.transformer_encoder.0", "levels.2.transformer_encoder.7", 96, 384, 384),
]
# One of each kind, which run always.
FEW = {"resnet18", "vit_base_patch32_224", "mobilenetv3_small_050", "densenet121", "swin_tiny_patch4_window7_224"}
TINY = [
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    "test_vit2",
    "test_nfnet",
    "mobilenetv3_small_050",
]


# A network of two narrow blocks under the name of a large one.
TINY_VIT = {"embed_dim": 12, "depth": 2, "num_heads": 2}


def save_tiny(path: Path) -> None:
    torch.save(timm.create_model("vit_small_patch16_224", **TINY_VIT).state_dict(), path)


def make_images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def make_meta(name: str, **options: Any) -> TimmBackbone:
    with torch.device("meta"):
        return TimmBackbone(name, None, options).eval()


def run_meta(backbone: TimmBackbone) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Return the shape of every block's pooled output, as they come, and that of the penultimate feature."""
    pooled: dict[str, tuple[int, ...]] = {}

    def take(name: str, output: Tensor) -> None:
        pooled[name] = tuple(backbone.pool(output).shape)

    size = backbone.preprocessing.image_size
    with watch_outputs(backbone.model, backbone.block_names, take), torch.device("meta"):
        return pooled, tuple(backbone(torch.zeros(2, 3, size, size)).shape)


@pytest.mark.parametrize(
    ("name", "number", "first", "last", "first_width", "last_width", "num_features"),
    quick_where(lambda network: network[0] in FEW, INVENTORY),
)
def test_blocks_run_in_order_and_pool_to_their_width(
    name: str, number: int, first: str, last: str, first_width: int, last_width: int, num_features: int
) -> None:
    backbone = make_meta(name)
    pooled, penultimate = run_meta(backbone)
    assert (len(backbone.block_names), *backbone.block_names[:1], backbone.block_names[-1]) == (number, first, last)
    assert tuple(pooled) == backbone.block_names
    assert (pooled[first], pooled[last]) == ((2, first_width), (2, last_width))
    assert penultimate == (2, num_features) == (2, backbone.num_features)


@pytest.mark.parametrize(
    "name", quick_where([*TINY, "test_byobnet", "test_mambaout"].__contains__, timm.list_models("test_*"))
)
def test_every_tiny_network_of_timm_gives_one_vector_an_image_for_every_block(name: str) -> None:
    backbone = make_meta(name)
    pooled, penultimate = run_meta(backbone)
    assert tuple(pooled) == backbone.block_names
    assert penultimate == (2, backbone.num_features)


def test_final_norm_and_downsampling_are_no_blocks() -> None:
    with torch.device("meta"):
        names = find_block_names(timm.create_model("test_convnext"))
    assert [name for name in names if "blocks" not in name] == []


def test_every_block_has_parameters_to_tune() -> None:
    backbone = make_meta("vgg11")
    assert backbone.block_names == tuple(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18))


@pytest.mark.parametrize("name", ["hrnet_w18", "coat_tiny"])
def test_network_of_unknown_blocks_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"no residual or transformer blocks are known of '{name}'"):
        make_meta(name)


def test_network_of_mixed_layouts_is_an_error() -> None:
    with pytest.raises(ValueError, match="the blocks of timm's tiny_vit mix two layouts"):
        make_meta("tiny_vit_5m_224")


@pytest.mark.parametrize("name", ["test_vit", "vit_small_r26_s32_224"])
def test_class_token_is_taken_where_there_is_one(name: str) -> None:
    backbone = make_meta(name)
    assert backbone.num_prefix_tokens == 1
    assert backbone.has_class_token


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("test_vit2", 1),
        ("vit_medium_patch16_reg4_gap_256", 4),
        ("vit_medium_patch16_rope_reg1_gap_256", 1),
        ("eva02_tiny_patch14_224", 1),  # a class token that the classifier, which averages patches, does not read
        ("vit_small_patch16_dinov3", 5),
    ],
)
def test_what_the_classifier_does_not_read_is_not_taken_for_the_class_token(name: str, registers: int) -> None:
    backbone = make_meta(name)
    tokens = torch.zeros(1, registers + 2, 1)
    tokens[:, registers:] = torch.tensor([[[1.0], [3.0]]])
    assert backbone.pool(tokens).item() == 2


def test_a_class_token_is_taken_where_the_classifier_is_told_to_read_it() -> None:
    backbone = make_meta("vit_small_patch16_dinov3", global_pool="token")
    assert backbone.pool(torch.tensor([[[3.0], [0.0], [0.0], [0.0], [0.0], [1.0]]])).item() == 3


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "convit_tiny", "cait_xxs24_224"])
def test_class_token_that_comes_behind_the_blocks_is_not_looked_for_in_them(name: str) -> None:
    assert make_meta(name).pool(torch.tensor([[[1.0], [3.0]]])).item() == 2


def test_stem_of_a_densenet_is_the_map_before_its_first_layer() -> None:
    backbone, taken = make_meta("densenet121"), list[tuple[int, ...]]()
    first = backbone.get_layer(backbone.block_names[0])
    with watch_input(first, "stem", lambda _, output: taken.append(tuple(output.shape))):
        run_meta(backbone)
    assert taken == [(2, 64, 56, 56)]


@pytest.mark.parametrize("name", TINY)
def test_features_are_what_timms_classifier_sees(name: str) -> None:
    backbone = TimmBackbone(name, weights=None).eval()
    whole = timm.create_model(name, num_classes=7).eval()
    assert whole.load_state_dict(backbone.model.state_dict(), strict=False).unexpected_keys == []
    images = make_images(2, 3, backbone.preprocessing.image_size, backbone.preprocessing.image_size)
    with torch.no_grad():
        logits = whole.get_classifier()(backbone(images))
        torch.testing.assert_close(logits, whole(backbone.normalize(images)))


SMALL_VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2}
OF_ANY_SIZE = {
    "vit_small_patch14_dinov2": (SMALL_VIT, 518, 56),
    "vit_base_patch16_siglip_224": (SMALL_VIT, 224, 48),
    "eva02_base_patch14_224": (SMALL_VIT, 224, 56),
    "swinv2_tiny_window8_256": ({"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)}, 256, 48),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)}, 224, 48),
}


@pytest.mark.parametrize("name", quick_where({"vit_base_patch16_siglip_224"}.__contains__, OF_ANY_SIZE))
def test_a_network_bound_to_a_size_takes_another_and_computes_at_its_own_as_before(name: str) -> None:
    options, own, other = OF_ANY_SIZE[name]
    backbone = TimmBackbone(name, None, options).eval()
    bound = timm.create_model(name, num_classes=0, **options).eval()
    assert bound.load_state_dict(backbone.model.state_dict()).missing_keys == []
    images = make_images(1, 3, own, own)
    with torch.no_grad():
        assert torch.equal(backbone(images), bound(backbone.normalize(images)))
        assert backbone(make_images(1, 3, other, other)).isfinite().all()
    with pytest.raises(AssertionError):
        bound(make_images(1, 3, other, other))


def test_a_size_that_a_network_does_not_take_is_an_error_that_names_it() -> None:
    backbone = TimmBackbone("test_vit", None)
    with pytest.raises(ValueError, match=r"test_vit takes no images of \(32, 40\) pixels \(Input width"):
        backbone(make_images(1, 3, 32, 40))


def test_an_option_that_no_network_takes_is_still_refused() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        TimmBackbone("test_resnet", None, {"no_such_option": 1})


def test_model_options_reach_timm() -> None:
    backbone = TimmBackbone("test_vit", weights=None, model_options={"img_size": 32})
    assert backbone(make_images(2, 3, 32, 32)).shape == (2, 64)


def test_preprocessing_is_that_of_the_weights() -> None:
    preprocessing = make_meta("resnet50").preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (preprocessing.image_size, preprocessing.interpolation) == (224, "bicubic")


def test_random_weights_depend_on_the_seed_alone() -> None:
    def seeded_hash(seed: int) -> str:
        torch.manual_seed(seed)
        return weights_hash(TimmBackbone("test_resnet", weights=None))

    assert seeded_hash(0) == seeded_hash(0) != seeded_hash(1)


# --- weights of a package


@pytest.fixture(scope="module")
def lite0() -> TimmBackbone:
    return TimmBackbone("tf_efficientnet_lite0", weights="package").eval()


@pytest.fixture(scope="module")
def lite0_file() -> list[Tensor]:
    state = torch.load(packaged_weights("tf_efficientnet_lite0"), weights_only=True)
    return [value for value in state.values() if value.ndim > 0]


def test_package_gives_the_logits_of_its_file_loaded_by_hand(lite0: TimmBackbone, lite0_file: list[Tensor]) -> None:
    by_hand = timm.create_model("tf_efficientnet_lite0").eval()
    for part in by_hand.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-3
    targets = [value for value in by_hand.state_dict().values() if value.ndim > 0]
    for target, value in zip(targets, lite0_file, strict=True):
        target.copy_(value)
    images = make_images(2, 3, 96, 96)
    with torch.no_grad():
        logits = lite0(images) @ lite0_file[-2].T + lite0_file[-1]
        torch.testing.assert_close(logits, by_hand(images * 2 - 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("picture", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_package_recognises_a_palace_and_a_daisy(
    lite0: TimmBackbone, lite0_file: list[Tensor], picture: str, label: int
) -> None:
    names = [Path(name).name for name in load_sample_images().filenames]
    image = torch.tensor(load_sample_images().images[names.index(picture)]).permute(2, 0, 1)[None, :, :, 106:533]
    small = nn.functional.interpolate(image / 255, 224, mode="bilinear", antialias=True)
    with torch.no_grad():
        assert (lite0(small) @ lite0_file[-2].T + lite0_file[-1]).argmax().item() == label


def test_package_wants_mean_and_std_of_one_half_and_eps_of_a_thousandth(lite0: TimmBackbone) -> None:
    assert (lite0.preprocessing.mean, lite0.preprocessing.std) == ((0.5,) * 3, (0.5,) * 3)
    assert {part.eps for part in lite0.modules() if isinstance(part, nn.BatchNorm2d)} == {1e-3}


def test_package_comes_without_its_classifier(lite0: TimmBackbone) -> None:
    assert sum(parameter.numel() for parameter in lite0.parameters()) == 4_652_008 - 1281 * 1000


def test_package_for_another_backbone_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown backbone with packaged weights 'test_resnet'"):
        TimmBackbone("test_resnet", weights="package")


# --- weights of a file


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.pt", "weights.bin"])
def test_file_gives_its_weights_without_its_classifier(tmp_path: Path, name: str) -> None:
    source = timm.create_model("test_resnet", num_classes=5)
    save = save_file if name.endswith(".safetensors") else torch.save
    save(source.state_dict(), tmp_path / name)
    source.reset_classifier(0)
    backbone = TimmBackbone("test_resnet", weights=str(tmp_path / name))
    assert weights_hash(backbone.model) == weights_hash(source)


def test_file_may_wrap_the_state_dict(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=0)
    torch.save({"state_dict": source.state_dict(), "epoch": 1}, tmp_path / "weights.pth")
    backbone = TimmBackbone("test_vit", weights=str(tmp_path / "weights.pth"))
    assert weights_hash(backbone.model) == weights_hash(source)


def test_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    assert TimmBackbone("test_resnet", weights="~/weights.pth").weights == "~/weights.pth"


def test_file_of_another_architecture_is_an_error_that_names_both(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    match = r"weights\.pth does not hold weights of test_resnet: .*Missing key.*\[\.\.\.\]$"
    with pytest.raises(ValueError, match=match):
        TimmBackbone("test_resnet", weights=str(tmp_path / "weights.pth"))


def test_file_that_lacks_a_tensor_is_an_error(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"Missing key.*layer3\.0\.conv1\.weight"):
        TimmBackbone("test_resnet", weights=str(tmp_path / "weights.pth"))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights at"):
        TimmBackbone("test_resnet", weights=str(tmp_path / "weights.pth"))


def test_weights_in_half_precision_are_widened(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=0).half()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = TimmBackbone("test_resnet", weights=str(tmp_path / "weights.pth"))
    assert weights_hash(backbone.model) == weights_hash(source.float())


def test_file_of_a_model_whose_tags_differ_in_their_mean_is_warned_of(tmp_path: Path) -> None:
    save_tiny(tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="do not say how their images were normalised") as caught:
        backbone = TimmBackbone("vit_small_patch16_224", str(tmp_path / "weights.pth"), TINY_VIT)
    assert len(caught) == 1
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("said_by", ["preprocessing", "tag"])
def test_file_whose_normalisation_is_said_is_not_warned_of(tmp_path: Path, said_by: str) -> None:
    save_tiny(tmp_path / "weights.pth")
    given = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, "bicubic")
    name, option = (
        ("vit_small_patch16_224", given) if said_by == "preprocessing" else ("vit_small_patch16_224.dino", None)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = TimmBackbone(name, str(tmp_path / "weights.pth"), TINY_VIT, option)
    assert backbone.preprocessing == given


def test_preprocessing_that_contradicts_the_weights_is_an_error() -> None:
    given = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, "bicubic")
    with pytest.raises(ValueError, match=r"'package' of tf_efficientnet_lite0 were trained with mean 0\.5/"):
        TimmBackbone("tf_efficientnet_lite0", weights="package", preprocessing=given)


# --- a local hub folder


def make_hub_folder(folder: Path, name: str = "test_resnet", **changes: Any) -> nn.Module:
    source = timm.create_model(name, num_classes=5)
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "classifier": "fc"}
    pretrained = {**config, "input_size": [3, 96, 96], "num_classes": 5}
    content = {"architecture": name, "num_classes": 5, "pretrained_cfg": pretrained, **changes}
    (folder / "config.json").write_text(json.dumps(content))
    save_file(source.state_dict(), folder / "model.safetensors")
    source.reset_classifier(0)
    return source


@pytest.mark.parametrize("path", ["{}", "local-dir:{}", "{}/model.safetensors"])
def test_folder_gives_its_weights_and_its_preprocessing(tmp_path: Path, path: str) -> None:
    source = make_hub_folder(tmp_path)
    backbone = TimmBackbone("test_resnet", weights=path.format(tmp_path))
    assert weights_hash(backbone.model) == weights_hash(source)
    assert backbone.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96, "bilinear")


def test_folder_as_timm_writes_it_is_read(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=3, img_size=32)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    source.reset_classifier(0)
    backbone = TimmBackbone("test_vit", weights=str(tmp_path), model_options={"img_size": 32})
    assert weights_hash(backbone.model) == weights_hash(source)


def test_folder_of_another_architecture_is_an_error(tmp_path: Path) -> None:
    make_hub_folder(tmp_path, "test_vit")
    with pytest.raises(ValueError, match=r"config\.json is of the architecture 'test_vit', not 'test_resnet'"):
        TimmBackbone("test_resnet", weights=str(tmp_path))


def test_folder_whose_weights_are_not_those_of_its_configuration_is_an_error(tmp_path: Path) -> None:
    make_hub_folder(tmp_path)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold weights of test_resnet"):
        TimmBackbone("test_resnet", weights=str(tmp_path))


# --- names and the hub


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet19", "resnet18"), ("rensnet50", "resnet50"), ("vit_base_patch33_224", "vit_base_patch32_224")],
)
def test_unknown_name_is_an_error_that_lists_near_ones(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown timm backbone '{name}'; did you mean .*'{near}'"):
        TimmBackbone(name)


def test_part_of_a_name_lists_the_names_that_hold_it() -> None:
    with pytest.raises(ValueError, match=r"unknown timm backbone 'swin_tiny'.* Valid: swin_tiny_patch4_window7_224"):
        TimmBackbone("swin_tiny")


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "a9_in1k"), ("resnet18.a9_in1k", None)])
def test_unknown_tag_is_an_error_that_lists_the_tags(name: str, weights: str | None) -> None:
    with pytest.raises(ValueError, match="unknown weights of resnet18 'a9_in1k'; did you mean 'a3_in1k'"):
        TimmBackbone(name, weights=weights)


@pytest.mark.parametrize(
    ("name", "weights", "asked"),
    [
        ("test_resnet", "default", "test_resnet"),
        ("test_resnet", "r160_in1k", "test_resnet.r160_in1k"),
        ("resnet18.a1_in1k", "default", "resnet18.a1_in1k"),
        ("resnet18.a1_in1k", "a2_in1k", "resnet18.a2_in1k"),
    ],
)
def test_hub_is_asked_for_the_weights_of_the_tag(
    name: str, weights: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, calls = timm.create_model, list[tuple[str, dict[str, Any]]]()

    def fake(name: str, **options: Any) -> nn.Module:
        made = create("test_resnet", **{**options, "pretrained": False})
        calls.append((name, options))
        return made

    monkeypatch.setattr(timm, "create_model", fake)
    TimmBackbone(name, weights=weights, model_options={"drop_rate": 0.1})
    assert calls == [(asked, {"pretrained": True, "num_classes": 0, "drop_rate": 0.1})]


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("no route to host")])
def test_hub_that_cannot_be_reached_is_an_error_that_says_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> nn.Module:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    match = r"'default' of resnet18 could not be had from the hub \(no route to host\); pass a local file.*weights=None"
    with pytest.raises(RuntimeError, match=match) as caught:
        TimmBackbone("resnet18")
    assert caught.value.__cause__ is error
