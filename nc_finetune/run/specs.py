"""What a grid is made of: backbones, data sets, methods, heads and losses, each with its options."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from nc_finetune import heads, losses, methods
from nc_finetune._common.trust import check_import_path
from nc_finetune.backbones import LIBRARIES, Backbone, create_backbone
from nc_finetune.callbacks import SolveHead
from nc_finetune.data import ImageData, RandomCropFlip
from nc_finetune.data.bad_images import OnBadImage
from nc_finetune.errors import unknown_name
from nc_finetune.heads import HEAD_NAMES
from nc_finetune.losses import LOSS_NAMES, PickAllLabelsLoss, takes_several_labels
from nc_finetune.methods import METHOD_NAMES, FinetuningMethod, LayerFinetuning

ALL = "all"  # every block, as a key layer
# Images a class, a share of the training split, or all of it.
TrainingSize = int | float | None
ChoiceName = Literal["validation", "folds"]


def split_size(size: TrainingSize) -> tuple[int | None, float | None]:
    """Tell images a class from a share of the training split.

    Example:
        >>> split_size(20), split_size(0.1)
        ((20, None), (None, 0.1))
    """
    return (None, size) if isinstance(size, float) else (size, None)


def _filled_in(text: str, what: str, example: str) -> str:
    filled = os.path.expandvars(text)
    if unset := re.search(r"\$\{\w+\}", filled):
        raise ValueError(f"{what} needs {unset[0]}; export it, e.g. {example}")
    return filled


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A backbone of the grid.

    Attributes:
        name: As for :func:`~nc_finetune.backbones.create_backbone`.
        weights: Likewise; ``${NAME}`` in it stands for a variable of the environment.
        key_layer: The block that layer FT, SCL-FT and side FT tune; ``None`` is the middle one, ``"auto"`` the one that
            short trials choose on the validation split or by folds (:mod:`nc_finetune.selection`), ``"a+b"`` a span of
            adjacent blocks (not of side FT). A list makes a cell of each; ``"all"``, alone or in a list, is every
            block.
        model_options: Further arguments of the library's own constructor.
        options: Further arguments of the backbone, e.g. ``{"features": "projected"}`` of a CLIP.
    """

    name: str
    weights: str | None = "default"
    key_layer: str | list[str] | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def weights_location(self) -> str | None:
        """The weights with the variables of the environment filled in.

        Raises:
            ValueError: If one of them is not set.
        """
        return None if self.weights is None else _filled_in(self.weights, f"the backbone {self.name!r}", "weights")

    def build(self, weights: str | None) -> Backbone:
        """Build the network with the weights that are named."""
        return create_backbone(self.name, weights, model_options=self.model_options, **self.options)

    def with_each_key_layer(self) -> list[BackboneSpec]:
        """Return one specification for each key layer that is listed."""
        if self.key_layer is None or (isinstance(self.key_layer, str) and self.key_layer != ALL):
            return [self]
        listed = [self.key_layer] if isinstance(self.key_layer, str) else self.key_layer
        names = self.build_without_memory().block_names if ALL in listed else ()
        layers = [layer for item in listed for layer in (names if item == ALL else (item,))]
        return [dataclasses.replace(self, key_layer=layer) for layer in layers]

    def build_without_memory(self) -> Backbone:
        """Build the network on the meta device, where it takes neither time nor memory."""
        with torch.device("meta"):
            return self.build(None)


