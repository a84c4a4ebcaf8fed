"""Names of variants in tables and pictures: the method's, and what sets the variant apart from its siblings."""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from nc_finetune.report._tables.groups import Group, group_of, grouped
from nc_finetune.report._tables.variants import (
    CHOSEN,
    CHOSEN_SPAN,
    LABELS_OF_CLASSES,
    Variant,
    method_label,
    variant_of,
    variant_order,
)
from nc_finetune.results.identity import setting_words
from nc_finetune.results.result import Result

_PLAIN = {"head": ("linear", "neighbors_head"), "loss": ("cross_entropy", "cross_entropy_loss")}
_ACRONYMS = {"etf": "ETF", "mse": "MSE", "lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}
# What an option is called, with a place for its value.
_PHRASES = {
    "scale": "skip scale {}",
    "skip_layers": "skip from {}",
    "join": "skip joined at {}",
    "orientation": "turned to {}",
    "probe_epochs": "{} epochs of probe first",
    "method": "then {}",
    "adapter": "{}",
    "batch_norm": "BatchNorm in {} mode",
    "solve_head": "head solved on {}",
    "solver": "solved by {}",
    "kind": "{}",
}
# What it is called of one method.
_PHRASES_OF = {"readout": {"method": "under it {}"}}
_HEADS = {"simplex_etf_head": "ETF head", "SimplexETFHead": "ETF head", "bottleneck_head": "bottleneck"}
_VALUES = {"canonical": "the axes", "random": "random directions", "lbfgs": "L-BFGS"}
# Told only where nothing else sets two variants apart: what was chosen from, and arguments left at their defaults.
_LAST_SETTINGS = ("method.learning_rates", "method.candidates", "method.augmentation")
_MOST_NAMES = 4
Choices = tuple[tuple[str, str], ...]


def plain_words(name: str) -> str:
    """Write the name of a class or an option in words.

    Example:
        >>> plain_words("SimplexETFHead"), plain_words("probe_epochs")
        ('simplex ETF head', 'probe epochs')
    """
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).replace("_", " ").split()
    return " ".join(_ACRONYMS.get(part.lower(), part.lower()) for part in parts)


def count(number: int, noun: str) -> str:
    """Write a number of things.

    Example:
        >>> count(1, "run"), count(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Name a few, and count the rest; names have commas of their own.

    Example:
        >>> listed(["a", "b", "c", "d", "e, f", "g"])
        'a; b; c; d; 2 more'
    """
    rest = len(names) - _MOST_NAMES
    return "; ".join([*names[:_MOST_NAMES], *([f"{rest} more"] if rest > 0 else [])])


def _option_phrase(method: str, name: str, value: str) -> str:
    """Put one option of a method into words; a list of layers or a number stands for itself."""
    last = name.rpartition(".")[2]
    if value in ("True", "False"):
        return f"{'' if value == 'True' else 'no '}{plain_words(last)}"
    if last == "head":
        return f"before {_HEADS.get(value, plain_words(value))}"
    known = LABELS_OF_CLASSES.get(value) or _VALUES.get(value, plain_words(value) if value.isidentifier() else value)
    phrases = _PHRASES | (_PHRASES_OF.get(method, {}) if name == last else {})
    return phrases.get(last, f"{plain_words(last)} {{}}").format(known)


def _layer_phrase(layer: str | None) -> str:
    if layer is None:
        return "no key layer"
    return {CHOSEN: "key layer chosen", CHOSEN_SPAN: f"on a {CHOSEN_SPAN}"}.get(layer, layer.replace("+", " + "))


def _differing(siblings: Iterable[Choices]) -> set[str]:
    """Name the choices that some siblings do not have, or have otherwise."""
    given = [frozenset(choices) for choices in siblings]
    return {name for choices in given for name, _ in choices - frozenset.intersection(*given)}


