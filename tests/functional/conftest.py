from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Sample = tuple[Tensor, Tensor]


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Features around random class means, float64; every class has at least three samples."""

    def make(classes: int = 5, width: int = 8, seed: int = 0, spread: float = 1.0, extra: int = 60) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        target = torch.cat([torch.arange(classes).repeat(3), torch.randint(classes, (extra,), generator=generator)])
        centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
        noise = torch.randn(len(target), width, generator=generator, dtype=torch.float64)
        return centres[target] + spread * noise, target

    return make
