"""A benchmark grid: backbones x data sets x methods x training sizes x seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nc_finetune import heads, methods
from nc_finetune.backbones import Backbone, create_backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.errors import unknown_name
from nc_finetune.functional.variability import Normalize
from nc_finetune.heads import HEAD_NAMES
from nc_finetune.methods import METHOD_NAMES, FinetuningMethod, LayerFinetuning


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A backbone of the grid.

    Attributes:
        name: As for :func:`~nc_finetune.backbones.create_backbone`.
        weights: Likewise.
        key_layer: The block that layer FT and SCL-FT tune; ``None`` is the middle one.
        model_options: Further arguments of the library's own constructor.
        options: Further arguments of the backbone, e.g. ``{"features": "projected"}`` of a CLIP.
    """

    name: str
    weights: str | None = "default"
    key_layer: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A data set of the grid; see :class:`~nc_finetune.ImageData` for what is not said here.

    Attributes:
        source: Where the images come from; ``${NAME}`` stands for a variable of the environment, so that a grid names
            no folder of one machine.
        name: Name in results; ``None`` is the source.
        image_size: Height and width of the images in pixels.
        val_size: Images held out for validation.
        test_size: Images held out for the test.
        max_test_images: Images to take of the source's own test split; ``None`` is all.
        image_column: Column of the images in a table.
        label_column: Column of the labels in a table.
    """

    source: str
    name: str | None = None
    image_size: int = 224
    val_size: int | float | None = None
    test_size: int | float = 0.2
    max_test_images: int | None = None
    image_column: str | None = None
    label_column: str | None = None

    def build(self, samples_per_class: int | None, seed: int, batch_size: int, num_workers: int) -> ImageData:
        """Build the data module of a training sample.

        Raises:
            ValueError: If the source names a variable of the environment that is not set.
        """
        source = os.path.expandvars(self.source)
        if unset := re.search(r"\$\{\w+\}", source):
            raise ValueError(f"the data set {self.name or self.source!r} needs {unset[0]}; export it, e.g. a folder")
        return ImageData(
            source,
            image_size=self.image_size,
            samples_per_class=samples_per_class,
            seed=seed,
            val_size=self.val_size,
            test_size=self.test_size,
            max_test_images=self.max_test_images,
            batch_size=batch_size,
            num_workers=num_workers,
            image_column=self.image_column,
            label_column=self.label_column,
        )


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A fine-tuning method of the grid.

    Attributes:
        method: Name of a class of :mod:`nc_finetune.methods`, or import path of one of your own.
        learning_rates: Candidates, among which the validation split chooses: rates of the tuned part of the backbone,
            or of the head where nothing else is tuned. None for a method that trains nothing.
        options: Further arguments of the class; a ``method`` among them, as ProbeFirst has, is a name or the keys
            ``method`` and ``options`` again.
    """

    method: str
    learning_rates: list[float] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def method_class(self) -> type[FinetuningMethod]:
        """Return the class.

        Raises:
            ValueError: If there is none of that name; the message lists the methods.
        """
        found: type[FinetuningMethod] = _find_class("method", self.method, methods, FinetuningMethod, METHOD_NAMES)
        return found


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

    def build(self) -> Callable[[int, int], nn.Module]:
        """Return what builds the head from the width of the feature and the number of classes.

        Raises:
            ValueError: If there is none of that name; the message lists the heads.
        """
        if self.head == "Linear":
            return partial(nn.Linear, **self.options)
        options = dict(self.options)
        if nested := options.get("head"):
            options["head"] = HeadSpec(**{"head": nested} if isinstance(nested, str) else nested).build()
        return partial(_find_class("head", self.head, heads, nn.Module, ("Linear", *HEAD_NAMES)), **options)