def _usual_layer(siblings: Sequence[Variant]) -> str | bool | None:
    """Return the key layer of more than half of the siblings, which needs no mention; ``False`` where there is none."""
    (layer, count), *_ = collections.Counter(variant.key_layer for variant in siblings).most_common(1)
    return layer if 2 * count > len(siblings) else False


class _Namer:
    """Names the variants of one method.

    Args:
        families: The variants of the method, by group.
    """

    def __init__(self, families: Sequence[set[Variant]]) -> None:
        self._families = families
        self._options = set().union(*(_differing([variant.options for variant in family]) for family in families))
        self._settings = set().union(*(_differing([variant.settings for variant in family]) for family in families))

    def _differs(self, variant: Variant, part: str) -> bool:
        """Whether a sibling of the variant, in any group, has made another choice."""
        mine = getattr(variant, part)
        return any(getattr(other, part) != mine for family in self._families if variant in family for other in family)

    def _names_layer(self, variant: Variant) -> bool:
        families = [sorted(family, key=variant_order) for family in self._families if variant in family]
        return any(_usual_layer(family) != variant.key_layer for family in families)

    def _phrases(self, variant: Variant) -> Iterator[str]:
        if self._differs(variant, "key_layer") and self._names_layer(variant):
            yield _layer_phrase(variant.key_layer)
        named = [(name, value) for name, value in variant.options if name in self._options]
        of_head = any(name.endswith("orientation") for name, _ in named)
        for part, wanted in (("head", of_head), ("loss", False)):
            value = getattr(variant, part)
            if value not in _PLAIN[part] and (wanted or self._differs(variant, part)):
                yield _HEADS.get(value, plain_words(value))
        inner = [(name, value) for name, value in variant.options if name == "head" and of_head]
        yield from itertools.starmap(partial(_option_phrase, variant.method), dict.fromkeys((*inner, *named)))
        for path, value in variant.settings:
            if path in self._settings and not path.startswith(_LAST_SETTINGS) and ".defaults." not in path:
                yield setting_words(path, value)

    def label(self, variant: Variant) -> str:
        text = method_label(variant.method)
        for phrase in self._phrases(variant):
            joined = phrase.startswith(("before ", "turned to ")) and text != method_label(variant.method)
            text += f" {phrase}" if joined else f", {phrase}"
        return text


def _spelt_out(variant: Variant, namesakes: Sequence[Variant]) -> Iterator[str]:
    """Name whatever sets a variant apart from those with the same short name."""
    for part in ("key_layer", "head", "loss"):
        if len({getattr(other, part) for other in namesakes}) > 1:
            yield str(getattr(variant, part) or f"no {plain_words(part)}")
    for name, value in (*variant.options, *variant.settings):
        if name in _differing([(*other.options, *other.settings) for other in namesakes]):
            yield f"{name} {value}"


def _unique_names(names: Mapping[Variant, str], family: Iterable[Variant]) -> dict[Variant, str]:
    """Lengthen the names that several variants of a family have."""
    return {
        variant: ", ".join([name, *_spelt_out(variant, found)])
        for name, found in grouped(family, names.__getitem__).items()
        if len(found) > 1
        for variant in found
    }


def variant_labels(results: Iterable[Result]) -> dict[Variant, str]:
    """Name every variant: by its method, and by what sets it apart from its siblings in some group.

    Siblings are variants of one method in one group. A key layer that most of them share, a linear head, the
    cross-entropy and default options need no mention.

    Returns:
        Display name by variant, in the order of the tables. Within a group no two variants have the same name.
    """
    families: dict[str, dict[Group, set[Variant]]] = {}
    for run in results:
        families.setdefault(run.method, {}).setdefault(group_of(run), set()).add(variant_of(run))
    labels: dict[Variant, str] = {}
    for by_group in families.values():
        namer = _Namer(list(by_group.values()))
        names = {variant: namer.label(variant) for variant in set().union(*by_group.values())}
        for family in by_group.values():
            labels |= _unique_names(names, family)
        labels = {**names, **labels}
    return {variant: labels[variant] for variant in sorted(labels, key=variant_order)}
