from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nc_finetune.heads import ZeroShotHead, prompt_embeddings, prompt_templates

CLASS_NAMES = ["tabby cat", "dog {x}", "Boeing 707-320"]


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    """A CLIP model with random weights, tiny but for its vocabulary."""
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    return open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).eval()


def encoder(clip: open_clip.CLIP) -> object:
    return lambda prompts: clip.encode_text(open_clip.tokenize(prompts))


@pytest.mark.parametrize(
    "templates",
    [prompt_templates("imagenet"), prompt_templates("cifar10"), prompt_templates("oxford_pets")],
)
def test_embeddings_and_logits_are_those_of_open_clip(clip: open_clip.CLIP, templates: tuple[object, ...]) -> None:
    theirs = open_clip.build_zero_shot_classifier(clip, open_clip.tokenize, CLASS_NAMES, templates)
    ours = prompt_embeddings(CLASS_NAMES, templates, encoder(clip))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs.T)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ theirs
        head = ZeroShotHead(8, 3, ours, logit_scale=clip.logit_scale.exp().item())
        torch.testing.assert_close(head(clip.encode_image(images)), expected)


def test_embeddings_carry_no_graph(clip: open_clip.CLIP) -> None:
    assert not prompt_embeddings(CLASS_NAMES, ["{}"], encoder(clip)).requires_grad  # type: ignore[arg-type]


@pytest.mark.parametrize(("data_set", "number"), [("cifar10", 18), ("cifar100", 18), ("dtd", 8), ("fgvc_aircraft", 2)])
def test_templates_are_as_many_as_published_and_all_different(data_set: str, number: int) -> None:
    templates = prompt_templates(data_set)
    assert len(set(templates)) == len(templates) == number
    assert all(template.count("{}") == 1 and template.endswith(".") for template in templates)


def test_templates_read_as_published() -> None:
    assert "a black and white photo of the {}." in prompt_templates("cifar10")
    assert "a photo of a small {}." in prompt_templates("cifar100")
    assert prompt_templates("dtd")[4] == "a photo of the {} texture."


def embed(prompts: list[str]) -> Tensor:
    return torch.tensor([[len(prompt), prompt.count("a"), 1.0] for prompt in prompts])


def test_prompts_are_averaged_by_direction() -> None:
    rows = embed(["a cat", "cat"])
    rows = rows / rows.norm(dim=1, keepdim=True)
    expected = rows.mean(dim=0) / rows.mean(dim=0).norm()
    torch.testing.assert_close(prompt_embeddings(["cat"], ["a {}", str], embed)[0], expected)


def test_bad_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown data set with prompt templates 'cifar'; did you mean 'cifar10'"):
        prompt_templates("cifar")
    with pytest.raises(ValueError, match=r"must have \{\} where the class name goes, got 'a photo'"):
        prompt_embeddings(["cat"], ["a photo"], embed)
    for names, templates in ((["cat"], []), ([], ["{}"]), ("cat", ["{}"]), (["cat"], "{}")):
        with pytest.raises(ValueError, match="must be lists with something in them"):
            prompt_embeddings(names, templates, embed)
    with pytest.raises(ValueError, match=r"one row for each of 1 prompts, got \(3,\)"):
        prompt_embeddings(["cat"], ["{}"], lambda prompts: torch.ones(3))


EMBEDDINGS = torch.tensor([[3.0, 4.0], [0.0, 2.0]])


def test_trained_head_starts_from_the_zero_shot_logits() -> None:
    features = torch.randn(5, 2)
    fixed, trained = (ZeroShotHead(2, 2, EMBEDDINGS, trainable=trainable) for trainable in (False, True))
    assert torch.equal(fixed(features), trained(features))
    assert list(fixed.parameters()) == []
    assert isinstance(trained.weight, nn.Parameter)
    assert fixed.state_dict().keys() == trained.state_dict().keys()


def test_embeddings_stay_as_they_were() -> None:
    embeddings = EMBEDDINGS.clone().requires_grad_()
    ZeroShotHead(2, 2, embeddings, trainable=True).weight.data.zero_()
    assert torch.equal(embeddings, EMBEDDINGS)


@pytest.mark.parametrize(
    ("embeddings", "match"),
    [
        (torch.ones(2, 3), r"shape \(K, D\) = \(2, 2\), got \(2, 3\)"),
        (torch.ones(3, 2), r"shape \(K, D\) = \(2, 2\), got \(3, 2\)"),
        (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "finite, and no row zero"),
        (torch.tensor([[1.0, 1.0], [torch.nan, 0.0]]), "finite, and no row zero"),
    ],
)
def test_bad_embeddings_are_refused(embeddings: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ZeroShotHead(2, 2, embeddings)


def test_bad_scales_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logit_scale must be a positive"):
        ZeroShotHead(2, 2, EMBEDDINGS, logit_scale=0)
    save_file({"other": EMBEDDINGS}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="must hold a tensor 'embeddings', it has other"):
        ZeroShotHead(2, 2, tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError):
        ZeroShotHead(2, 2, tmp_path / "none.safetensors")
