"""Backbone + fine-tuning method + head + loss + metrics, as one LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import Self

from nc_finetune._common.data_facts import told_by
from nc_finetune._common.lightning_internals import OF_MODULE, forget_averages, is_attached, require
from nc_finetune.backbones import Backbone, FrozenPrefix, PrefixOutput, create_backbone, resumed
from nc_finetune.callbacks import HeadAlignment, ReadoutSolver
from nc_finetune.callbacks.average_epochs import catch_up
from nc_finetune.callbacks.order import put_in_order
from nc_finetune.classifier._arguments import DEFAULT_WEIGHTS, build_head, check_parts, choose_head
from nc_finetune.classifier._batches import check_images, images_of, labelled_images
from nc_finetune.classifier._data import take_facts
from nc_finetune.classifier._expected_warnings import ExpectedWarnings
from nc_finetune.classifier._frozen import FrozenPart, check_thawed
from nc_finetune.classifier._modes import TrainModes
from nc_finetune.classifier._optimization import adopt_older_schedules, follow_this_fit, optimizer_and_schedule
from nc_finetune.classifier._scores import LoaderScores
from nc_finetune.classifier._taken_head import TakenHead
from nc_finetune.classifier._weight_writers import (
    average_switches,
    keep_frozen_norms,
    refuse_writers,
    tell_unfinished_averages,
)
from nc_finetune.classifier.checkpoint import (
    checkpoint_arguments,
    describe_into,
    hyperparameters,
    load_state,
    read_checkpoint,
    take_doubt,
    take_key_layer,
    take_layers,
)
from nc_finetune.doubt import Doubts, DoubtState
from nc_finetune.doubt.state import NO_STATISTICS, PREFIX
from nc_finetune.errors import TrainingStoppedError
from nc_finetune.files.class_config import describe_if_possible
from nc_finetune.files.delta import record_base
from nc_finetune.files.delta_io import read_and_write_deltas
from nc_finetune.losses import (
    has_independent_classes,
    loss_value,
    match_loss_state,
    mean_and_weight,
    takes_several_labels,
)
from nc_finetune.methods import AUTO, FinetuningMethod, LinearProbe, ScheduleName, check_schedule, parameter_groups
from nc_finetune.metrics import MAIN_METRICS
from nc_finetune.passes.batches import changes_batches
from nc_finetune.passes.evaluation import is_sharded

Batch = tuple[Tensor | PrefixOutput, Tensor]


class DivergedError(TrainingStoppedError):
    """Training cannot go on because the loss is not finite."""


class ImageClassifier(L.LightningModule):
    """Fine-tune a pre-trained backbone for image classification.

    Batches are ``(images, labels)``, or mappings with both (``image`` and ``label``, ``pixel_values`` and ``labels``,
    ...), once transfer hooks have been called: images of shape ``(N, 3, H, W)``, uint8 in 0...255 or floating point in
    0...1 (the backbone normalises them as its weights want), labels of shape ``(N,)``, integers in
    ``[0, num_classes)``.

    With a loss for several labels a sample (:class:`~nc_finetune.losses.PickAllLabelsLoss`, ``BCEWithLogitsLoss``,
    ``MultiLabelSoftMarginLoss``, or any with an attribute ``multilabel = True``) labels have shape
    ``(N, num_classes)``, 0 or 1.

    Logs ``train/loss``, and of ``val/`` and ``test/`` ``loss``, ``accuracy`` and ``balanced_accuracy``, in which every
    class counts the same (shares in ``[0, 1]``); for several labels ``average_precision`` in place of both, see
    :func:`~nc_finetune.metrics.classification_metrics`. The second and further loaders of a split have values of their
    own, ``val/loss/dataloader_idx_1`` and so on; those of the first keep their names, so that they can be monitored.

    The optimizer gets up to three groups, each with its own learning rate: ``head`` (and the loss, should it have
    parameters), ``block``, the key layer, and ``backbone``, what else is tuned of it. All follow one schedule, step by
    step; a fit that is resumed for longer falls along all of its steps, those before included. The defaults did best
    with AdamW on few images a class, batches of 32 and EfficientNet-Lite0: 1e-3 for the head (1e-2 cost 4 points), 3e-3
    for a key layer, biases, norms and adapters, 3e-4 for everything. They were not measured on transformers: try lower
    ones there.

    Args:
        backbone: Name of a timm model, ``"open_clip:..."`` for a visual tower of open_clip, or a backbone.
        num_classes: K, at least 2.
        weights: Weights of a backbone that is given by name; see
            :func:`~nc_finetune.backbones.create_backbone`.
        method: What is tuned; ``None`` is :class:`~nc_finetune.methods.LinearProbe`.
        head: Builds the classifier from the width of the feature and the number of classes; ``torch.nn.Linear`` or
            one of :mod:`nc_finetune.heads`. ``None`` is the method's own, as of zero-shot, or otherwise linear.
        loss: Takes logits ``(N, K)`` and labels; ``None`` is cross-entropy. See :mod:`nc_finetune.losses`.
        learning_rate: Rate of the tuned part of the backbone (of the key layer, where the method has one), or of the
            head where nothing else is tuned; ``None`` takes the method's default (or ``head_learning_rate``).
        head_learning_rate: Rate of the head beside a tuned backbone.
        rest_learning_rate: Rate of what is tuned beside a key layer, as ``FullFinetuning(key_layer=...)`` does;
            ``None`` takes the method's default.
        optimizer: Builds the optimizer from parameter groups that carry their learning rates.
        schedule: How the rates go: ``"cosine"`` or ``"linear"`` fall to zero at the end, ``"constant"`` stays.
        warmup: Steps over which the rates rise before that; below 1 their share of all steps.

    Attributes:
        split: The backbone in two parts, while :class:`~nc_finetune.callbacks.PrefixCache` keeps what the first gives;
            batches may then hold that in place of images. See :class:`~nc_finetune.backbones.FrozenPrefix`.
        doubt: What :class:`~nc_finetune.callbacks.KeepStatistics` has kept of the training images; ``None`` where that
            is nothing, as from the beginning of a fit on.
        taken_head: What :class:`~nc_finetune.callbacks.SolveHead` takes in place of the trained head, and back.
        nothing_to_train: Let epochs end before their first step, once :class:`~nc_finetune.callbacks.ProbePath` has
            solved the head.

    Raises:
        ValueError: If ``num_classes`` is below 2, the backbone, its weights or the key layer are unknown, or a head is
            given to a method that brings its own.
        TypeError: If backbone, method, head or loss is something else, such as a class where an object belongs.
        DivergedError: At the end of a training epoch in which the loss was not finite.

    Example:
        >>> from nc_finetune.methods import SkipConnectionFinetuning
        >>> model = ImageClassifier("test_vit", 10, weights=None, method=SkipConnectionFinetuning("blocks.3"))
        >>> model.tuned_parameters, model.total_parameters
        (42378, 306890)
    """

    def __init__(
        self,
        backbone: str | Backbone,
        num_classes: int,
        *,
        weights: str | None = DEFAULT_WEIGHTS,
        method: FinetuningMethod | None = None,
        head: Callable[[int, int], nn.Module] | None = None,
        loss: nn.Module | None = None,
        learning_rate: float | None = None,
        head_learning_rate: float = 1e-3,
        rest_learning_rate: float | None = None,
        optimizer: Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer] = torch.optim.AdamW,
        schedule: ScheduleName = "cosine",
        warmup: int | float = 0,
    ) -> None:
        super().__init__()
        require(L.LightningModule, *OF_MODULE)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}; one class leaves nothing to classify")
        check_parts(backbone, weights, method, head, loss)
        check_schedule(schedule, warmup)
        self.num_classes = num_classes
        self.backbone = create_backbone(backbone, weights) if isinstance(backbone, str) else backbone
        self.method = method or LinearProbe()
        head_factory = choose_head(self.method, head)
        self.head = build_head(head_factory, self.method.num_features(self.backbone), num_classes)
        self.head_config = describe_if_possible(head_factory)
        self.loss = loss or nn.CrossEntropyLoss()
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.rest_learning_rate = rest_learning_rate
        self.optimizer = optimizer
        self.schedule: ScheduleName = schedule
        self.warmup = warmup
        self.multilabel = takes_several_labels(self.loss)
        self.independent_classes = has_independent_classes(self.loss)
        self.val_scores = LoaderScores(num_classes, self.multilabel)
        self.test_scores = LoaderScores(num_classes, self.multilabel)
        self.automatic_optimization = self.method.trains
        self.split: FrozenPrefix | None = None
        self.nothing_to_train = False
        self._diverged = torch.tensor(False)  # no buffer: nobody is to average or to broadcast it
        self._resting: list[nn.Parameter] = []
        self.doubt: DoubtState | None = None
        self.taken_head = TakenHead(self)
        self._frozen = FrozenPart(self)
        self._modes = TrainModes()
        self._expected_warnings = ExpectedWarnings()
        self.freeze_untuned()
        self.tell_hyperparameters()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override] # which holds how the model is built, and no hparams_file
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        strict: bool = True,
        weights_only: bool | None = None,
        *,
        trust: bool = False,
        **arguments: Any,
    ) -> Self:
        """Build the model that a checkpoint of Lightning's describes, and load its weights.

        The weights that the backbone was pre-trained with need not be there: the checkpoint has all.

        Args:
            checkpoint_path: A ``.ckpt`` file, or an open one.
            map_location: Device of the model; ``None`` is the CPU.
            strict: Refuse a checkpoint with other names than the model.
            weights_only: ``False`` unpickles what the file holds, which runs what it says; for files of one's own.
            trust: Let the file name other classes than parts of models; importing them runs their code.
            arguments: Win over those in the checkpoint, as what it cannot describe: a loss with weights, a head from a
                function.

        Returns:
            The model, in train mode as a new one.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or of another model, or does not say how a part is built.

        Warns:
            UserWarning: If the loss or the optimizer cannot be described, and the default stands in its place.
        """
        where = str(checkpoint_path)
        content = read_checkpoint(checkpoint_path, map_location or "cpu", weights_only is not False)
        model = cls(**checkpoint_arguments(content, cls, where, trust=trust, given=arguments))
        model.on_load_checkpoint(content)
        load_state(model, content, where, strict)
        return model if map_location is None else model.to(next(iter(content["state_dict"].values())).device)

    @property
    def tuned_parameters(self) -> int:
        """Number of parameters that are trained: of the backbone, of the head and of the method itself."""
        beside = (p for part in (self.head, self.method) for p in part.parameters() if p.requires_grad)
        tuned = {id(p): p for p in (*self.method.tuned_parameters(self.backbone), *beside)}
        return sum(parameter.numel() for parameter in tuned.values())

    @property
    def total_parameters(self) -> int:
        """Number of parameters of the backbone without its original classifier, and of the head."""
        return sum(parameter.numel() for part in (self.backbone, self.head) for parameter in part.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape ``(N, num_classes)``."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return what the head sees, shape ``(N, num_features)``, where ``split`` is set also of what it has kept."""
        with resumed(images, self.split) as given:
            return self.method.features(self.backbone, given)

    @torch.no_grad()
    def doubts(self, images: Tensor, coverage: float = 0.9) -> Doubts:
        """Return tempered probabilities, how unlike the training images are, and sets of classes, of images.

        Args:
            images: Shape ``(N, 3, H, W)``.
            coverage: How often the set is to hold the right class.

        Raises:
            ValueError: If the model has no statistics of its training images, or the coverage is out of range.
        """
        if self.doubt is None:
            raise ValueError(NO_STATISTICS)
        features = self.features(images)
        found: Doubts = self.doubt(features, self.head(features), coverage)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, and statistics of training images where the state holds some; others are forgotten.

        Raises:
            ValueError: If the statistics are damaged, or of other classes.
            RuntimeError: If names or shapes do not fit.
        """
        if strict or any(name.startswith(PREFIX) for name in state_dict):
            found = DoubtState.of_state(state_dict, self.num_classes)
            self.doubt = None if found is None else found.to(self.device)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def freeze_untuned(self) -> None:
        """Leave gradients and train mode to what the method tunes; every fit begins with it.

        Another model on the same backbone, or its user, may have thawed or frozen something in between.
        """
        for parameter in self._resting:
            parameter.requires_grad_(True)
        self._resting = []
        self.method.freeze(self.backbone)
        self.train()

    def freeze(self) -> ImageClassifier:
        """Freeze everything, for inference, until the next fit or :meth:`unfreeze`."""
        self._resting += [parameter for parameter in self.parameters() if parameter.requires_grad]
        super().freeze()
        return self

    def unfreeze(self) -> ImageClassifier:
        """Thaw what is tuned, and nothing else."""
        self.freeze_untuned()
        return self

    def train(self, mode: bool = True) -> ImageClassifier:
        """Switch modes, but leave what is frozen in eval mode, whoever asks."""
        super().train(mode)
        if mode:
            self.method.set_modes(self.backbone)
            self._modes.note((self.backbone, self.method, self.head))
        return self

    def tell_hyperparameters(self) -> None:
        """Note what loggers are told of the model as it is now."""
        self.save_hyperparameters(hyperparameters(self))

    def setup(self, stage: str) -> None:
        """Compare ``num_classes`` with the data, where the data know."""
        self._expected_warnings.forget()
        if stage == "fit":
            self._expected_warnings.expect(has_optimizer=self.method.trains)
            if self.method.key_layer == AUTO and self.trainer.ckpt_path is None:
                raise ValueError(
                    "key_layer='auto' is chosen before the fit by the callback nc_finetune.selection.ChooseKeyLayer;"
                    " add it to the trainer, or name a block"
                )
        take_facts(self, told_by(self.trainer))
        if not is_sharded(self.trainer.strategy):
            read_and_write_deltas(self.trainer, self)
        if stage == "fit":  # not later: a checkpoint that is resumed from holds tuned weights
            record_base(self)
            keep_frozen_norms(self.trainer.strategy, self)
            average_switches(self.trainer.callbacks)  # type: ignore[attr-defined]
        else:
            forget_averages(self.trainer.callbacks)  # type: ignore[attr-defined]

    def configure_callbacks(self) -> list[L.Callback]:
        """Bring along what solves a head, and what turns a fixed one towards the class means.

        Raises:
            ValueError: If a callback or a plugin of the trainer would change or thaw what is frozen.
        """
        fits = is_attached(self) and self.trainer.state.fn == "fit"
        if fits:
            self.taken_head.put_back()
            self.doubt = None  # it is of the weights before
            put_in_order(self.trainer.callbacks)  # type: ignore[attr-defined]
        brought: list[L.Callback] = [HeadAlignment()] if HeadAlignment.is_needed(self.head) else []
        if fits:
            self.freeze_untuned()
            refuse_writers(self.trainer, self)
            if ReadoutSolver.is_needed(self):
                brought.append(ReadoutSolver())
        return brought

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Let hooks see images alone: what a prefix gave has been through them."""
        return batch if self._is_kept(batch) else super()._on_before_batch_transfer(batch, dataloader_idx)

    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Check a batch before it leaves the CPU, where looking costs nothing, or behind hooks that may change it."""
        if self._is_kept(batch):
            return move_data_to_device(batch, device or self.device)
        if changes_batches(self.trainer, ("transfer_batch_to_device", "on_after_batch_transfer")):
            # Whoever has hooks may scale images as he likes.
            return self._checked(super()._apply_batch_transfer_handler(batch, device, dataloader_idx), scale=False)
        return super()._apply_batch_transfer_handler(self._checked(batch), device, dataloader_idx)

    def _is_kept(self, batch: Any) -> bool:
        return self.split is not None and self.split.holds(batch)

    def _checked(self, batch: Any, scale: bool = True) -> Any:
        if self.trainer.predicting:
            return check_images(images_of(batch), scale)
        return labelled_images(batch, self.num_classes, self.multilabel, scale)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over what is tuned, and its schedule; none for a method that trains nothing."""
        self.freeze_untuned()
        self.tell_hyperparameters()  # a key layer may have been chosen since
        self._frozen.begin()
        if not self.method.trains:
            return None
        optimizer = self.optimizer(self._parameter_groups())
        return optimizer_and_schedule(optimizer, self.schedule, self.warmup, self.trainer.estimated_stepping_batches)

    def on_train_start(self) -> None:
        """Go on with the rates of this fit, where the checkpoint is of a shorter or a longer one."""
        self.method.start_epoch(self.current_epoch)  # where a run resumes in the midst of one
        self.train()
        self._frozen.let_go()
        self._expected_warnings.forget()
        check_thawed(self, self.trainer.optimizers)  # says it better than a schedule that meets a group too many
        follow_this_fit(self.trainer.lr_scheduler_configs)

    def on_train_epoch_start(self) -> None:
        """Put frozen parts back to what they were, and the tuned part into train mode, whatever happened in between.

        Raises:
            ValueError: If an optimizer holds what is frozen.
        """
        self._frozen.restore()
        if check_thawed(self, self.trainer.optimizers):
            self.freeze_untuned()
        self.method.start_epoch(self.current_epoch)
        self.train()
        self._frozen.let_go()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Do so again where a callback has switched modes within the epoch."""
        if self._modes.are_switched:
            self.train()
        if len(batch[1]) == 1:
            self._modes.keep_statistics(self, self.trainer.world_size)
        return -1 if self.nothing_to_train else None  # Lightning's word for the end of the epoch

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let statistics be taken again after a batch of one image."""
        self._modes.take_statistics()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        inputs, labels = batch
        loss = loss_value(self.loss, self(inputs), labels)
        self._diverged = self._diverged.to(loss.device) | ~loss.detach().isfinite()
        self.log("train/loss", loss, batch_size=len(labels))
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop if a loss of this epoch was not finite; looking at every step would wait for the device each time.

        Where nothing is trained no step is counted, so that ``max_steps`` would never come: one epoch is all.
        """
        self._frozen.align_averages()
        if not self.method.trains and self.trainer.max_epochs in (None, -1):
            self.trainer.should_stop = True
        if self.trainer.strategy.reduce_boolean_decision(bool(self._diverged), all=False):
            self._diverged = torch.tensor(False)
            raise DivergedError(
                f"the training loss was not finite in epoch {self.current_epoch}: lower the learning rate"
                f" (now {[group['lr'] for group in self._parameter_groups()]}) or look for broken images"
            )

    def on_train_end(self) -> None:
        """Say which frozen weights somebody has written, and which average came to nothing."""
        self._frozen.end()
        if self.method.trains and not self.nothing_to_train:
            tell_unfinished_averages(self.trainer)

    def on_validation_start(self) -> None:
        """Begin with scores that are empty, one set for each loader."""
        self.val_scores.begin(self.trainer.val_dataloaders, self.device)
        self._frozen.align_averages()  # before they take the place of the weights

    def on_test_start(self) -> None:
        """The same."""
        self.test_scores.begin(self.trainer.test_dataloaders, self.device)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and accuracy of a validation batch."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and accuracy of a test batch."""
        self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return class probabilities, shape ``(N, num_classes)``, of images or of (images, ...).

        A softmax, at the temperature that statistics of the training images give where they are kept; also for several
        labels an image where a pick-all-labels loss trains it, which draws the probabilities of m labels to 1/m each. A
        sigmoid of each class where the loss treats classes on their own, as ``BCEWithLogitsLoss`` does.
        """
        logits = self(images_of(batch))
        return self._probabilities(logits) if self.doubt is None else self.doubt.probabilities(logits)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how the model is built, so that it can be exported and used without its recipe."""
        describe_into(checkpoint, self)
        self._frozen.align_averages()  # of which the checkpoint may hold tensors

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use the head that the checkpoint is of, and tune its block, where trials choose it: shapes may be the same.

        Raises:
            ValueError: If the model names another block itself, or a fit is to go on from a head that was taken after
                one.
        """
        self.taken_head.follow(checkpoint)
        take_doubt(self, checkpoint)
        match_loss_state(self.loss, checkpoint.get("state_dict", {}))
        adopt_older_schedules(checkpoint)
        take_layers(self, checkpoint)
        if take_key_layer(self.method, self.backbone, checkpoint):
            self.freeze_untuned()
        if is_attached(self):
            catch_up(self)  # averages were made before; their weights come next

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.independent_classes else torch.softmax(logits.float(), dim=1)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(
            self.backbone,
            self.method,
            (self.head, self.loss),
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            rest_learning_rate=self.rest_learning_rate,
        )

    def _evaluate(self, stage: str, batch: Batch, loader: int) -> None:
        inputs, labels = batch
        logits = self(inputs)
        loss, probabilities = mean_and_weight(self.loss, logits, labels), self._probabilities(logits)
        scores: LoaderScores = getattr(self, f"{stage}_scores")
        for name, metric, place in scores.update(loader, loss, probabilities, labels):
            self.log(
                f"{stage}/{name}/dataloader_idx_{loader}" if loader else f"{stage}/{name}",
                metric,
                prog_bar=stage == "val" and name in MAIN_METRICS and not loader,
                batch_size=len(labels),
                add_dataloader_idx=False,
                metric_attribute=f"{stage}_scores.{place}",
            )
