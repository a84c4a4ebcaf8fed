"""The key layer of a fit, chosen before it begins."""

from __future__ import annotations

from copy import deepcopy

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.methods import AUTO, FinetuningMethod
from nc_finetune.selection.key_layer import KeyLayerChoice, choose_key_layer


class ChooseKeyLayer(L.Callback):
    """Replace ``key_layer="auto"`` of a method by the block that short trials choose; see :func:`choose_key_layer`.

    The trials take about as long as one fit, for side FT two, on the validation split of an
    :class:`~nc_finetune.ImageData`. With another key layer the callback does nothing. A checkpoint names its block, and
    that is the one: nothing is chosen where ``trainer.ckpt_path`` is set before the fit, as the command line does;
    after ``trainer.fit(ckpt_path=...)`` the trials run in vain. Every rank runs the same trials, and takes the choice
    of the first. Other callbacks have their turn behind this one, wherever it stands: averages copy the module.

    Attributes:
        choice: What was chosen, and why; ``None`` before.

    Raises:
        TypeError: Before the fit, if module and data are not an ImageClassifier and an ImageData.

    Example:
        >>> ChooseKeyLayer().choice is None
        True
    """

    comes_first = True

    def __init__(self) -> None:
        self.choice: KeyLayerChoice | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose, before the optimizer is built."""
        method = getattr(pl_module, "method", None)
        if stage != "fit" or not isinstance(method, FinetuningMethod) or method.key_layer != AUTO:
            return
        if trainer.ckpt_path is not None:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, ImageClassifier) or not isinstance(data, ImageData):
            raise TypeError(
                "key_layer='auto' needs an ImageClassifier and an ImageData, got"
                f" {type(pl_module).__name__} and {type(data).__name__}; name a block instead"
            )
        self.choice = self._choose(trainer, pl_module, data)
        block = trainer.strategy.broadcast(self.choice.block)
        method.set_key_layer(block)
        method.freeze(pl_module.backbone)
        pl_module.train()
        rank_zero_info(f"key layer: {self.choice.reason}")

    def _choose(self, trainer: L.Trainer, model: ImageClassifier, data: ImageData) -> KeyLayerChoice:
        def with_block(block: str) -> FinetuningMethod:
            method = deepcopy(model.method)
            method.set_key_layer(block)
            return method

        return choose_key_layer(
            model.backbone.to(trainer.strategy.root_device),
            data,
            with_block,
            epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 15,
            learning_rate=model.learning_rate,
            head_learning_rate=model.head_learning_rate,
            report=rank_zero_info,
        )
