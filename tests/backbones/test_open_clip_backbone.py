import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from crossed import crossed
from open_clip import pretrained
from safetensors.torch import save_file
from torch import Tensor, nn

from nc_finetune.backbones import OpenClipBackbone, Preprocessing, watch_outputs

TINY = ["tiny-ViT", "tiny-ViT-quickgelu", "tiny-ViT-avg", "tiny-RN", "tiny-timm", "tiny-timm-classifier", "tiny-custom"]
OPENAI = Preprocessing(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, 32, "bicubic")
CLASSES = ["cat", "dog", "aeroplane"]
TEMPLATES = ["a photo of a {}.", "a blurry photo of the {}."]


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def make_clip(name: str = "tiny-ViT", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = open_clip.create_model(name)
    # BatchNorm's last weight of a residual branch begins at zero: nothing behind it could be seen.
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return model.eval()


def save(model: nn.Module, path: Path) -> str:
    write = save_file if path.suffix == ".safetensors" else torch.save
    write(model.state_dict(), path)
    return str(path)


def make_images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def same_tensors(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


# --- features


@pytest.mark.parametrize(("features", "name"), crossed(["pre_projection", "projected"], TINY))
def test_projected_features_are_open_clips_image_embeddings(name: str, features: Any, tmp_path: Path) -> None:
    clip = make_clip(name)
    backbone = OpenClipBackbone(name, save(clip, tmp_path / "a.safetensors"), features=features).eval()
    images = make_images(backbone.preprocessing.image_size)
    with torch.no_grad():
        output = backbone(images)
        expected = clip.encode_image(backbone.normalize(images))
        assert output.shape == (2, backbone.num_features)
        torch.testing.assert_close(backbone.project(output), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3


def test_features_before_the_projection_are_the_normalised_class_token(tmp_path: Path) -> None:
    clip = make_clip()
    backbone = OpenClipBackbone("tiny-ViT", save(clip, tmp_path / "a.pth")).eval()
    tokens: list[Tensor] = []
    with watch_outputs(clip.visual, ["ln_post"], lambda _, output: tokens.append(output)), torch.no_grad():
        clip.encode_image(backbone.normalize(make_images()))
        torch.testing.assert_close(backbone(make_images()), tokens[0][:, 0])


def test_tower_without_projection_gives_the_same_features_either_way() -> None:
    torch.manual_seed(0)
    before = OpenClipBackbone("tiny-timm-bare", None)
    torch.manual_seed(0)
    projected = OpenClipBackbone("tiny-timm-bare", None, features="projected")
    assert torch.equal(before.eval()(make_images()), projected.eval()(make_images()))


@pytest.mark.parametrize("name", TINY)
def test_projection_stands_aside_frozen_and_counted(name: str) -> None:
    backbone = OpenClipBackbone(name, None)
    visual = make_clip(name).visual
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in visual.parameters())
    backbone.model.requires_grad_(True)
    size = backbone.preprocessing.image_size
    backbone(make_images(size)).sum().backward()
    idle = {name for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert idle == {f"projection.{name}" for name, _ in backbone.projection.named_parameters()} != set()


@pytest.mark.parametrize(("features", "name"), crossed(["pre_projection", "projected"], TINY))
def test_tower_state_dict_is_open_clips(name: str, features: Any, tmp_path: Path) -> None:
    clip = make_clip(name)
    backbone = OpenClipBackbone(name, save(clip, tmp_path / "a.pt"), features=features)
    assert same_tensors(backbone.tower_state_dict(), clip.visual.state_dict())


def test_unknown_kind_of_features_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown kind of features 'patch'.*Valid: pre_projection, projected"):
        OpenClipBackbone("tiny-ViT", None, features="patch")  # type: ignore[arg-type]


# --- blocks


@pytest.mark.parametrize("name", TINY)
def test_blocks_run_in_order_and_pool_to_one_vector_an_image(name: str) -> None:
    backbone, pooled = OpenClipBackbone(name, None).eval(), dict[str, Tensor]()

    def take(block: str, output: Tensor) -> None:
        pooled[block] = backbone.pool(output)

    with watch_outputs(backbone.model, backbone.block_names, take), torch.no_grad():
        backbone(make_images(backbone.preprocessing.image_size))
    assert tuple(pooled) == backbone.block_names
    assert {value.ndim for value in pooled.values()} == {2}
    assert {len(value) for value in pooled.values()} == {2}


def test_blocks_of_a_transformer_pool_to_their_class_token() -> None:
    backbone, outputs = OpenClipBackbone("tiny-ViT", None).eval(), list[Tensor]()
    with watch_outputs(backbone.model, backbone.block_names[-1:], lambda _, output: outputs.append(output)):
        features = backbone(make_images())
    torch.testing.assert_close(backbone.model.ln_post(backbone.pool(outputs[0])), features)


def test_class_token_that_is_not_read_is_not_pooled() -> None:
    tokens = torch.tensor([[[9.0], [1.0], [3.0]]])
    assert OpenClipBackbone("tiny-ViT-avg", None).pool(tokens).item() == 2


def test_hooks_see_every_block_under_checkpointing() -> None:
    backbone, seen = OpenClipBackbone("tiny-ViT", None).eval(), list[str]()
    backbone.model.set_grad_checkpointing(True)
    with watch_outputs(backbone.model, backbone.block_names, lambda block, _: seen.append(block)):
        backbone(make_images())
    assert tuple(seen) == backbone.block_names


# --- preprocessing and sizes


@pytest.mark.parametrize("name", ["tiny-ViT", "tiny-RN"])
def test_images_of_another_size_are_an_error_that_says_what_to_do(name: str) -> None:
    backbone = OpenClipBackbone(name, None)
    size = backbone.preprocessing.image_size
    match = rf"{name} takes images of \({size}, {size}\) pixels, got \(16, 16\).*force_image_size"
    with pytest.raises(ValueError, match=match):
        backbone(make_images(16))


def test_images_that_a_tower_of_timm_does_not_take_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    config = {**open_clip.get_model_config("tiny-timm"), "vision_cfg": vision}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-timm-vit", config)
    backbone = OpenClipBackbone("tiny-timm-vit", None).eval()
    backbone(torch.rand(1, 3, 160, 160))
    with pytest.raises(ValueError, match=r"tiny-timm-vit takes no images of \(100, 100\) pixels \(.+\); resize them"):
        backbone(torch.rand(1, 3, 100, 100))


def test_positions_are_interpolated_for_another_size(tmp_path: Path) -> None:
    path = save(make_clip(), tmp_path / "a.safetensors")
    backbone = OpenClipBackbone("tiny-ViT", path, {"force_image_size": 64})
    assert backbone(make_images(64)).shape == (2, 24)


def test_random_weights_want_what_the_first_tag_of_the_model_wants() -> None:
    assert OpenClipBackbone("tiny-tagged", None).preprocessing == OPENAI
    with torch.device("meta"):
        assert OpenClipBackbone("ViT-B-16-SigLIP", None).preprocessing.mean == (0.5, 0.5, 0.5)


def test_file_of_a_model_whose_tags_differ_in_their_mean_is_warned_of(tmp_path: Path) -> None:
    path = save(make_clip(), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"a\.pth' of tiny-tagged do not say how their images were normalised"):
        OpenClipBackbone("tiny-tagged", path)


# --- local files


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_file_of_the_whole_model_gives_its_tower(tmp_path: Path, suffix: str) -> None:
    clip = make_clip("tiny-RN")
    backbone = OpenClipBackbone("tiny-RN", save(clip, tmp_path / f"a{suffix}"))
    assert same_tensors(backbone.tower_state_dict(), clip.visual.state_dict())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoint_of_open_clips_training_is_read(tmp_path: Path, prefix: str) -> None:
    clip = make_clip("tiny-RN")
    state = {f"{prefix}{key}": value for key, value in clip.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    backbone = OpenClipBackbone("tiny-RN", str(tmp_path / "a.pt"))
    assert same_tensors(backbone.tower_state_dict(), clip.visual.state_dict())


def test_file_of_the_tower_alone_gives_it(tmp_path: Path) -> None:
    clip = make_clip("tiny-RN")
    backbone = OpenClipBackbone("tiny-RN", save(clip.visual, tmp_path / "a.safetensors"))
    assert same_tensors(backbone.tower_state_dict(), clip.visual.state_dict())
    with pytest.raises(ValueError, match=r"a\.safetensors holds the visual tower of tiny-RN alone; pass the whole"):
        backbone.text_embeddings(["a cat"])


@pytest.mark.parametrize("whole", [True, False])
def test_file_of_another_architecture_is_an_error(tmp_path: Path, whole: bool) -> None:
    clip = make_clip("tiny-RN")
    path = save(clip if whole else clip.visual, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth does not hold weights of .*tiny-ViT: .*Missing key"):
        OpenClipBackbone("tiny-ViT", path)


def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save({"visual.proj": Malicious(tmp_path / "executed")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"(?s)is not a state dict of tensors alone"):
        OpenClipBackbone("tiny-ViT", str(tmp_path / "a.pt"))
    assert not (tmp_path / "executed").exists()


# --- a local hub folder


def make_folder(folder: Path, clip: nn.Module, name: str, preprocess: dict[str, Any] | None = None) -> str:
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": copy.deepcopy(open_clip.get_model_config(name)), "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("path", ["{}", "local-dir:{}", "{}/open_clip_model.safetensors"])
def test_folder_gives_its_weights_and_its_preprocessing(tmp_path: Path, path: str) -> None:
    clip = make_clip()
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    folder = make_folder(tmp_path, clip, "tiny-ViT", preprocess)
    backbone = OpenClipBackbone("tiny-ViT", path.format(folder))
    assert same_tensors(backbone.tower_state_dict(), clip.visual.state_dict())
    assert backbone.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32, "bilinear")


def test_folder_may_spell_out_defaults_and_differ_in_what_does_not_matter(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_clip("tiny-RN"), "tiny-RN")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"mlp_ratio": 4.0, "patch_dropout": 0.5}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert OpenClipBackbone("tiny-RN", folder).weights == folder


def test_folder_of_another_architecture_is_an_error_though_its_tensors_fit(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_clip(), "tiny-ViT-avg")
    match = r"open_clip_config\.json is not of the architecture tiny-ViT: vision_cfg\.pool_type is avg and not tok"
    with pytest.raises(ValueError, match=match):
        OpenClipBackbone("tiny-ViT", folder)


def test_folder_trained_with_another_activation_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_clip(), "tiny-ViT-quickgelu")
    match = r"were trained with QuickGELU, but tiny-ViT is built with GELU; choose 'tiny-ViT-quickgelu'"
    with pytest.raises(ValueError, match=match):
        OpenClipBackbone("tiny-ViT", folder)


def test_folder_without_model_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_clip(), "tiny-ViT")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"open_clip_config\.json must have a 'model_cfg'"):
        OpenClipBackbone("tiny-ViT", folder)


# --- names, tags and the hub


def test_unknown_name_is_an_error_that_lists_near_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown open_clip backbone 'ViT-B-23'; did you mean .*'ViT-B-32'"):
        OpenClipBackbone("ViT-B-23", None)


@pytest.mark.parametrize("tag", ["openia", "default"])
def test_unknown_tag_is_an_error_that_lists_the_tags(tag: str) -> None:
    with pytest.raises(ValueError, match=f"unknown weights of ViT-B-32 '{tag}'.* Valid: openai, laion400m_e31"):
        OpenClipBackbone("ViT-B-32", tag)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "RN50"])
