"""A benchmark grid: backbones x data sets x methods x heads x losses x training sizes x seeds."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nc_finetune.run.cell import Cell, Settings
from nc_finetune.run.checks import choice_problems, part_problems
from nc_finetune.run.specs import (
    BackboneSpec,
    ChoiceName,
    ChoiceSpec,
    DatasetSpec,
    HeadSpec,
    LossSpec,
    MethodSpec,
    TrainingSize,
)

_LISTS = ("backbones", "datasets", "methods", "heads", "losses", "samples_per_class", "seeds")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All combinations of backbones, data sets, methods, heads, losses, training sizes and seeds.

    Attributes:
        backbones: The pre-trained networks.
        datasets: The downstream data.
        methods: The fine-tuning methods with their candidate learning rates.
        heads: The classifiers, each with every method that neither names others nor brings its own.
        losses: The training losses; by default the one that suits the labels of the data.
        samples_per_class: Training sizes of data sets that say none: images a class, or a share of the training split
            in ``(0, 1)``; ``None`` is the whole split.
        seeds: Seeds of the training sample, of the head's initialisation and of the order of the batches.
        settings: What all runs share.
        choice: ``"validation"`` chooses learning rate and automatic key layer by the validation split. ``"folds"``
            chooses them, and after how many epochs to stop, by folds of the training images alone, and then trains on
            all of these: a run has seen no labels but those of its training size.
        folds: How many; see :func:`~nc_finetune.data.training_folds`.
        refit: Whether the model is trained again on all training images once all is chosen; ``None`` is what the choice
            implies, and nothing else is possible: true for folds, false for validation.
        extend_rates: Extend a list of learning rates at whose edge the best one lies, up to four times by a factor of
            3, see :func:`~nc_finetune.selection.search_rates`; ``None`` does where folds choose.
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
    choice: ChoiceName = "validation"
    folds: int = 5
    refit: bool | None = None
    extend_rates: bool | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        problems = self._problems()
        if len(problems) == 1:
            raise ValueError(problems[0])
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise ValueError(f"the grid cannot run, for {len(problems)} reasons:\n{lines}")

    def _problems(self) -> list[str]:
        empty = [f"{name} of a grid must not be empty" for name in _LISTS if not getattr(self, name)]
        sizes = [*self.samples_per_class, *(size for dataset in self.datasets for size in self._sizes_of(dataset))]
        found = part_problems(self.backbones, self.datasets, self.methods, self.heads, self.losses, sizes)
        empty += [
            f"samples_per_class of {dataset.name or dataset.source} must not be empty"
            for dataset in self.datasets
            if not self._sizes_of(dataset)
        ]
        found += choice_problems(self._choice, self.refit, self.datasets, self.backbones, self.methods)
        if empty or found:
            return [*empty, *found]
        counts = Counter(cell.run_id for cell in self.cells())
        return [f"the grid has {count} cells that are the same: {name}" for name, count in counts.items() if count > 1]

    @property
    def _choice(self) -> ChoiceSpec:
        extend = self.choice == "folds" if self.extend_rates is None else self.extend_rates
        return ChoiceSpec(by=self.choice, folds=self.folds, extend_rates=extend)

    def cells(self) -> list[Cell]:
        """Return every run; seeds outermost, so that a grid that is cut short compares what it has fairly."""
        expanded = {id(backbone): backbone.with_each_key_layer() for backbone in self.backbones}
        samples = [(dataset, size) for dataset in self.datasets for size in self._sizes_of(dataset)]
        axes = itertools.product(self.seeds, samples, self.backbones, self.methods)
        return [
            Cell(
                dataset=dataset,
                backbone=chosen,
                samples_per_class=size,
                seed=seed,
                method=dataclasses.replace(method, heads=None),  # a cell has one
                head=head,
                loss=loss,
                settings=self.settings,
                choice=self._choice,
                cache=self.cache,
            )
            for seed, (dataset, size), backbone, method in axes
            for head in self._heads_of(method)
            for loss in (self.losses if method.build(None).trains else self.losses[:1])
            for chosen in _key_layers_of(method, backbone, expanded[id(backbone)])
        ]

    def _sizes_of(self, dataset: DatasetSpec) -> list[TrainingSize]:
        return self.samples_per_class if dataset.samples_per_class is None else dataset.samples_per_class

    def _heads_of(self, method: MethodSpec) -> list[HeadSpec]:
        heads = self.heads if method.heads is None else method.heads
        return heads if method.build(None).own_head is None else heads[:1]


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
    optional = {part.name for part in dataclasses.fields(Grid) if part.default is None}
    if empty := [name for name, value in given.items() if value is None and name not in optional]:
        raise ValueError(f"{path} is not a benchmark grid: {empty[0]} is empty; give a value or leave it out")
    return Grid(**given)
