"""A CLIP among open_clip's models that is tiny but for its vocabulary, for tests that need whole runs of one."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch

TINY_CLIP = "tiny-clip-for-tests"
CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@functools.cache
def register_tiny_clip() -> str:
    """Add it to open_clip's models of this process, and return its name."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{TINY_CLIP}.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        open_clip.add_model_config(folder)
    return TINY_CLIP


def make_tiny_clip(seed: int = 0) -> Any:
    """Build it, both towers, with random weights."""
    torch.manual_seed(seed)
    return open_clip.create_model(register_tiny_clip(), None).eval()
