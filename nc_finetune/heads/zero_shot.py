"""A classifier made of text: rows are the embeddings of class prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nc_finetune.backbones import TextEncoder
from nc_finetune.heads.base import ClassifierHead, check_positive, unit_length
from nc_finetune.heads.prompts import Template, prompt_embeddings, prompt_templates

TENSOR_NAME = "embeddings"
# Of every CLIP that OpenAI trained.
OPENAI_SCALE = 100.0


def _read(path: str | Path) -> Tensor:
    tensors = load_file(path)
    if TENSOR_NAME not in tensors:
        raise ValueError(f"{path} must hold a tensor {TENSOR_NAME!r}, it has {', '.join(sorted(tensors)) or 'none'}")
    return tensors[TENSOR_NAME]


class ZeroShotHead(ClassifierHead):
    """Zero-shot classifier of a CLIP model, fixed or as the start of a trained one.

    ``logit_k = s cos(h, t_k)`` with the text embedding t_k of class k and CLIP's logit scale s. Rows of length s are
    stored, so that a trained head starts from the zero-shot decisions and moves away from them slowly: K D parameters
    when it is trained, none otherwise.

    Args:
        in_features: D, the width of the joint embedding (512 for CLIP ViT-B/32).
        out_features: K.
        embeddings: Text embeddings, shape ``(K, D)``, of any length above 0; or the path of a safetensors file that
            holds them as ``"embeddings"``. ``None`` leaves rows of ``nan`` until :meth:`write_`, which
            :class:`~nc_finetune.ImageClassifier` calls before anything runs.
        logit_scale: s, positive; ``None`` is that of the CLIP model, and for given embeddings 100, as for all that
            OpenAI trained.
        trainable: Make the rows parameters.
        templates: For :meth:`write_`: a name that :func:`~nc_finetune.heads.prompt_templates` knows, or strings with
            ``{}`` where the class name goes.
        class_names: For :meth:`write_`: K names as they should stand in a sentence; ``None`` takes those of the data,
            with blanks for underscores.

    Raises:
        ValueError: If the embeddings have another shape, are not finite or zero, the scale is not positive, the
            templates are unknown, or the class names are not K.

    Source:
        Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020;
        as a start of training: Wortsman et al. 2021, Robust fine-tuning of zero-shot models, arXiv:2109.01903.

    Example:
        >>> head = ZeroShotHead(2, 2, torch.tensor([[2.0, 0.0], [0.0, 1.0]]), logit_scale=10.0)
        >>> head(torch.tensor([[4.0, 3.0]])).tolist()
        [[8.0, 6.0...]]
    """

    weight: Tensor
    bias: None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        embeddings: Tensor | Path | str | None = None,
        *,
        logit_scale: float | None = None,
        trainable: bool = False,
        templates: str | Sequence[str] = "plain",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        check_positive("logit_scale", logit_scale)
        if class_names is not None and len(class_names) != out_features:
            raise ValueError(f"class_names must be {out_features}, one a class, got {len(class_names)}")
        self.logit_scale = logit_scale
        self.class_names = class_names
        self.templates: Sequence[Template] = prompt_templates(templates) if isinstance(templates, str) else templates
        weight = torch.full((out_features, in_features), torch.nan)
        if trainable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.register_parameter("bias", None)
        if embeddings is not None:
            self._set(embeddings if isinstance(embeddings, Tensor) else _read(embeddings), OPENAI_SCALE)

    @property
    def awaits_text(self) -> bool:
        """Whether the rows have still to be written."""
        return bool(self.weight.isnan().any())

    def write_(self, encoder: TextEncoder, class_names: Sequence[str] | None = None) -> None:
        """Let a text tower write the rows.

        Args:
            encoder: The text tower that was trained beside the backbone.
            class_names: Of the data; those that the head was given win.

        Raises:
            ValueError: If nobody knows the class names, they are not K, or the embeddings are not D wide.
        """
        names = self.class_names or [name.replace("_", " ") for name in class_names or ()]
        if len(names) != self.out_features:
            raise ValueError(
                f"a zero-shot head of {self.out_features} classes needs as many class names, got {len(names)}; data"
                " tell theirs by class_names, otherwise pass class_names= to the head"
            )
        embeddings = prompt_embeddings(names, self.templates, encoder)
        if embeddings.shape[1] != self.in_features:
            raise ValueError(
                f"text embeddings are {embeddings.shape[1]} wide, the feature of the backbone {self.in_features}; build"
                " the backbone with features='projected'"
            )
        self._set(embeddings, encoder.logit_scale)

    @torch.no_grad()
    def _set(self, rows: Tensor, scale: float) -> None:
        if rows.shape != self.weight.shape:
            raise ValueError(
                f"embeddings must have shape (K, D) = {tuple(self.weight.shape)}, got {tuple(rows.shape)};"
                " K is the number of class names, D the width of the joint embedding"
            )
        if not rows.isfinite().all() or not rows.any(dim=1).all():
            raise ValueError("embeddings must be finite, and no row zero")
        self.logit_scale = self.logit_scale or scale
        self.weight.copy_(self.logit_scale * unit_length(rows.double()))

    def logits(self, features: Tensor) -> Tensor:
        """Return scaled cosines (inner products with the rows, once these are trained)."""
        return F.linear(unit_length(features), self.weight)

    def extra_repr(self) -> str:
        """Show the widths and the scale."""
        scale = "" if self.logit_scale is None else f", logit_scale={self.logit_scale:.4g}"
        return f"{super().extra_repr()}{scale}, trainable={isinstance(self.weight, nn.Parameter)}"
