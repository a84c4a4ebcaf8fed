"""NC1 of every layer on the training data, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune.backbones import PENULTIMATE, STEM, Backbone, watch_input, watch_outputs
from nc_finetune.errors import unknown_name
from nc_finetune.functional.variability import Normalize
from nc_finetune.metrics import NeuralCollapse


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every submodule is in the mode it was in, and so is the RNG."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.inference_mode(), isolate_rng():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


class LayerwiseNC1(L.Callback):
    """Measure NC1 of every layer on the training data and log it as ``nc1/<layer>``.

    The training split is passed through the network once, in eval mode and under inference mode. With a datamodule
    that has ``eval_dataloader("train")``, as :class:`~nc_finetune.ImageData` has, it comes without augmentation;
    otherwise the dataset of the training loader is used in its own order.

    Logs ``nc1/stem`` (the input of the first block), ``nc1/<block>`` for each block (average over space, or the class
    token, or the mean token), and ``nc1/penultimate`` (what the classifier sees, a skip connection included). A value
    that is undefined, such as that of a diverged network, is ``nan``, with a warning.

    Args:
        layers: Names among ``backbone.layer_names``; ``None`` is all of them.
        every_n_epochs: Measure after each n-th training epoch, too; ``None`` measures at the end of fitting alone.
        normalize: ``"none"`` for ``tr(Sigma_W Sigma_B^+)``, ``"classes"`` to divide it by K.

    Raises:
        ValueError: At the start, if a layer is unknown; the message lists those that are there.
        TypeError: At the start, if the module has no ``backbone`` and ``head`` to look into.

    Attributes:
        history: One ``{"epoch": ..., "step": ..., "nc1/<layer>": ...}`` for every measurement.

    Example:
        >>> callback = LayerwiseNC1(layers=["stem", "penultimate"])
        >>> callback.values
        {}
    """

    def __init__(
        self, layers: Sequence[str] | None = None, every_n_epochs: int | None = None, normalize: Normalize = "none"
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.layers = layers
        self.every_n_epochs = every_n_epochs
        self.normalize: Normalize = normalize
        self.history: list[dict[str, float]] = []

    @property
    def values(self) -> dict[str, float]:
        """The last measurement: NC1 by layer, in the order of the network; empty before the first."""
        last = self.history[-1] if self.history else {}
        return {name.removeprefix("nc1/"): value for name, value in last.items() if name.startswith("nc1/")}

    @property
    def state_key(self) -> str:
        """Tell several of these callbacks apart in a checkpoint."""
        layers = None if self.layers is None else list(self.layers)
        return self._generate_state_key(layers=layers, every_n_epochs=self.every_n_epochs, normalize=self.normalize)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the module and the names of the layers before anything runs."""
        self._chosen_layers(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure if this epoch is due, or the last."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if last or (self.every_n_epochs and epoch % self.every_n_epochs == 0):
            pl_module.log_dict(self._record(trainer, pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure where fitting ended before the epoch did."""
        if not self.history or self.history[-1]["step"] != trainer.global_step:
            values = self._record(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Keep the history in checkpoints."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back from a checkpoint."""
        self.history = list(state_dict["history"])

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """Pass the training split through the network once and return NC1 by layer."""
        metrics: dict[str, NeuralCollapse] = {}
        labels = torch.empty(0)

        def take(layer: str, output: Tensor) -> None:
            features = pl_module.backbone.pool(output)  # type: ignore[operator, union-attr]
            if layer not in metrics:
                metric = NeuralCollapse(
                    pl_module.num_classes,  # type: ignore[arg-type]
                    features.shape[1],
                    self.normalize,
                    measures=("nc1",),
                )
                metrics[layer] = metric.to(features.device)
            metrics[layer].update(features, labels)

        with _evaluating(pl_module), self._watch(pl_module, take), trainer.precision_plugin.forward_context():
            for batch in _training_data(trainer):
                images, labels = trainer.strategy.batch_to_device(batch)
                pl_module(images)
        return {layer: metrics[layer].compute()["nc1"].item() for layer in self._chosen_layers(pl_module)}

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        values = {f"nc1/{layer}": value for layer, value in self.measure(trainer, pl_module).items()}
        self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **values})
        return values

    def _chosen_layers(self, pl_module: L.LightningModule) -> list[str]:
        backbone = getattr(pl_module, "backbone", None)
        if not isinstance(backbone, Backbone) or not isinstance(getattr(pl_module, "head", None), nn.Module):
            raise TypeError(
                "LayerwiseNC1 looks into the backbone and the head of an ImageClassifier, got"
                f" {type(pl_module).__name__}"
            )
        for layer in self.layers or ():
            if layer not in backbone.layer_names:
                raise unknown_name("layer", layer, backbone.layer_names)
        return [layer for layer in backbone.layer_names if self.layers is None or layer in self.layers]

    @contextmanager
    def _watch(self, pl_module: Any, take: Any) -> Iterator[None]:
        """Hold the hooks of the chosen layers."""
        layers = self._chosen_layers(pl_module)
        backbone: Backbone = pl_module.backbone
        with ExitStack() as hooks:
            if STEM in layers:
                hooks.enter_context(watch_input(backbone.get_layer(backbone.block_names[0]), STEM, take))
            blocks = [layer for layer in layers if layer not in (STEM, PENULTIMATE)]
            hooks.enter_context(watch_outputs(backbone.model, blocks, take))
            if PENULTIMATE in layers:
                hooks.enter_context(watch_input(pl_module.head, PENULTIMATE, take))
            yield


def _training_data(trainer: L.Trainer) -> DataLoader[Any]:
    """Return the training split in its own order and, where the datamodule can, without augmentation."""
    from_datamodule = getattr(getattr(trainer, "datamodule", None), "eval_dataloader", None)
    if from_datamodule is not None:
        loader: DataLoader[Any] = from_datamodule("train")
        return loader
    train = trainer.train_dataloader
    if not isinstance(train, DataLoader):
        raise TypeError(f"LayerwiseNC1 needs one DataLoader of training data, got {type(train).__name__}")
    return DataLoader(
        train.dataset, batch_size=train.batch_size, num_workers=train.num_workers, collate_fn=train.collate_fn
    )
