"""How a run fine-tuned: its method, and the choices within the method."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nc_finetune import methods
from nc_finetune.methods import METHOD_NAMES, FinetuningMethod
from nc_finetune.results.identity import settings_of
from nc_finetune.results.result import Result

# The order of the methods in every table and legend: from least to most that is tuned; others follow.
_ORDER = (
    *("control", "zero_shot", "linear_probe", "skip_probe", "readout", "bias_tuning", "norm_tuning", "adapter"),
    *("layer_ft", "side_ft", "scl_ft", "lp_ft", "full_ft"),
)


def _place(method: type[FinetuningMethod]) -> int:
    return _ORDER.index(method.name) if method.name in _ORDER else len(_ORDER)


_METHODS: list[type[FinetuningMethod]] = sorted((getattr(methods, name) for name in METHOD_NAMES), key=_place)
METHOD_LABELS = {method.name: method.label for method in _METHODS}
LABELS_OF_CLASSES = {method.__name__: method.label for method in _METHODS}
CHOSEN = "auto"  # as a key layer: by short trials or by folds, seed by seed
CHOSEN_SPAN = "chosen span"
_CHOSEN_BY_FOLDS = {"chosen": CHOSEN, CHOSEN_SPAN: CHOSEN_SPAN}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a run fine-tuned: its method, and the choices within the method.

    Attributes:
        method: Name of the fine-tuning method.
        key_layer: The tuned block, where the method has one; ``"auto"`` where every run chose its own, and ``"chosen
            span"`` where it chose several.
        head: Class of the classifier.
        loss: Class of the training loss.
        options: Further choices by name, as text; those of a head or a method within another one as
            ``"head.<name>"``. None for the defaults.
        settings: Everything else that a run depends on beside its data and its seed, by path in its config.
    """

    method: str
    key_layer: str | None
    head: str
    loss: str
    options: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


def method_label(name: str) -> str:
    """Name a method as the papers do.

    Returns:
        The usual name, or the given one where there is none.

    Example:
        >>> method_label("scl_ft"), method_label("my_method")
        ('SCL-FT', 'my_method')
    """
    return METHOD_LABELS.get(name, name)


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Spell out options; those of a head or a method within another one follow its name."""
    for name, value in sorted(options.items()):
        inner = value.get(name) if isinstance(value, dict) else None
        if isinstance(inner, str):
            yield f"{prefix}{name}", inner
            yield from _flat(value.get("options", {}), f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)


def variant_of(run: Result) -> Variant:
    """Say which variant a run is of.

    Example:
        >>> run = Result(
        ...     run_id="r", backbone="b", weights=None, dataset="d", method="scl_ft", key_layer="blocks.4",
        ...     options={"key_layer": "blocks.4", "head": {"head": "CosineHead", "options": {"scale": 9}}},
        ... )
        >>> variant_of(run).key_layer, variant_of(run).options
        ('blocks.4', (('head', 'CosineHead'), ('head.scale', '9')))
    """
    # Seeds may choose different blocks; what they have in common is how they chose.
    by_folds = _CHOSEN_BY_FOLDS.get(str(run.options.get("key_layer")))
    layer = CHOSEN if run.selection else by_folds or run.key_layer
    options = {name: value for name, value in run.options.items() if layer is None or name != "key_layer"}
    return Variant(
        method=run.method,
        key_layer=layer,
        head=run.head,
        loss=run.loss,
        options=tuple(_flat(options)),
        settings=tuple(sorted(settings_of(run).items())),
    )


def _natural(name: str | None) -> list[tuple[int, str]]:
    """Sort ``blocks.9`` before ``blocks.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name or "")]


def variant_order(variant: Variant) -> tuple[object, ...]:
    """Sort the known methods by what they tune, all others behind them by name."""
    methods = list(METHOD_LABELS)
    rank = methods.index(variant.method) if variant.method in methods else len(methods)
    head = variant.head != "linear", variant.head
    return rank, variant.method, _natural(variant.key_layer), head, variant.loss, variant.options, variant.settings