def test_openais_weights_are_refused_without_their_activation(name: str) -> None:
    match = f"'openai' were trained with QuickGELU, but {name} is built with GELU; choose '{name}-quickgelu'"
    with pytest.raises(ValueError, match=match):
        OpenClipBackbone(name, "openai")


def test_weights_trained_with_gelu_are_refused_where_another_activation_is_built() -> None:
    with pytest.raises(ValueError, match=r"trained with GELU, but ViT-B-32 is built with QuickGELU; choose 'ViT-B-32'"):
        OpenClipBackbone("ViT-B-32", "laion2b_s34b_b79k", {"force_quick_gelu": True})


def test_tag_gives_its_weights_and_its_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip()
    path = save(clip, tmp_path / "a.pt")
    monkeypatch.setitem(pretrained._PRETRAINED["tiny-tagged"]["other"], "file", path)
    backbone = OpenClipBackbone("tiny-tagged", "other")
    assert same_tensors(backbone.tower_state_dict(), clip.visual.state_dict())
    assert backbone.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32, "bilinear")
    with pytest.raises(ValueError, match=r"'other' of tiny-tagged were trained with mean 0\.1/0\.2/0\.3"):
        OpenClipBackbone("tiny-tagged", "other", preprocessing=OPENAI)


def test_tag_may_need_its_activation_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrained._PRETRAINED["tiny-tagged"]["quick"], "file", save(make_clip(), tmp_path / "a.pt"))
    backbone = OpenClipBackbone("tiny-tagged", "quick", {"force_quick_gelu": True})
    assert isinstance(backbone.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_hub_that_cannot_be_reached_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(RuntimeError, match=r"'gelu' of tiny-tagged could not be had .*no route to host.*weights=None"):
        OpenClipBackbone("tiny-tagged", "gelu")


def test_root_logger_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers, filters = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    OpenClipBackbone("tiny-ViT", None)
    assert caplog.records == []
    assert (logging.getLogger().handlers, logging.getLogger().filters) == (handlers, filters)


# --- text


@pytest.mark.parametrize(("random", "name"), crossed([True, False], ["tiny-ViT", "tiny-RN", "tiny-custom"]))
def test_zero_shot_logits_are_open_clips(name: str, random: bool, tmp_path: Path) -> None:
    clip = make_clip(name)
    if random:
        torch.manual_seed(0)
        clip = open_clip.create_model(name).eval()
        torch.manual_seed(0)
    weights = None if random else save(clip, tmp_path / "a.pth")
    backbone = OpenClipBackbone(name, weights, features="projected").eval()
    tokenizer = open_clip.get_tokenizer(name)
    classifier = open_clip.build_zero_shot_classifier(clip, tokenizer, CLASSES, TEMPLATES)
    images = make_images(backbone.preprocessing.image_size)
    encoder = backbone.text_encoder()
    embeddings = encoder([template.format(c) for c in CLASSES for template in TEMPLATES])
    rows = nn.functional.normalize(embeddings.unflatten(0, (len(CLASSES), -1)).mean(dim=1), dim=1)
    with torch.no_grad():
        expected = clip.logit_scale.exp() * clip.encode_image(backbone.normalize(images), normalize=True) @ classifier
        logits = encoder.logit_scale * nn.functional.normalize(backbone(images), dim=1) @ rows.T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        embeddings[::2], clip.encode_text(tokenizer(["a photo of a " + c + "." for c in CLASSES]), True)
    )
    assert embeddings.std(dim=0).max() > 1e-3


