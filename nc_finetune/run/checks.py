"""What is wrong with a grid, all of it at once, before anything runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from nc_finetune.backbones import Backbone, check_tag, local_path, packaged_weights
from nc_finetune.data.sources.locations import BUILT_IN
from nc_finetune.errors import check_name, unknown_name
from nc_finetune.methods import LayerReadout
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


def part_problems(
    backbones: Sequence[BackboneSpec],
    datasets: Sequence[DatasetSpec],
    methods: Sequence[MethodSpec],
    heads: Sequence[HeadSpec],
    losses: Sequence[LossSpec],
    sizes: Sequence[TrainingSize],
) -> list[str]:
    """Find everything in the parts of a grid that is unknown, out of range or the same by another name.

    Names on the hub are not looked up: a grid can be planned without a network. Networks are built on the meta device.

    Returns:
        One sentence for each problem; none if the parts can run.
    """
    problems = [*_sizes(sizes)]
    for method in methods:
        problems += _method(method)
    for head in (*heads, *(head for method in methods for head in method.heads or ())):
        problems += _attempt(head.build)
    for loss in losses:
        problems += _attempt(lambda loss=loss: loss.build(multi_label=False))  # type: ignore[misc]
    problems += _losses_that_are_the_same(losses)
    for dataset in datasets:
        problems += _source(dataset)
        problems += [] if dataset.augmentation is None else _attempt(dataset.augmentation.build)
    for backbone in backbones:
        problems += _backbone(backbone, backbones, methods)
    if any(method.augment for method in methods):
        problems += [
            f"augment: true needs what the images of {dataset.name or dataset.source} allow; say augmentation:, e.g."
            " {scale: [0.5, 1.0], flip: 0.5}"
            for dataset in datasets
            if dataset.augmentation is None
        ]
    return list(dict.fromkeys(problems))


def choice_problems(
    choice: ChoiceSpec,
    refit: bool | None,
    datasets: Sequence[DatasetSpec],
    backbones: Sequence[BackboneSpec],
    methods: Sequence[MethodSpec],
) -> list[str]:
    """Find what is wrong with how a grid chooses.

    Returns:
        One sentence for each problem.
    """
    problems = _attempt(lambda: check_name("choice", choice.by, get_args(ChoiceName)))
    if problems:
        return problems
    if choice.folds < 2:
        problems.append(f"folds must be at least 2, got {choice.folds}")
    if not choice.by_folds and choice.folds != ChoiceSpec().folds:
        problems.append(
            f"choice: validation has no folds, got folds: {choice.folds}; say choice: folds, or leave it out"
        )
    if refit is not None and refit != choice.by_folds:
        problems.append(
            "choice: folds leaves no model that has seen all training images, so that refit must be true"
            if choice.by_folds
            else "choice: validation keeps the model that it judged, so that refit must be false; say choice: folds"
        )
    problems += [
        f"candidates of {method.method} are chosen by folds; say choice: folds, or give one value as an option"
        for method in methods
        if method.candidates and not choice.by_folds
    ]
    several = any(len(method.learning_rates) > 1 for method in methods) or choice.extend_rates
    auto = any("auto" in _listed(backbone) for backbone in backbones)
    if not choice.by_folds and (several or auto):
        problems += [
            f"{spec.name or spec.source}: val_size 0 leaves nothing to choose by; hold images out, or say choice: folds"
            for spec in datasets
            if spec.val_size == 0
        ]
    return problems


def _attempt(action: Callable[[], Any]) -> list[str]:
    """Return the message of a refusal, in a list, or nothing."""
    try:
        action()
    except (ValueError, TypeError, ImportError, OSError) as error:
        return [str(error)]
    return []


def _sizes(sizes: Sequence[int | float | None]) -> Iterator[str]:
    for size in sizes:
        if size is not None and not (0 < size < 1 if isinstance(size, float) else size >= 1):
            yield f"samples_per_class must be images a class (at least 1) or a share in (0, 1), got {size}"


def _method(spec: MethodSpec) -> list[str]:
    problems = _attempt(lambda: spec.build(None))
    needed = not problems and spec.build(None).trains
    if min(spec.learning_rates, default=0 if needed else 1) <= 0:
        problems.append(f"{spec.method} needs learning_rates above 0, got {spec.learning_rates}")
    if not problems and spec.learning_rates and not needed:
        problems.append(
            f"{spec.method} trains nothing, so that its learning_rates, {spec.learning_rates}, would choose nothing;"
            " leave them out"
        )
    if spec.solve_head:
        problems += _attempt(spec.solver)
        if not needed and not problems:
            problems.append(f"solve_head comes after training, and {spec.method} trains nothing; leave it out")
    if spec.augment and not problems and not needed:
        problems.append(
            f"{spec.method} is solved from the images as they are, so that augment: true would change nothing; leave it"
            " out"
        )
    problems += _candidates(spec, needed)
    if not problems and (inner := spec.nested) is not None:
        usual = MethodSpec(method=inner.method)
        problems += [
            f"{name} of {inner.method} inside {spec.method} would be left out; say it of {spec.method}"
            for name in ("heads", "solve_head", "augment", "pretrained", "candidates")
            if getattr(inner, name) != getattr(usual, name)
        ]
    if spec.heads == []:
        problems.append(f"heads of {spec.method} must not be empty; leave them out to take those of the grid")
    return problems


def _candidates(spec: MethodSpec, needed: bool) -> Iterator[str]:
    if spec.candidates and not needed:
        yield f"{spec.method} trains nothing, so that its candidates would choose nothing; leave them out"
    for name, values in (spec.candidates or {}).items():
        if name in spec.options:
            yield f"{name} of {spec.method} is an option and has candidates; leave one of them out"
        if len(values) < 2:
            yield f"candidates of {spec.method} must have two values at least, got {values} of {name}"
        elif not _attempt(lambda: spec.build(None)):
            others = (dataclasses.replace(spec, options={**spec.options, name: value}) for value in values[1:])
            yield from (found for other in others for found in _attempt(partial(other.build, None)))


def _source(spec: DatasetSpec) -> list[str]:
    if unset := _attempt(lambda: spec.location):
        return unset
    source = spec.location
    if source.startswith("sklearn:") and source not in BUILT_IN:
        return [str(unknown_name("built-in data", source, BUILT_IN))]
    # What could be an id of the hub is left to the hub.
    is_path = source.startswith((".", "~", os.sep)) or source.count("/") > 1
    if is_path and not Path(source).expanduser().exists():
        return [f"no images or tables at {spec.source!r}"]
    return []


def _backbone(spec: BackboneSpec, all_of_them: Sequence[BackboneSpec], listed: Sequence[MethodSpec]) -> list[str]:
    problems = _weights(spec)
    built: list[Backbone] = []
    problems += _attempt(lambda: built.append(spec.build_without_memory()))
    if not built:
        return problems
    methods = [method for method in listed if not _attempt(lambda method=method: method.build(None))]  # type: ignore[misc]
    for layer in dict.fromkeys(_listed(spec)):
        problems += _key_layer(layer, built[0])
        tuning = [method for method in methods if method.takes_key_layer and "+" in layer]
        problems += [found for method in tuning for found in _attempt(partial(method.build, layer))]
    for method in methods:
        problems += _layers_of_method(method, built[0])
    return [*problems, *_key_layers_that_are_the_same(spec, built[0].middle_block, all_of_them)]


def _layers_of_method(spec: MethodSpec, backbone: Backbone) -> list[str]:
    """Look up the layers that a method itself names."""
    method = spec.build(None)
    problems = [] if spec.takes_key_layer else _attempt(lambda: method.tuned_modules(backbone))
    looking = [method] if isinstance(method, LayerReadout) else []
    if spec.solve_head and not _attempt(spec.solver) and (solver := spec.solver()) is not None:
        looking += [LayerReadout(solver.layers, method=method)] if solver.layers is not None else []
    for readout in looking:
        problems += [f"{backbone.name}: {found}" for found in _attempt(partial(readout.layer_names, backbone))]
    return problems + [
        f"{backbone.name}: {unknown_name('skip layer', layer, backbone.block_names)}"
        for layer in getattr(method, "skip_layers", None) or []
        if layer not in backbone.block_names
    ]


def _key_layer(layer: str, backbone: Backbone) -> list[str]:
    if layer in ("auto", "all"):
        return []
    unknown = [part for part in layer.split("+") if part not in backbone.block_names]
    return [f"{backbone.name}: {unknown_name('key layer', part, backbone.block_names)}" for part in unknown]


def _weights(spec: BackboneSpec) -> list[str]:
    if unset := _attempt(lambda: spec.weights_location):
        return unset
    weights = spec.weights_location
    if weights is None:
        return []
    if weights == "package":
        return _attempt(lambda: packaged_weights(spec.name))
    path = local_path(weights)
    if path is None:  # a tag, which of timm's networks is known without a network
        return [] if ":" in spec.name else _attempt(lambda: check_tag(spec.name, weights))
    return [] if path.exists() else [f"no weights of {spec.name} at {path}"]


def _losses_that_are_the_same(losses: Sequence[LossSpec]) -> Iterator[str]:
    """Find the default beside the loss that it stands for, which runs alone cannot tell apart."""
    defaults = [loss.options for loss in losses if loss.loss is None]
    for loss in losses:
        if loss.loss in ("CrossEntropyLoss", "PickAllLabelsLoss") and loss.options in defaults:
            yield f"the default loss and {loss.loss} are the same where the data suit it; leave one of them out"


def _listed(spec: BackboneSpec) -> list[str]:
    return [spec.key_layer] if isinstance(spec.key_layer, str) else spec.key_layer or []


def _key_layers_that_are_the_same(spec: BackboneSpec, middle: str, others: Sequence[BackboneSpec]) -> Iterator[str]:
    """Find the middle block by its name beside the default."""
    if spec.key_layer is not None:
        return
    for other in others:
        listed = _listed(other)
        if dataclasses.replace(other, key_layer=None) == spec and (middle in listed or "all" in listed):
            yield f"{spec.name}: no key layer and {middle!r}, the middle block, are the same; leave one of them out"
