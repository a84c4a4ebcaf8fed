"""How a model is built again: what travels with deltas and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from nc_finetune._common.data_facts import DataFacts, told_by
from nc_finetune.files.class_config import describe_if_possible

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelConfig:
    """What has to be known of a model beside its weights; JSON can hold all of it.

    Attributes:
        backbone_name: Architecture of the backbone.
        backbone: How the backbone is built, see :func:`~nc_finetune.files.class_config.describe`; like ``method`` and
            ``head`` it is ``None`` where that cannot be said, and the model has to be given.
        method: How the fine-tuning method is built.
        head: What builds the head from the width of the feature and the number of classes.
        num_classes: K.
        class_names: K names; ``None`` if they are not known.
        preprocessing: How the weights want their images: the fields of :class:`~nc_finetune.backbones.Preprocessing`.
        image_size: Height and width in pixels of the images that the model was fine-tuned on; ``None`` if not known.
        interpolation: The filter that resized them.
        multi_label: Whether an image may have several labels.
        independent_classes: Whether probabilities are sigmoids, each class on its own.
        taken_after_fit: Whether head and method are those that were taken after a fit of others.
        format_version: Version of this description.
    """

    backbone_name: str
    backbone: dict[str, Any] | None
    method: dict[str, Any] | None
    head: dict[str, Any] | None
    num_classes: int
    class_names: list[str] | None
    preprocessing: dict[str, Any]
    image_size: int | None = None
    interpolation: str | None = None
    multi_label: bool = False
    independent_classes: bool = False
    taken_after_fit: bool = False
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, where: str) -> ModelConfig:
        """Read what :meth:`to_json` returned.

        Args:
            content: The fields.
            where: What they were read from, for the message.

        Raises:
            ValueError: If fields are missing or unknown, or the version is another.
        """
        if not isinstance(content, Mapping) or content.get("format_version") != FORMAT_VERSION:
            found = content.get("format_version") if isinstance(content, Mapping) else None
            raise ValueError(f"{where} has a description of version {found}, this nc-finetune reads {FORMAT_VERSION}")
        try:
            return cls(**content)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"{where} has a damaged description: {error}; its fields are {known}") from error


def describe_model(model: Any, class_names: Sequence[str] | None = None, data: Any = None) -> ModelConfig:
    """Write down how a model is built again.

    What the model itself cannot know, class names and the size of its images, comes from the datamodule of the trainer
    that it is attached to, where that knows.

    Args:
        model: Anything with ``backbone``, ``head``, ``method`` and ``num_classes``.
        class_names: K names; ``None`` takes those of the datamodule.
        data: The datamodule; ``None`` is that of the trainer.

    Returns:
        The description.

    Raises:
        ValueError: If the number of names is not K.
    """
    facts = _data_of(model) if data is None else DataFacts(data)
    names = facts.class_names(model.num_classes) if class_names is None else class_names
    if names is not None and len(names) != model.num_classes:
        raise ValueError(f"the model has {model.num_classes} classes, got {len(names)} class names")
    return ModelConfig(
        backbone_name=model.backbone.name,
        backbone=describe_if_possible(model.backbone),
        method=describe_if_possible(model.method),
        head=getattr(model, "head_config", None),
        num_classes=model.num_classes,
        class_names=None if names is None else [str(name) for name in names],
        preprocessing={
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(model.backbone.preprocessing).items()
        },
        image_size=facts.image_size,
        interpolation=facts.interpolation,
        multi_label=bool(getattr(model, "multilabel", False)),
        independent_classes=bool(getattr(model, "independent_classes", False)),
        taken_after_fit=hasattr(model, "taken_head") and model.taken_head.is_used,
    )


def described_key_layer(content: Any) -> str | list[str] | None:
    """Return the key layer in what :meth:`ModelConfig.to_json` gave; ``None`` where none is named."""
    method = content.get("method") if isinstance(content, Mapping) else None
    while isinstance(method, Mapping):
        arguments = method.get("init_args", {})
        if "key_layer" in arguments:
            found: str | list[str] | None = arguments["key_layer"]
            return found
        method = arguments.get("method")  # of a method in two phases
    return None


def _data_of(model: Any) -> DataFacts:
    try:
        return told_by(model.trainer)
    except (AttributeError, RuntimeError):  # Lightning's way to say that no trainer is attached
        return DataFacts()
