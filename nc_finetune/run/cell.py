"""One run of a grid: what it is built from, everything that it depends on, and its name."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from nc_finetune.backbones import Backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.functional.variability import Normalize
from nc_finetune.methods import FinetuningMethod
from nc_finetune.results.identity import plain
from nc_finetune.run.specs import (
    ALL,
    BackboneSpec,
    ChoiceSpec,
    DatasetSpec,
    HeadSpec,
    LossSpec,
    MethodSpec,
    TrainingSize,
    network_class,
)

_PLAIN = (bool, int, float, str, tuple, list, type(None))
# Fields of a cell that change nothing in a result but time and memory, and lists of which a cell has one.
WITHOUT_EFFECT = ("cache", "settings.num_workers", "settings.count_flops", "method.heads", "dataset.samples_per_class")
# Files may have 255 bytes, of which endings and temporary files need some.
_LONGEST_NAME = 200
# Choices that came later, and what they were before.
_LATER: tuple[tuple[str, str, Any], ...] = (
    *(("method", "solve_head", False), ("method", "augment", False), ("method", "pretrained", True)),
    *(("method", "candidates", None), ("dataset", "augmentation", None)),
)
_USUAL_LOSS = LossSpec()
_USUAL_CHOICE = ChoiceSpec()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs of a grid share.

    Attributes:
        epochs: Passes over the training images; the most of them, where folds choose how many.
        batch_size: Images a batch.
        head_learning_rate: Rate of the head beside a tuned backbone.
        normalize: Convention of NC1.
        num_workers: Processes that decode images.
        count_flops: Whether the arithmetic of whole runs is counted, each with all that its frozen prefix takes. They
            take a third longer then, so that no processor time is told of them.
    """

    epochs: int = 15
    batch_size: int = 32
    head_learning_rate: float = 1e-3
    normalize: Normalize = "none"
    num_workers: int = 0
    count_flops: bool = False


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
    choice: ChoiceSpec = _USUAL_CHOICE
    cache: bool = True

    @property
    def dataset_name(self) -> str:
        """Name of the data set in results."""
        return self.dataset.name or self.dataset.source

    @cached_property
    def run_id(self) -> str:
        """A readable name that ends in a hash of everything that the run depends on."""
        return _name_of(self)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that the run depends on, as its result says it."""
        return _config_of(self)

    @property
    def data_spec(self) -> DatasetSpec:
        """The data set, without validation images where folds choose and none are asked for, augmented where wanted."""
        held_out = 0 if self.choice.by_folds and self.dataset.val_size is None else self.dataset.val_size
        augmentation = self.dataset.augmentation if self.method.augment else None
        return dataclasses.replace(self.dataset, val_size=held_out, augmentation=augmentation, samples_per_class=None)

    @property
    def fits(self) -> int:
        """How many fits it takes, unless the list of rates is extended."""
        rates = max(len(self.method.learning_rates), 1)
        return rates * self.choice.folds + 1 if self.choice.by_folds and self.build_method().trains else rates

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
        """Load the pre-trained weights anew; or draw random ones, of a control."""
        return self.backbone.build(self.backbone.weights_location if self.method.pretrained else None)

    def with_options(self, options: Mapping[str, Any]) -> Cell:
        """Return the cell with values of its candidates, instead of the candidates."""
        chosen = dataclasses.replace(self.method, options={**self.method.options, **options}, candidates=None)
        return dataclasses.replace(self, method=chosen)

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


@lru_cache(maxsize=256)
def _defaults(built: Callable[..., Any] | None) -> dict[str, Any]:
    """Return the arguments of a class with defaults that JSON can hold; others belong to the version of its package."""
    if built is None:
        return {}
    parameters = inspect.signature(built).parameters.values()
    return {part.name: part.default for part in parameters if isinstance(part.default, _PLAIN)}


def _resolved(spec: Any, kind: str, defaults: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of a class into those beside its defaults, and the others."""
    options = {name: _nested(value) if name == kind else value for name, value in spec.options.items()}
    beside = {
        name: value for name, value in options.items() if name not in defaults or not _same(value, defaults[name])
    }
    rest = {name: plain(value) for name, value in defaults.items() if name not in beside}
    return beside, rest


def _same(first: Any, second: Any) -> bool:
    return json.dumps(plain(first), default=repr) == json.dumps(plain(second), default=repr)


def _nested(given: Any) -> Any:
    """Write a class within another one in one way: as its name, or with its options beside the defaults."""
    if not isinstance(given, Mapping):
        return given
    (kind, home), *_ = [(name, home) for name, home in _SPECS.items() if name in given] or [("", None)]
    if home is None:
        return dict(given)
    beside = _parts(home(**given), kind)[0]
    return {kind: given[kind], "options": beside} if beside else given[kind]


