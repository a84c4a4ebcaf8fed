"""``nc-finetune export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nc_finetune.cli.options import NewFile, Pixels, Share
from nc_finetune.cli.own_inputs import refuse_overwriting


def export(
    model: Path,
    *,
    image_size: Pixels | None = None,
    trust: bool = False,
    to: Literal["state-dict", "program", "onnx"],
    out: NewFile,
    uint8: bool = False,
    doubt: bool = False,
    coverage: Share | None = None,
) -> int:
    """Turn a delta or a checkpoint into a model for other programs.

    state-dict: weights that timm loads by itself. program: torch.export, loaded without this package. onnx:
    checked against the original with onnxruntime (extra export).

    Args:
        model: a delta (.safetensors), a checkpoint (.ckpt), a folder of nc-finetune tune, or hub:user/name, extra hub
        image_size: default: what the model was fine-tuned on
        trust: let the file name classes of other packages, whose code then runs; only for files whose origin you know
        to: timm's own weights, .pt2, or ONNX
        out: file to write
        uint8: images come as uint8 in 0...255, not as floats in 0...1
        doubt: give tempered probabilities, the share of the training images that lie further out, and sets, too
        coverage: how often the set is to hold the right class, beside --doubt; default: 0.9

    Examples:
        nc-finetune export delta.safetensors --to onnx --out model.onnx --uint8
        nc-finetune export tuned/model.safetensors --to onnx --out model.onnx --doubt
        nc-finetune export last.ckpt --to state-dict --out weights.safetensors
    """
    from nc_finetune.deployment import export_onnx, export_program, export_state_dict, load_model

    if to == "state-dict":
        if doubt or coverage is not None:
            raise ValueError("a state dict has no place for doubts; export a program or ONNX, or leave them out")
        if uint8 or image_size is not None:
            given = "--uint8" if uint8 else "--image-size"
            raise ValueError(f"a state dict is weights alone, which {given} changes nothing of; leave it out")
    # Beside the tower of an open_clip network its head is written.
    refuse_overwriting([out, out.with_suffix(".head.safetensors") if to == "state-dict" else None], model)
    classifier, config = load_model(model, trust=trust)
    if to == "state-dict":
        export_state_dict(classifier, out)
    else:
        write = {"program": export_program, "onnx": export_onnx}[to]
        size = image_size or config.image_size
        write(classifier, out, image_size=size, uint8=uint8, doubt=doubt, coverage=coverage)
    print(f"Model: {out}")  # noqa: T201
    return 0
