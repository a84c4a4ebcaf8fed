"""What a tuning has measured of its model, for the card of it and for programs."""

from __future__ import annotations

from pathlib import Path

import torch

from nc_finetune.data import ImageData
from nc_finetune.deployment import Accuracy, ModelFacts
from nc_finetune.tuning.estimate import Estimate
from nc_finetune.tuning.readouts import good_places


def model_facts(
    data: ImageData,
    decision: str,
    estimate: Estimate,
    test: Estimate | None,
    calibration: str,
) -> ModelFacts:
    """Gather the facts.

    Args:
        data: The images.
        decision: What was chosen, a sentence.
        estimate: Accuracy to be expected on new images.
        test: On the test images, if there were any.
        calibration: A sentence, or nothing.
    """
    decoded = torch.tensor(data.images("train").labels)[good_places(data)]
    measured = {"test images, looked at once": test, "training images, each by what others teach": estimate}
    return ModelFacts(
        data=_name_of(data.source),
        class_counts=dict(zip(data.class_names, decoded.bincount(minlength=data.num_classes).tolist(), strict=True)),
        accuracies=tuple(
            Accuracy(on, found.accuracy, found.low, found.high, found.images)
            for on, found in measured.items()
            if found is not None and found.images
        ),
        calibration=calibration,
        decision=decision,
    )


def _name_of(source: str) -> str:
    """Return the name of a folder or file without where it lies, which is nobody's business; others are names."""
    path = Path(source).expanduser()
    if not path.exists() and not path.is_absolute():
        return source
    return path.resolve().name if path.name in ("", "..") else path.name  # not of where a link leads