def test_text_of_random_weights_does_not_disturb_the_random_numbers() -> None:
    backbone = OpenClipBackbone("tiny-ViT", None)
    torch.manual_seed(5)
    first = backbone.text_embeddings(["a cat"])
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(first, backbone.text_embeddings(["a cat"]))


def test_text_tower_is_no_part_of_the_backbone() -> None:
    backbone = OpenClipBackbone("tiny-ViT", None)
    before = [name for name, _ in backbone.named_modules()]
    backbone.text_embeddings(["a cat"])
    assert [name for name, _ in backbone.named_modules()] == before
    assert not any("token_embedding" in name for name in before)


def test_tuning_the_tower_leaves_the_text_as_it_is() -> None:
    backbone = OpenClipBackbone("tiny-ViT", None)
    before = backbone.text_embeddings(["a cat"])
    for parameter in backbone.parameters():
        parameter.data.zero_()
    assert torch.equal(backbone.text_embeddings(["a cat"]), before)


def test_batches_of_prompts_do_not_matter() -> None:
    encoder = OpenClipBackbone("tiny-ViT", None).text_encoder()
    prompts = [f"a photo of {number} cats" for number in range(5)]
    torch.testing.assert_close(encoder(prompts, batch_size=2), encoder(prompts))


def test_scale_and_bias_of_the_logits_are_told() -> None:
    encoder = OpenClipBackbone("tiny-bias", None).text_encoder()
    assert encoder.logit_scale == pytest.approx(1 / 0.07)
    assert encoder.logit_bias == -10
    assert OpenClipBackbone("tiny-ViT", None).text_encoder().logit_bias == 0


@pytest.mark.parametrize(
    ("prompts", "kind", "match"), [("a cat", TypeError, "a list of texts"), ([], ValueError, "got none")]
)
def test_prompts_must_be_a_list_of_texts(prompts: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=f"prompts must .*{match}"):
        OpenClipBackbone("tiny-ViT", None).text_embeddings(prompts)


def test_tokenizer_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    with pytest.raises(RuntimeError, match=r"the tokenizer of tiny-ViT could not be had \(no route to host\)"):
        OpenClipBackbone("tiny-ViT", None).text_encoder()
