"""A classifier made of text: rows are the embeddings of class prompts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nc_finetune.heads.base import ClassifierHead, check_positive, unit_length

TENSOR_NAME = "embeddings"


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
            holds them as ``"embeddings"``. :func:`~nc_finetune.heads.prompt_embeddings` makes them.
        logit_scale: s, positive: ``model.logit_scale.exp()`` of the CLIP model, 100 for all that OpenAI trained.
        trainable: Make the rows parameters.

    Raises:
        ValueError: If the embeddings have another shape, are not finite or zero, or the scale is not positive.

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
        embeddings: Tensor | Path | str,
        *,
        logit_scale: float = 100.0,
        trainable: bool = False,
    ) -> None:
        super().__init__(in_features, out_features)
        check_positive("logit_scale", logit_scale)
        rows = embeddings if isinstance(embeddings, Tensor) else _read(embeddings)
        if rows.shape != (out_features, in_features):
            raise ValueError(
                f"embeddings must have shape (K, D) = ({out_features}, {in_features}), got {tuple(rows.shape)};"
                " K is the number of class names, D the width of the joint embedding"
            )
        if not rows.isfinite().all() or not rows.any(dim=1).all():
            raise ValueError("embeddings must be finite, and no row zero")
        self.logit_scale = logit_scale
        weight = (logit_scale * unit_length(rows.detach().double())).to(torch.get_default_dtype())
        if trainable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.register_parameter("bias", None)

    def logits(self, features: Tensor) -> Tensor:
        """Return scaled cosines (inner products with the rows, once these are trained)."""
        return F.linear(unit_length(features), self.weight)

    def extra_repr(self) -> str:
        """Show the widths and the scale."""
        trainable = isinstance(self.weight, nn.Parameter)
        return f"{super().extra_repr()}, logit_scale={self.logit_scale:.4g}, trainable={trainable}"
