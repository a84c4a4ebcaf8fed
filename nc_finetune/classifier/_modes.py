"""In which mode each part of a model is while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class TrainModes:
    """The modes that a model's parts were put into, and those of BatchNorm in a step with one image."""

    def __init__(self) -> None:
        self._modes: list[tuple[nn.Module, bool]] = []
        self._alone: list[_BatchNorm] = []
        self._said_one_image = False

    def note(self, wholes: Iterable[nn.Module]) -> None:
        """Remember the modes as they are.

        The modules, too: to find them again at every step would take longer than to look at their modes.
        """
        self._modes = [(part, part.training) for whole in wholes for part in whole.modules()]

    @property
    def are_switched(self) -> bool:
        """Whether somebody has switched one since; looking costs 0.02 ms."""
        return any(part.training is not mode for part, mode in self._modes)

    def keep_statistics(self, model: nn.Module, processes: int) -> None:
        """Let BatchNorm use, and leave, its kept statistics in a step with one image, which has none of its own.

        Statistics over several processes are over several images.
        """
        shared: tuple[type[nn.Module], ...] = (nn.SyncBatchNorm,) if processes > 1 else ()
        norms = (part for part in model.modules() if isinstance(part, _BatchNorm) and not isinstance(part, shared))
        self._alone = [part for part in norms if part.training]
        for part in self._alone:
            part.training = False
        if self._alone and not self._said_one_image:
            self._said_one_image = True
            warnings.warn(
                f"a batch of one image has no statistics: {len(self._alone)} BatchNorm layers that train use the kept"
                " ones for it; drop_last=True of the DataLoader leaves such a batch out",
                stacklevel=2,
            )

    def take_statistics(self) -> None:
        """Let them be taken again, once the step is over."""
        for part in self._alone:
            part.training = True
        self._alone = []