@dataclass(frozen=True, kw_only=True)
class AugmentationSpec:
    """How images of a data set may be augmented; see :class:`~nc_finetune.data.RandomCropFlip`.

    Attributes:
        scale: Least and largest share of the area that is kept.
        ratio: Least and largest ratio of width to height of the box.
        flip: Share of the images that are flipped; 0 where left is not right, as of digits.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def build(self) -> RandomCropFlip:
        """Build it.

        Raises:
            ValueError: If a number is out of range.
        """
        return RandomCropFlip(self.scale, self.ratio, self.flip)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set of the grid; see :class:`~nc_finetune.ImageData` for what is not said here.

    Attributes:
        source: Where the images come from; ``${NAME}`` stands for a variable of the environment, so that a grid names
            no folder of one machine.
        name: Name in results; ``None`` is the source.
        image_size: Height and width of the images in pixels.
        val_size: Images held out for validation, 0 for none. ``None`` holds none out where folds choose; otherwise it
            is that of :class:`~nc_finetune.ImageData`.
        test_size: Images held out for the test.
        max_test_images: Images to take of the source's own test split; ``None`` is all.
        image_column: Column of the images in a table.
        label_column: Column of the labels in a table.
        group: Images of one group are on one side of every split: a column, or a pattern of file names.
        on_bad_image: ``"raise"``, or ``"skip"`` to leave images out that do not decode.
        balance_classes: Draw training images so that every class comes equally often.
        augmentation: What the images allow, for methods that augment.
        samples_per_class: Training sizes of these data in place of those of the grid.
    """

    source: str
    name: str | None = None
    image_size: int = 224
    val_size: int | float | None = None
    test_size: int | float = 0.2
    max_test_images: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    group: str | None = None
    on_bad_image: OnBadImage = "raise"
    balance_classes: bool = False
    augmentation: AugmentationSpec | None = None
    samples_per_class: list[TrainingSize] | None = None

    @property
    def location(self) -> str:
        """The source with the variables of the environment filled in.

        Raises:
            ValueError: If one of them is not set.
        """
        return _filled_in(self.source, f"the data set {(self.name or self.source)!r}", "a folder")

    def build(self, training_size: TrainingSize, seed: int, batch_size: int, num_workers: int) -> ImageData:
        """Build the data module of a training sample; it augments where something is said of that."""
        samples_per_class, train_share = split_size(training_size)
        return ImageData(
            self.location,
            image_size=self.image_size,
            samples_per_class=samples_per_class,
            train_share=train_share,
            seed=seed,
            val_size=self.val_size,
            test_size=self.test_size,
            max_test_images=self.max_test_images,
            batch_size=batch_size,
            num_workers=num_workers,
            image_column=self.image_column,
            label_column=self.label_column,
            group=self.group,
            on_bad_image=self.on_bad_image,
            balance_classes=self.balance_classes,
            batch_transform=None if self.augmentation is None else self.augmentation.build(),
        )


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A fine-tuning method of the grid.

    Attributes:
        method: Name of a class of :mod:`nc_finetune.methods`, or import path of one of your own.
        learning_rates: Candidates, among which the validation split or folds choose: rates of the tuned part of the
            backbone, or of the head where nothing else is tuned. None for a method that trains nothing.
        options: Further arguments of the class; a ``method`` among them, as ProbeFirst has, is a name or the keys
            ``method`` and ``options`` again.
        heads: The classifiers to combine it with; ``None`` is those of the grid.
        solve_head: Solve a head at the end of each fit, and take it or its mean with the trained one; see
            :class:`~nc_finetune.callbacks.SolveHead`. True is of what the head sees; or layers, as ``"later_half"``; or
            its arguments, as ``{layers: later_half, frozen: true}``.
            Where folds choose, they do so by the trained head, and the fit of all images takes the mean of both.
        augment: Augment the training images as the data set allows; nothing of a frozen part is kept then.
        pretrained: Begin with the weights of the backbone; false is a control, with random ones.
        candidates: Values of further options of the class, such as ``{rank: [4, 8, 16]}``, among which folds choose: at
            the rate that is best for the first values, one option after the other, and then the rate once more. A list
            of numbers at whose edge the best one lies is extended by a factor of 2, where rates are extended.
    """

    method: str
    learning_rates: list[float] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    heads: list[HeadSpec] | None = None
    solve_head: bool | str | list[str] | dict[str, Any] = False
    augment: bool = False
    pretrained: bool = True
    candidates: dict[str, list[Any]] | None = None

    def class_to_build(self) -> type[FinetuningMethod]:
        """Return the class, as :meth:`method_class` does."""
        return self.method_class()

    def method_class(self) -> type[FinetuningMethod]:
        """Return the class.

        Raises:
            ValueError: If there is none of that name; the message lists the methods.
        """
        found: type[FinetuningMethod] = find_class("method", self.method, methods, FinetuningMethod, METHOD_NAMES)
        return found

    @property
    def nested(self) -> MethodSpec | None:
        """The method within this one, as ProbeFirst has."""
        inner = self.options.get("method")
        if not inner:
            return None
        return MethodSpec(
            **({"method": inner} if isinstance(inner, str) else inner), learning_rates=self.learning_rates
        )

    def solver(self) -> SolveHead | None:
        """Build what solves a head at the end of a fit, where that is wanted."""
        if not self.solve_head:
            return None
        if isinstance(self.solve_head, dict):
            return SolveHead(**self.solve_head)
        return SolveHead(None if self.solve_head is True else self.solve_head)

    @property
    def first_options(self) -> dict[str, Any]:
        """The first value of each option that folds choose."""
        return {name: values[0] for name, values in (self.candidates or {}).items()}

    @property
    def takes_key_layer(self) -> bool:
        """Whether the method tunes the key layer of the backbone."""
        if self.nested is not None:
            return self.nested.takes_key_layer
        own = {**self.options, **(self.candidates or {})}
        return issubclass(self.method_class(), LayerFinetuning) and "key_layer" not in own

    def build(self, key_layer: str | None) -> FinetuningMethod:
        """Build the method around a key layer, or a span of them, unless its options name one."""
        options = self.first_options | self.options
        if issubclass(self.method_class(), LayerFinetuning):
            span = key_layer.split("+") if key_layer and "+" in key_layer else key_layer
            options.setdefault("key_layer", span)
        if self.nested is not None:
            options["method"] = self.nested.build(key_layer)
        return self.method_class()(**options)


@dataclass(frozen=True, kw_only=True)
class ChoiceSpec:
    """How learning rate, key layer and number of epochs of a run are chosen.

    Attributes:
        by: ``"validation"``: the rate and an automatic key layer by the validation split; all epochs are run.
            ``"folds"``: all three by folds of the training images, on all of which the model is trained again then.
        folds: Folds.
        extend_rates: Extend a list of rates at whose edge the best one lies.
    """

    by: ChoiceName = "validation"
    folds: int = 5
    extend_rates: bool = False

    @property
    def by_folds(self) -> bool:
        """Whether folds choose."""
        return self.by == "folds"

    @property
    def config(self) -> dict[str, Any]:
        """What a result says of it: nothing where it is the usual choice, of which earlier versions had no word."""
        return {} if self == ChoiceSpec() else dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A head of the grid.

    Attributes:
        head: ``"Linear"``, name of a class of :mod:`nc_finetune.heads`, or import path of one of your own.
        options: Further arguments of the class; a ``head`` among them, as BottleneckHead has, is a name or the keys
            ``head`` and ``options`` again.
    """

    head: str = "Linear"
    options: dict[str, Any] = field(default_factory=dict)

    def class_to_build(self) -> type[nn.Module]:
        """Return the class.

        Raises:
            ValueError: If there is none of that name; the message lists the heads.
        """
        if self.head == "Linear":
            return nn.Linear
        found: type[nn.Module] = find_class("head", self.head, heads, nn.Module, ("Linear", *HEAD_NAMES))
        return found

    def build(self) -> Callable[[int, int], nn.Module]:
        """Return what builds the head from the width of the feature and the number of classes.

        Raises:
            ValueError: If there is none of that name; the message lists the heads.
        """
        options = dict(self.options)
        if nested := options.get("head"):
            options["head"] = HeadSpec(**{"head": nested} if isinstance(nested, str) else nested).build()
        return partial(self.class_to_build(), **options)


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """A training loss of the grid.

    Attributes:
        loss: ``"CrossEntropyLoss"``, name of a class of :mod:`nc_finetune.losses`, or import path of one of your own;
            ``None`` is cross-entropy, and where images have several labels PickAllLabelsLoss.
        options: Further arguments of the class; a ``loss`` among them, as ClassBalanced has, is a name or the keys
            ``loss`` and ``options`` again.
    """

    loss: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def class_to_build(self) -> type[nn.Module] | None:
        """Return the class; ``None`` where the labels of the data decide.

        Raises:
            ValueError: If there is none of that name; the message lists the losses.
        """
        if self.loss is None or self.loss == "CrossEntropyLoss":
            return None if self.loss is None else nn.CrossEntropyLoss
        names = ("CrossEntropyLoss", *LOSS_NAMES)
        found: type[nn.Module] = find_class("loss", self.loss, losses, nn.Module, names)
        return found

    def build(self, multi_label: bool) -> nn.Module:
        """Build the loss.

        Args:
            multi_label: Whether the images have several labels.

        Raises:
            ValueError: If there is none of that name; the message lists the losses.
        """
        options = dict(self.options)
        if nested := options.get("loss"):
            options["loss"] = LossSpec(**{"loss": nested} if isinstance(nested, str) else nested).build(multi_label)
        found = self.class_to_build() or (PickAllLabelsLoss if multi_label else nn.CrossEntropyLoss)
        return found(**options)

    def build_for(self, data: ImageData) -> nn.Module:
        """Build the loss for some data.

        Raises:
            ValueError: If it takes one label an image and the data have several, or the other way round.
        """
        built = self.build(data.multi_label)
        if takes_several_labels(built) != data.multi_label:
            has, other = ("several labels", "one") if data.multi_label else ("one label", "several")
            raise ValueError(
                f"the images of {data.source!r} have {has} each, and {self.loss} takes {other}; leave losses out of the"
                " grid, or give such data a grid of their own"
            )
        return built


def network_class(name: str) -> Callable[..., Backbone] | None:
    """Return the class of a backbone by the library that its name begins with; ``None`` where there is none."""
    return LIBRARIES.get(name.rpartition(":")[0] or "timm")


def find_class(kind: str, path: str, home: ModuleType, base: type, names: Sequence[str]) -> Any:
    """Find a class by its name in a room of ours, or by its import path."""
    module, _, name = path.rpartition(".")
    if module:
        check_import_path(path)
    try:
        found = getattr(importlib.import_module(module) if module else home, name)
    except (ImportError, AttributeError) as error:
        raise unknown_name(kind, path, names) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise unknown_name(kind, path, names)
    return found
