"""Photos of three colours, for tests of tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, classes: int = 3, each: int = 12, seed: int = 0, start: int = 0) -> Path:
    """Write noisy images of 32 x 32 pixels, a folder a class, of which each has a colour of its own."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for number in range(start, start + each):
            pixels = generator.normal(90, 60, (32, 32, 3))
            pixels[..., label % 3] += 40
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"class{label}" / f"{number}.png")
    return folder
