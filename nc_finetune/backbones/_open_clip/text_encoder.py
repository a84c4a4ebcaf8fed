"""The text tower of an open_clip model, for zero-shot classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def imagenet_templates() -> tuple[Callable[[str], str], ...]:
    """Return the 80 prompt templates with which CLIP's authors measured zero-shot accuracy on ImageNet.

    Returns:
        Functions of the class name.

    Example:
        >>> imagenet_templates()[0]("cat")
        'a bad photo of a cat.'
    """
    import open_clip

    return tuple(open_clip.OPENAI_IMAGENET_TEMPLATES)


class TextEncoder:
    """Turns prompts into unit vectors in the space that images and texts share (Radford et al. 2021, 2103.00020).

    It holds the text tower and is meant to be thrown away after use.

    Args:
        model: An open_clip model; its visual tower is taken off.
        tokenizer: Turns prompts into tokens ``(N, context length)``.
        device: Where the text tower computes.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], device: torch.device) -> None:
        model.visual = nn.Identity()
        self._model: Any = model.requires_grad_(False).eval().to(device)
        self._tokenizer = tokenizer
        self._device = device

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine between image and text in the logits."""
        return float(self._model.logit_scale.exp())

    @property
    def logit_bias(self) -> float:
        """Constant added to the logits; 0 where the model has none."""
        bias = self._model.logit_bias
        return 0.0 if bias is None else float(bias)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode prompts.

        Args:
            prompts: Texts, e.g. ``"a photo of a dog."``.
            batch_size: Number of prompts at a time.

        Returns:
            Shape ``(len(prompts), embed_dim)``, rows of length 1.

        Raises:
            TypeError: If one text comes in place of a list.
            ValueError: If there are no prompts.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts must be a list of texts, got the text {prompts!r}; put it into a list")
        if not prompts:
            raise ValueError("prompts must hold at least one text, got none")
        batches = (list(prompts[start : start + batch_size]) for start in range(0, len(prompts), batch_size))
        embeddings = (
            self._model.encode_text(self._tokenizer(batch).to(self._device), normalize=True) for batch in batches
        )
        return torch.cat(list(embeddings))
