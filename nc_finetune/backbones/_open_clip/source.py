"""Where an open_clip model comes from, checked before it is built."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nc_finetune._common.trust import check_options
from nc_finetune.backbones._weights.hub_folder import LocalWeights, find_local_weights, local_path
from nc_finetune.backbones._weights.state_dicts import hub_failure, load_exactly, other_architecture, read_state_dict
from nc_finetune.backbones.preprocessing import Preprocessing, settle_preprocessing
from nc_finetune.errors import check_name, unknown_name

# Names of the weights in a folder of open_clip's on the hub, in open_clip's own order.
HUB_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
# What a configuration may say without making it another network.
INESSENTIAL = {
    "hf_model_pretrained",
    "hf_tokenizer_name",
    "output_tokens",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "tokenizer_kwargs",
    "tokenizer_mode",
}


class OpenClipSource:
    """An open_clip model that can be built again and again with the same weights.

    Args:
        name: A model of ``open_clip.list_models()``.
        weights: As for :class:`~nc_finetune.backbones.OpenClipBackbone`.
        options: Further arguments of ``open_clip.create_model``.

    Raises:
        ValueError: If the name or the tag is unknown, or the weights were trained with another activation or belong
            to another architecture.
        FileNotFoundError: If the file or folder is not there.
    """

    def __init__(self, name: str, weights: str | None, options: Mapping[str, Any]) -> None:
        import open_clip

        check_name("open_clip backbone", name, open_clip.list_models())
        check_options("open_clip", options)
        self.name = name
        self.weights = weights
        self.options = dict(options)
        self.config: dict[str, Any] = open_clip.get_model_config(name)
        self.local: LocalWeights | None = None
        self.has_text = True
        self._random_state = torch.get_rng_state()
        path = None if weights is None else local_path(weights)
        if path is not None:
            self.local = find_local_weights(path, "open_clip_config.json", HUB_WEIGHT_FILES)
            self._check_folder(self.local)
        elif weights is not None:
            self._check_tag(weights)

    def build(self) -> nn.Module:
        """Build the model with both towers.

        Raises:
            ValueError: If a file does not hold weights of this model.
            RuntimeError: If the weights cannot be had from the hub.
        """
        if self.local is not None:
            return self._build_local(self.local)
        if self.weights is None:
            self._random_state = torch.get_rng_state()
            return self._create(None)
        try:
            return self._create(self.weights)
        except Exception as error:  # the hub client has many kinds
            raise hub_failure(self.name, self.weights, error) from error

    def rebuild(self) -> nn.Module:
        """Build the model once more, random weights included, and leave the random numbers as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            return self.build()

    def settle_preprocessing(self, model: nn.Module, given: Preprocessing | None) -> Preprocessing:
        """Decide between what the user says, what a tag or a hub folder says, and what the tags of this model want.

        Args:
            model: What :meth:`build` gave.
            given: What the user says, if anything.

        Raises:
            ValueError: If the user and the weights contradict each other.
        """
        import open_clip

        own = open_clip.get_model_preprocess_cfg(model)
        tags = open_clip.list_pretrained_tags_by_model(self.name)[: None if self.weights else 1]
        configs = [open_clip.get_pretrained_cfg(self.name, tag) for tag in tags]
        said = own if self.local is None else (self.local.config or {}).get("preprocess_cfg")
        stated, *usual = (
            Preprocessing.of_config({**own, **config}, own["size"]) for config in (said or {}, *(configs or [own]))
        )
        source = f"the weights {self.weights!r} of {self.name}"
        return settle_preprocessing(source, given, stated if self.weights and said else None, usual)

    def _create(self, pretrained: str | None) -> nn.Module:
        import open_clip

        with _without_log_of_open_clip():
            # The device by name: on the meta device open_clip would move the tensors to the CPU. In torch 2.6
            # get_default_device() does not know of `with torch.device("meta")`.
            device = torch.empty(0).device
            model: nn.Module = open_clip.create_model(self.name, pretrained, device=device, **self.options)
        return model

    def _build_local(self, local: LocalWeights) -> nn.Module:
        state = read_state_dict(local.file)  # safely, before open_clip reads it
        self.has_text = any(".visual." in f".{key}" or key.startswith("image_encoder.") for key in state)
        if not self.has_text:
            model = self._create(None)
            load_exactly(model.visual, state, f"the visual tower of {self.name}", local.file)  # type: ignore[arg-type]
            return model
        try:
            return self._create(str(local.file))
        except Exception as error:  # open_clip's conversions have many kinds
            raise other_architecture(self.name, local.file, error) from error

    def _check_tag(self, tag: str) -> None:
        import open_clip

        config = open_clip.get_pretrained_cfg(self.name, tag)
        if not config:
            tags = open_clip.list_pretrained_tags_by_model(self.name)
            raise unknown_name(f"weights of {self.name}", tag, [*tags, "a file or folder"])
        self._check_activation(f"the weights {tag!r}", config.get("quick_gelu", False))

    def _check_folder(self, local: LocalWeights) -> None:
        if local.config is None:
            return
        config = local.config.get("model_cfg")
        if not isinstance(config, Mapping):
            raise ValueError(f"{local.config_path} must have a 'model_cfg'; pass the file of weights itself")
        self._check_activation(f"the weights of {local.config_path}", config.get("quick_gelu", False))
        ours, theirs = _essentials(self.config), _essentials(config)
        differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if differing:
            key = differing[0]
            raise ValueError(
                f"{local.config_path} is not of the architecture {self.name}: {key} is {theirs.get(key)}"
                f" and not {ours.get(key)}"
            )

    def _check_activation(self, source: str, quick_gelu: bool) -> None:
        """Refuse what open_clip only warns of: the outputs would be wrong, and not visibly so."""
        import open_clip

        if bool(quick_gelu) == bool(self.options.get("force_quick_gelu") or self.config.get("quick_gelu", False)):
            return
        plain = self.name.removesuffix("-quickgelu")
        other = f"{plain}-quickgelu" if quick_gelu else plain
        trained, built = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
        choice = f"choose {other!r}" if other in open_clip.list_models() else f"set force_quick_gelu to {quick_gelu}"
        raise ValueError(f"{source} were trained with {trained}, but {self.name} is built with {built}; {choice}")


def _essentials(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten what makes the architecture, with open_clip's defaults where the configuration is silent."""
    import open_clip

    parts = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg}
    essentials: dict[str, Any] = {"embed_dim": config.get("embed_dim")}
    for part, kind in parts.items():
        defaults = dataclasses.asdict(kind())
        for key, value in {**defaults, **(config.get(part) or {})}.items():
            if key not in INESSENTIAL:
                essentials[f"{part}.{key}"] = list(value) if isinstance(value, tuple) else value
    return essentials


@contextmanager
def _without_log_of_open_clip() -> Iterator[None]:
    """Keep out open_clip's word on random weights, which are meant or loaded later; it goes to the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname or record.levelno >= logging.ERROR

    root.addFilter(keep)
    root.addHandler(handler)  # without one, logging would set up its own for good
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(keep)
