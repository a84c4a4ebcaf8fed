"""From class names to text embeddings: prompt templates and their average."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nc_finetune.backbones import imagenet_templates
from nc_finetune.errors import unknown_name
from nc_finetune.heads.base import unit_length

Template = str | Callable[[str], str]

_CIFAR_KINDS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")


def _cifar(article: str) -> tuple[str, ...]:
    sizes = (f"a photo of {article} {size} {{}}." for size in ("small", "big"))
    return (*(f"a {kind}photo of {article} {{}}." for kind in _CIFAR_KINDS), *sizes)


PROMPT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "cifar10": _cifar("a") + _cifar("the"),
    "cifar100": _cifar("a") + _cifar("the"),
    "dtd": tuple(
        f"a photo of {article} {{}} {noun}."
        for article in ("a", "the")
        for noun in ("texture", "pattern", "thing", "object")
    ),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "plain": ("a photo of a {}.",),
}


def prompt_templates(data_set: str) -> tuple[Template, ...]:
    """Return the prompt templates with which CLIP's authors measured zero-shot accuracy on a data set.

    Args:
        data_set: ``"cifar10"``, ``"cifar100"``, ``"dtd"``, ``"fgvc_aircraft"``, ``"oxford_pets"``; ``"imagenet"``, the
            80 of OpenAI, for ImageNet and photos like it; or ``"plain"``, a single one, for any other.

    Returns:
        Strings with ``{}`` where the class name goes; for ``"imagenet"`` functions of the class name.

    Raises:
        ValueError: If there are none for the data set.

    Source:
        Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020;
        https://github.com/openai/CLIP/blob/main/data/prompts.md.

    Example:
        >>> prompt_templates("oxford_pets")
        ('a photo of a {}, a type of pet.',)
    """
    if data_set == "imagenet":
        return imagenet_templates()
    if data_set not in PROMPT_TEMPLATES:
        raise unknown_name("data set with prompt templates", data_set, (*PROMPT_TEMPLATES, "imagenet"))
    return PROMPT_TEMPLATES[data_set]


def _prompt(template: Template, class_name: str) -> str:
    if not isinstance(template, str):
        return template(class_name)
    if "{}" not in template:
        raise ValueError(f"a prompt template must have {{}} where the class name goes, got {template!r}")
    return template.replace("{}", class_name)


@torch.no_grad()
def prompt_embeddings(
    class_names: Sequence[str],
    templates: Sequence[Template],
    encode_text: Callable[[list[str]], Tensor],
) -> Tensor:
    """Embed class names: the mean of the normalised embeddings of a class' prompts, normalised again.

    Args:
        class_names: K of them, as they should stand in a sentence.
        templates: Strings with ``{}``, or functions of the class name.
        encode_text: From prompts to embeddings, shape ``(number of prompts, D)``; called once a class.

    Returns:
        Shape ``(K, D)``, rows of length 1.

    Raises:
        ValueError: If there are no class names or templates, a template has no ``{}``, or the embeddings have another
            shape.

    Source:
        Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020;
        ``open_clip.build_zero_shot_classifier`` returns the transpose.

    Example:
        >>> def encode(prompts: list[str]) -> Tensor:
        ...     return torch.tensor([[float("cat" in prompt), float("dog" in prompt)] for prompt in prompts])
        >>> prompt_embeddings(["cat", "dog"], prompt_templates("oxford_pets"), encode).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(class_names, str) or isinstance(templates, str) or not class_names or not templates:
        raise ValueError(
            f"class_names and templates must be lists with something in them, got {class_names!r} and {templates!r}"
        )
    return torch.stack([_class_embedding(name, templates, encode_text) for name in class_names])


def _class_embedding(name: str, templates: Sequence[Template], encode_text: Callable[[list[str]], Tensor]) -> Tensor:
    embeddings = encode_text([_prompt(template, name) for template in templates])
    if embeddings.ndim != 2 or len(embeddings) != len(templates):
        raise ValueError(
            f"encode_text must return one row for each of {len(templates)} prompts, got {tuple(embeddings.shape)}"
        )
    return unit_length(unit_length(embeddings.float()).mean(dim=0))