def _find_class(kind: str, path: str, home: ModuleType, base: type, names: Sequence[str]) -> Any:
    """Find a class by its name in a room of ours, or by its import path."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module) if module else home, name)
    except (ImportError, AttributeError) as error:
        raise unknown_name(kind, path, names) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise unknown_name(kind, path, names)
    return found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a grid share.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a batch.
        head_learning_rate: Rate of the head beside a tuned backbone.
        normalize: Convention of NC1.
        num_workers: Processes that decode images.
    """

    epochs: int = 15
    batch_size: int = 32
    head_learning_rate: float = 1e-3
    normalize: Normalize = "none"
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a backbone, a data set, a method, a training size and a seed."""

    backbone: BackboneSpec
    dataset: DatasetSpec
    method: MethodSpec
    head: HeadSpec
    samples_per_class: int | None
    seed: int
    settings: Settings
    cache: bool = True

    @property
    def dataset_name(self) -> str:
        """Name of the data set in results."""
        return self.dataset.name or self.dataset.source

    @property
    def run_id(self) -> str:
        """A readable name that ends in a hash of everything that the run depends on."""
        decisive = {name: value for name, value in dataclasses.asdict(self).items() if name != "cache"}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
        size = "all" if self.samples_per_class is None else f"n{self.samples_per_class}"
        method = self.method.method_class().name
        words = f"{self.dataset_name}-{self.backbone.name}-{method}-{size}-s{self.seed}-{digest}"
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", words)

    def build_method(self) -> FinetuningMethod:
        """Build the method; one that tunes a block takes the key layer of the backbone unless told otherwise."""
        return self._build_method(self.method)

    def _build_method(self, spec: MethodSpec) -> FinetuningMethod:
        cls, options = spec.method_class(), dict(spec.options)
        if issubclass(cls, LayerFinetuning):
            options.setdefault("key_layer", self.backbone.key_layer)
        if nested := options.get("method"):
            nested = {"method": nested} if isinstance(nested, str) else nested
            options["method"] = self._build_method(MethodSpec(**nested, learning_rates=spec.learning_rates))
        return cls(**options)

    def build_backbone(self) -> Backbone:
        """Load the pre-trained weights anew."""
        spec = self.backbone
        return create_backbone(spec.name, spec.weights, model_options=spec.model_options, **spec.options)

    def build_model(self, backbone: Backbone, num_classes: int, learning_rate: float | None) -> ImageClassifier:
        """Build a fresh model around a backbone."""
        method = self.build_method()
        return ImageClassifier(
            backbone,
            num_classes,
            method=method,
            head=self.head.build() if method.own_head is None else None,
            learning_rate=learning_rate,
            head_learning_rate=self.settings.head_learning_rate,
        )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All combinations of backbones, data sets, methods, training sizes and seeds.

    Attributes:
        backbones: The pre-trained networks.
        datasets: The downstream data.
        methods: The fine-tuning methods with their candidate learning rates.
        heads: The classifiers, each with every method that does not bring its own.
        samples_per_class: Training sizes in images a class; ``None`` is the whole training split.
        seeds: Seeds of the training sample, of the head's initialisation and of the order of the batches.
        settings: What all runs share.
        cache: Compute once a training sample what frozen prefixes give, for all runs on it; results are the same.

    Raises:
        ValueError: If a list is empty, or a method is unknown or lacks its learning rates.
    """

    backbones: list[BackboneSpec]
    datasets: list[DatasetSpec]
    methods: list[MethodSpec]
    heads: list[HeadSpec] = field(default_factory=lambda: [HeadSpec()])
    samples_per_class: list[int | None] = field(default_factory=lambda: [None])
    seeds: list[int] = field(default_factory=lambda: [0])
    settings: Settings = field(default_factory=Settings)
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("backbones", "datasets", "methods", "heads", "samples_per_class", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} of a grid must not be empty")
        for method in self.methods:
            if method.method_class().trains and min(method.learning_rates, default=0) <= 0:
                raise ValueError(f"{method.method} needs learning_rates above 0, got {method.learning_rates}")
        for cell in self.cells():
            cell.build_method()
            cell.head.build()

    def cells(self) -> list[Cell]:
        """Return every run; seeds outermost, so that a grid that is cut short compares what it has fairly."""
        axes = itertools.product(
            self.datasets, self.backbones, self.samples_per_class, self.seeds, self.methods, self.heads
        )
        return [
            Cell(
                dataset=dataset,
                backbone=backbone,
                samples_per_class=samples,
                seed=seed,
                method=method,
                head=head,
                settings=self.settings,
                cache=self.cache,
            )
            for dataset, backbone, samples, seed, method, head in axes
            if head is self.heads[0] or method.method_class().trains
        ]


def read_grid(path: Path) -> Grid:
    """Read a grid from YAML.

    Args:
        path: The file.

    Returns:
        The grid.

    Raises:
        ValueError: If the file does not describe a grid.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Grid)
    try:
        config = parser.parse_path(path)
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{path} is not a benchmark grid: {error}") from error
    return Grid(**parser.instantiate(config))