_SPECS: dict[str, Any] = {"method": MethodSpec, "head": HeadSpec, "loss": LossSpec}


def _parts(spec: Any, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return _resolved(spec, kind, _defaults(spec.class_to_build()))


def _canonical(cell: Cell) -> tuple[Cell, dict[str, dict[str, Any]]]:
    """Return an equal cell without what has no effect and what only repeats a default, and those defaults by part."""
    own_head = cell.build_method().own_head is not None
    method = dataclasses.replace(cell.method, heads=None)
    specs: dict[str, Any] = {"method": method, "head": HeadSpec() if own_head else cell.head, "loss": cell.loss}
    parts = {kind: _parts(spec, kind) for kind, spec in specs.items()}
    network = _resolved(cell.backbone, "", _defaults(network_class(cell.backbone.name)))
    changed = {kind: dataclasses.replace(spec, options=parts[kind][0]) for kind, spec in specs.items()}
    backbone = dataclasses.replace(
        cell.backbone,
        options=network[0],
        key_layer=cell.backbone.key_layer if cell.method.takes_key_layer else None,
    )
    usual = Settings()
    settings = dataclasses.replace(cell.settings, num_workers=usual.num_workers, count_flops=usual.count_flops)
    same = dataclasses.replace(
        cell, cache=True, settings=settings, backbone=backbone, dataset=cell.data_spec, **changed
    )
    return same, {"backbone": network[1], **{kind: rest for kind, (_, rest) in parts.items()}}


def _config_of(cell: Cell) -> dict[str, Any]:
    """Return every field of a cell, and the arguments of its classes.

    ``options`` of a part are what was chosen beside the defaults, ``defaults`` the other arguments.
    """
    same, defaults = _canonical(cell)
    config: dict[str, Any] = plain(same)
    for part, rest in defaults.items():
        config[part]["defaults"] = {name: value for name, value in rest.items() if name not in config[part]}
    for part, choice, default in _LATER:  # as in records of before there was the choice
        if config[part][choice] == default:
            config[part].pop(choice)
    for path in WITHOUT_EFFECT:
        *parents, name = path.split(".")
        holder = config[parents[0]] if parents else config
        holder.pop(name, None)
    config.pop("choice")
    return config | ({"choice": cell.choice.config} if cell.choice.config else {})


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what tells a variant from others of its method; a name that several parts have follows the part's.

    Args:
        config: Of a cell.

    Returns:
        Choices beside the defaults, by name.
    """
    sources = [("model", config["backbone"]["model_options"])]
    sources += [(part, config[part]["options"]) for part in ("backbone", "method", "head", "loss")]
    counts = Counter(name for _, options in sources for name in options)
    found = {
        name if counts[name] == 1 or part == "method" else f"{part}.{name}": value
        for part, options in sources
        for name, value in options.items()
    }
    solved = config["method"].get("solve_head", False)
    if isinstance(solved, Mapping):
        solved = ", ".join(f"{value}" if name == "layers" else f"{name} {value}" for name, value in solved.items())
    return (
        found
        | ({"balance_classes": True} if config["dataset"]["balance_classes"] else {})
        | ({"solve_head": solved} if solved else {})
        | ({"augmented": True} if config["method"].get("augment") else {})
        | ({} if config["method"].get("pretrained", True) else {"random_weights": True})
        | {name: _chosen_from(values) for name, values in (config["method"].get("candidates") or {}).items()}
    )


def _chosen_from(values: Sequence[Any]) -> str:
    return "chosen span" if all(isinstance(value, list) and len(value) > 1 for value in values) else "chosen"


def _beside_defaults(spec: Any) -> Any:
    """Return what a specification says beside its defaults: a run keeps its name when later ones have more choices."""
    if isinstance(spec, (list, tuple)):
        return [_beside_defaults(item) for item in spec]
    if not dataclasses.is_dataclass(spec):
        return spec
    given = {part.name: (part, getattr(spec, part.name)) for part in dataclasses.fields(spec)}
    return {name: _beside_defaults(value) for name, (part, value) in given.items() if value != part.default}


def _name_of(cell: Cell) -> str:
    """Name a run as a file can be named; cells that are equal have one name."""
    same, _ = _canonical(cell)
    digest = hashlib.sha256(json.dumps(plain(_beside_defaults(same)), sort_keys=True).encode()).hexdigest()[:8]
    size = {int: f"n{cell.samples_per_class}", float: f"share{cell.samples_per_class}"}
    training = size.get(type(cell.samples_per_class), "all")
    method = cell.method.method_class().name
    words = f"{cell.dataset_name}-{cell.backbone.name}-{method}-{training}-s{cell.seed}-{digest}"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", words)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{digest}"
