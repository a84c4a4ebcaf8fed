"""Fine-tune a pre-trained image backbone by changing as little of it as possible, guided by neural collapse."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nc_finetune.backbones import Backbone as Backbone
    from nc_finetune.backbones import OpenClipBackbone as OpenClipBackbone
    from nc_finetune.backbones import TimmBackbone as TimmBackbone
    from nc_finetune.backbones import create_backbone as create_backbone
    from nc_finetune.callbacks import DeltaCheckpoint as DeltaCheckpoint
    from nc_finetune.callbacks import LayerwiseNC1 as LayerwiseNC1
    from nc_finetune.classifier import DivergedError as DivergedError
    from nc_finetune.classifier import ImageClassifier as ImageClassifier
    from nc_finetune.data import ImageData as ImageData
    from nc_finetune.deployment import load_delta as load_delta
    from nc_finetune.files import save_delta as save_delta
    from nc_finetune.metrics import NeuralCollapse as NeuralCollapse
    from nc_finetune.tuning import tune as tune

# Imported when first used: torch, Lightning and timm take seconds, and `nc-finetune --help` needs none of them.
_HOMES = {
    "Backbone": "backbones",
    "DeltaCheckpoint": "callbacks",
    "DivergedError": "classifier",
    "ImageClassifier": "classifier",
    "ImageData": "data",
    "LayerwiseNC1": "callbacks",
    "NeuralCollapse": "metrics",
    "OpenClipBackbone": "backbones",
    "TimmBackbone": "backbones",
    "create_backbone": "backbones",
    "load_delta": "deployment",
    "save_delta": "files",
    "tune": "tuning",
}
_ROOMS = {
    *("backbones", "callbacks", "data", "deployment", "files", "functional", "heads", "losses", "methods", "metrics"),
    *("report", "results", "run", "selection", "tuning"),
}

__version__ = version("nc-finetune")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
