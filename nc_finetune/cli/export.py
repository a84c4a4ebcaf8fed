"""``nc-finetune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nc_finetune.cli.options import Pixels


def export(
    model: Path,
    *,
    image_size: Pixels | None = None,
    trust: bool = False,
    to: Literal["state-dict", "program", "onnx"],
    out: Path,
    uint8: bool = False,
) -> int:
    """Turn a delta or a checkpoint into a model for other programs.

    state-dict: weights that timm loads by itself. program: torch.export, loaded without this package. onnx:
    checked against the original with onnxruntime (extra export).

    Args:
        model: a delta (.safetensors) or a checkpoint (.ckpt)
        image_size: default: what the model was fine-tuned on
        trust: let the file name classes of other packages, whose code then runs; only for files whose origin you know
        to: timm's own weights, .pt2, or ONNX
        out: file to write
        uint8: images come as uint8 in 0...255, not as floats in 0...1

    Examples:
        nc-finetune export delta.safetensors --to onnx --out model.onnx --uint8
        nc-finetune export last.ckpt --to state-dict --out weights.safetensors
    """
    from nc_finetune.deployment import export_onnx, export_program, export_state_dict, load_model

    classifier, config = load_model(model, trust=trust)
    if to == "state-dict":
        export_state_dict(classifier, out)
    else:
        write = {"program": export_program, "onnx": export_onnx}[to]
        write(classifier, out, image_size=image_size or config.image_size, uint8=uint8)
    print(f"Model: {out}")  # noqa: T201
    return 0
