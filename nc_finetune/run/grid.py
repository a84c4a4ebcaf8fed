"""A benchmark grid: backbones x data sets x methods x heads x losses x training sizes x seeds."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nc_finetune.backbones import Backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.functional.variability import Normalize
from nc_finetune.methods import FinetuningMethod
from nc_finetune.run.checks import grid_problems
from nc_finetune.run.resolving import cell_config, name_of
from nc_finetune.run.specs import (
    ALL,
    BackboneSpec,
    DatasetSpec,
    HeadSpec,
    LossSpec,
    MethodSpec,
    TrainingSize,
)

_USUAL_LOSS = LossSpec()


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
    """One run: a backbone, a data set, a method, a head, a loss, a training size and a seed."""

    backbone: BackboneSpec
    dataset: DatasetSpec
    method: MethodSpec
    head: HeadSpec
    samples_per_class: TrainingSize
    seed: int
    settings: Settings
    loss: LossSpec = _USUAL_LOSS
    cache: bool = True

    @property
    def dataset_name(self) -> str:
        """Name of the data set in results."""
        return self.dataset.name or self.dataset.source

    @cached_property
    def run_id(self) -> str:
        """A readable name that ends in a hash of everything that the run depends on."""
        return name_of(self)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that the run depends on, as its result says it."""
        return cell_config(self)

    @property
    def key_layer(self) -> str | None:
        """The one key layer of the cell."""
        layer = self.backbone.key_layer
        if isinstance(layer, list) or layer == ALL:
            raise ValueError(f"a cell has one key layer, got {layer!r}; Grid.cells() makes a cell of each")
        return layer

    def with_key_layer(self, layer: str) -> Cell:
        """Return the cell with another key layer, e.g. the one that was chosen for ``"auto"``."""
        return dataclasses.replace(self, backbone=dataclasses.replace(self.backbone, key_layer=layer))

    def build_method(self) -> FinetuningMethod:
        """Build the method; one that tunes a block takes the key layer of the backbone unless told otherwise."""
        return self.method.build(self.key_layer)

    def build_backbone(self) -> Backbone:
        """Load the pre-trained weights anew."""
        return self.backbone.build(self.backbone.weights)

    def build_model(self, backbone: Backbone, data: ImageData, learning_rate: float | None) -> ImageClassifier:
        """Build a fresh model around a backbone, for the classes of some data."""
        method = self.build_method()
        return ImageClassifier(
            backbone,
            data.num_classes,
            method=method,
            head=self.head.build() if method.own_head is None else None,
            loss=self.loss.build_for(data),
            learning_rate=learning_rate,
            head_learning_rate=self.settings.head_learning_rate,
        )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All combinations of backbones, data sets, methods, heads, losses, training sizes and seeds.

    Attributes:
        backbones: The pre-trained networks.
        datasets: The downstream data.
        methods: The fine-tuning methods with their candidate learning rates.
        heads: The classifiers, each with every method that neither names others nor brings its own.
        losses: The training losses; by default the one that suits the labels of the data.
        samples_per_class: Training sizes: images a class, or a share of the training split in ``(0, 1)``; ``None`` is
            the whole split.
        seeds: Seeds of the training sample, of the head's initialisation and of the order of the batches.
        settings: What all runs share.
        cache: Compute once a training sample what frozen prefixes give, for all runs on it; results are the same.

    Raises:
        ValueError: If anything in it is unknown, out of range or there twice; the message lists all of it.
    """

    backbones: list[BackboneSpec]
    datasets: list[DatasetSpec]
    methods: list[MethodSpec]
    heads: list[HeadSpec] = field(default_factory=lambda: [HeadSpec()])
    losses: list[LossSpec] = field(default_factory=lambda: [LossSpec()])
    samples_per_class: list[TrainingSize] = field(default_factory=lambda: [None])
    seeds: list[int] = field(default_factory=lambda: [0])
    settings: Settings = field(default_factory=Settings)
    cache: bool = True

    def __post_init__(self) -> None:
        problems = grid_problems(self)
        if len(problems) == 1:
            raise ValueError(problems[0])
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise ValueError(f"the grid cannot run, for {len(problems)} reasons:\n{lines}")

    def cells(self) -> list[Cell]:
        """Return every run; seeds outermost, so that a grid that is cut short compares what it has fairly."""
        expanded = {id(backbone): backbone.with_each_key_layer() for backbone in self.backbones}
        axes = itertools.product(self.seeds, self.datasets, self.samples_per_class, self.backbones, self.methods)
        return [
            Cell(
                dataset=dataset,
                backbone=chosen,
                samples_per_class=samples,
                seed=seed,
                method=dataclasses.replace(method, heads=None),  # a cell has one
                head=head,
                loss=loss,
                settings=self.settings,
                cache=self.cache,
            )
            for seed, dataset, samples, backbone, method in axes
            for head in self._heads_of(method)
            for loss in (self.losses if method.method_class().trains else self.losses[:1])
            for chosen in _key_layers_of(method, backbone, expanded[id(backbone)])
        ]

    def _heads_of(self, method: MethodSpec) -> list[HeadSpec]:
        heads = self.heads if method.heads is None else method.heads
        has_choice = method.method_class().trains and method.build(None).own_head is None
        return heads if has_choice else heads[:1]


def _key_layers_of(method: MethodSpec, backbone: BackboneSpec, each: list[BackboneSpec]) -> list[BackboneSpec]:
    """Give a method that tunes no block one cell, however many key layers are listed."""
    if each == [backbone] or method.takes_key_layer:
        return each
    return [dataclasses.replace(backbone, key_layer=None)]


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
        given = parser.instantiate(parser.parse_path(path)).as_dict()
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{path} is not a benchmark grid: {error}") from error
    if empty := [name for name, value in given.items() if value is None]:
        raise ValueError(f"{path} is not a benchmark grid: {empty[0]} is empty; give a value or leave it out")
    return Grid(**given)
