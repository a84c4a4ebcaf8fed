"""What a run is of: facts by which its file is named, found again, merged, grouped and labelled.

Everything is derived from ``Result.config``, the whole resolved cell, and from the hashes of weights and images.
Records of schema version 1 have no config: what they do not say is unknown, which is neither equal to nor different
from anything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nc_finetune.results.result import Result

Facts = dict[str, str]

CONTENT, WEIGHTS_HASH = "content", "weights_hash"
# Facts of every record, in fields of their own; the first ones are known before a run, the others after it.
_ASKED = (
    "backbone",
    "weights",
    "dataset",
    "method",
    "options",
    "seed",
    "samples_per_class",
    "train_share",
    "nc1_normalize",
)
_FOUND = ("key_layer", "head", "loss")
_SETTINGS_OF_VERSION_1 = {"settings.epochs": "epochs"}
# Parts of a config that fields of the record say, too: there without defaults, or as what they came to.
_SAID = (
    *("backbone.name", "backbone.weights", "backbone.key_layer", "backbone.model_options", "backbone.options"),
    *("dataset.name", "dataset.source", "dataset.balance_classes", "method.options", "head.options", "loss.options"),
    *("dataset.augmentation", "method.solve_head", "method.augment", "method.pretrained"),
    *("samples_per_class", "seed", "settings.normalize"),
)
_CLASSES = ("method.method", "head.head", "loss.loss")
_HASH_DIGITS = 8
_PLACE = ("dataset.", CONTENT)


def plain(value: Any) -> Any:
    """Turn a specification into what JSON holds, numbers that are the same into the same one.

    Example:
        >>> plain({"scale": 9.0, "layers": ("a", "b"), "bias": True})
        {'scale': 9, 'layers': ['a', 'b'], 'bias': True}
    """
    if dataclasses.is_dataclass(value):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def text_of(value: Any) -> str:
    """Write a value so that equal ones have one text."""
    return value if isinstance(value, str) else json.dumps(plain(value), sort_keys=True, ensure_ascii=False)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Facts:
    """Write a nested mapping as text by path.

    Example:
        >>> flatten({"dataset": {"image_size": 64}, "seed": 0})
        {'dataset.image_size': '64', 'seed': '0'}
    """
    found: Facts = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        found |= flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: text_of(value)}
    return found


def _is_said(path: str, value: str) -> bool:
    """Whether a field of the record says a part of the config, too: of classes, whatever has no import path."""
    if path in _CLASSES:
        return "." not in value
    return path.startswith(tuple(f"{part}." for part in _SAID)) or path in _SAID


def _known(run: Result, name: str) -> str | None:
    value = run.provenance.get(name)
    return value if isinstance(value, str) else None


def configured(run: Result) -> Facts:
    """Return everything of the config that no other field of the record says, as text by path."""
    if not run.config:
        return {path: text_of(getattr(run, name)) for path, name in _SETTINGS_OF_VERSION_1.items()}
    found = flatten(run.config)
    facts = {path: value for path, value in found.items() if not _is_said(path, value)}
    if _known(run, "data_fingerprint") is None and "dataset.source" in found:
        facts["dataset.source"] = found["dataset.source"]
    if (augmentation := run.config.get("dataset", {}).get("augmentation")) is not None:
        facts["method.augmentation"] = text_of(augmentation)  # of the method: other runs on the same data have none
    return facts


def _hashes(run: Result) -> Facts:
    """Hashes of images and weights; random weights are those of the seed."""
    random = run.weights is None or bool(run.options.get("random_weights"))
    found = {CONTENT: _known(run, "data_fingerprint")}
    found[WEIGHTS_HASH] = None if random else _known(run, "weights_hash")
    return {name: value for name, value in found.items() if value is not None}


def place_of(run: Result) -> Facts:
    """Say what runs must share beside the name of the data set for their images to be the same ones."""
    facts = configured(run) | _hashes(run)
    return {path: value for path, value in facts.items() if path.startswith(_PLACE)}


def settings_of(run: Result) -> Facts:
    """Say how a run was trained beside its method, head, loss and options."""
    return {path: value for path, value in configured(run).items() if not path.startswith(_PLACE)}


def facts_of(run: Result) -> Facts:
    """Say everything that tells a run from others, as far as its record does."""
    asked = {name: text_of(getattr(run, name)) for name in _ASKED}
    return asked | configured(run) | _hashes(run)


def identity_of(run: Result) -> str:
    """Name a run by what was run: two with one identity differ in nothing that was recorded, results aside.

    Example:
        >>> run = Result(run_id="a", backbone="b", weights=None, dataset="d", method="m")
        >>> identity_of(run) == identity_of(dataclasses.replace(run, run_id="b", accuracy=1.0))
        True
    """
    found = {name: text_of(getattr(run, name)) for name in _FOUND} | {"chosen": text_of(bool(run.selection))}
    return json.dumps(facts_of(run) | found, sort_keys=True)


def _kept(path: str) -> str:
    """Name a fact for people.

    Example:
        >>> _kept("dataset.image_size"), _kept("head.defaults.scale")
        ('image size', 'head scale')
    """
    parts = [part for part in path.split(".") if part not in ("dataset", "settings", "method", "defaults")]
    return " ".join(parts or [path]).replace("_", " ")


def setting_words(path: str, value: str) -> str:
    """Put one setting into words.

    Example:
        >>> setting_words("settings.batch_size", "16"), setting_words("dataset.val_size", "null")
        ('batch size 16', 'no val size')
    """
    if value == "null":
        return f"no {_kept(path)}"
    return f"{_kept(path)} {value[:_HASH_DIGITS] if path in (CONTENT, WEIGHTS_HASH) else value}"


def differences(first: Facts, second: Facts) -> list[str]:
    """Name, in words, the facts that both know and that differ.

    Example:
        >>> differences({"settings.batch_size": "16", "seed": "0"}, {"settings.batch_size": "32"})
        ['batch size']
    """
    return [_kept(path) for path, value in first.items() if second.get(path, value) != value]


def told_apart(runs: Sequence[Result]) -> list[Result]:
    """Name data sets and weights by what sets them apart, where one name stands for several.

    Args:
        runs: Runs of one report, whatever became of them.

    Returns:
        The runs in their order. Runs whose data set has one name but another image size, content, split size and so on
        have it in the name of their data set; those with other weights in that of their weights.

    Example:
        >>> sizes = ({"dataset": {"image_size": size}} for size in (32, 64))
        >>> runs = [Result(run_id="r", backbone="b", weights=None, dataset="d", method="m", config=c) for c in sizes]
        >>> [run.dataset for run in told_apart(runs)]
        ['d (image size 32)', 'd (image size 64)']
    """
    finished = [run.status == "ok" for run in runs]
    data = _words_by_family([run.dataset for run in runs], [place_of(run) for run in runs], finished)
    networks = [
        text_of([run.backbone, run.weights, run.config.get("backbone"), run.options.get("random_weights")])
        for run in runs
    ]
    weights = _words_by_family(networks, [_weights(run) for run in runs], finished)
    return [
        dataclasses.replace(
            run,
            dataset=f"{run.dataset} ({about})" if about else run.dataset,
            weights=f"{run.weights}, {network}" if network and run.weights is not None else run.weights,
        )
        for run, about, network in zip(runs, data, weights, strict=True)
    ]


def _weights(run: Result) -> Facts:
    return {path: value for path, value in _hashes(run).items() if path == WEIGHTS_HASH}


def _words_by_family(names: Sequence[str], facts: Sequence[Facts], finished: Sequence[bool]) -> list[str]:
    """Say of each member what sets it apart from those of its family that finished; nothing where all are the same."""
    families: dict[str, dict[str, Facts]] = {}
    for name, known, done in zip(names, facts, finished, strict=True):
        if done:
            families.setdefault(name, {})[json.dumps(known, sort_keys=True)] = known
    words = {name: _family_words(list(family.values())) for name, family in families.items()}
    return [_matching_words(known, words.get(name, [])) for name, known in zip(names, facts, strict=True)]


def _family_words(family: Sequence[Facts]) -> list[tuple[Facts, str]]:
    """Put into words what sets members apart: facts with several values, and those that only some know."""
    values: dict[str, set[str]] = {}
    for facts in family:
        for path, value in facts.items():
            values.setdefault(path, set()).add(value)
    varying = [path for path, found in values.items() if len(found) > 1]
    partly = [path for path in values if any(path not in facts for facts in family)]
    return [(facts, _member_words(facts, varying, partly)) for facts in family]


def _matching_words(facts: Facts, family: Sequence[tuple[Facts, str]]) -> str:
    """Return the words of the same facts; of a run that failed before it knew all, those of the only ones that fit."""
    same = [words for known, words in family if known == facts]
    fitting = {words for known, words in family if not differences(known, facts)}
    return same[0] if same else (fitting.pop() if len(fitting) == 1 else "")


def _member_words(facts: Facts, varying: Sequence[str], partly: Sequence[str]) -> str:
    words = [setting_words(path, facts[path]) for path in varying if path in facts]
    missing = [_kept(path) for path in partly if path not in facts]
    if len(missing) > 1 and not any(path in facts for path in partly):
        return ", ".join([*words, "settings not recorded"])
    return ", ".join([*words, *(f"{name} not recorded" for name in missing)])
