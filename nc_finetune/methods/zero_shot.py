"""Zero-shot classification: nothing is trained, the classes are told in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import nn

from nc_finetune.heads import ZeroShotHead
from nc_finetune.methods.linear_probe import LinearProbe


class ZeroShot(LinearProbe):
    """Compare the images' embeddings with those of the class names; nothing is trained (Radford et al. 2021).

    For a CLIP of open_clip with ``features="projected"``. It brings its head, a fixed
    :class:`~nc_finetune.heads.ZeroShotHead`, whose rows the text tower writes once the data have told the class names.
    ``trainer.test(model, datamodule=data)`` is all there is to do; ``fit`` changes nothing, and is there for callbacks
    that measure. To train from the zero-shot decisions, give another method a ``ZeroShotHead(trainable=True)``.

    Args:
        templates: As for :class:`~nc_finetune.heads.ZeroShotHead`.
        class_names: Likewise.

    Source:
        Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020.

    Example:
        >>> ZeroShot("oxford_pets").own_head
        functools.partial(<class 'nc_finetune.heads.zero_shot.ZeroShotHead'>, templates='oxford_pets', class_names=None)
    """

    name: ClassVar[str] = "zero_shot"
    label: ClassVar[str] = "zero-shot"

    def __init__(self, templates: str | list[str] = "plain", class_names: list[str] | None = None) -> None:
        super().__init__()
        self.templates = templates
        self.class_names = class_names

    @property
    def trains(self) -> bool:
        """Nothing is trained."""
        return False

    @property
    def own_head(self) -> Callable[[int, int], nn.Module]:
        """Builds the zero-shot head, which the text tower fills."""
        return partial(ZeroShotHead, templates=self.templates, class_names=self.class_names)
