"""What was measured of a model, in a file beside it: for its card on the hub, and for programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nc_finetune._common.atomic_files import write_text_atomically

FACTS = "facts.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Accuracy:
    """An accuracy, and by what it was measured.

    Attributes:
        on: The images, in words.
        accuracy: A share, in ``[0, 1]``.
        low: Lower end of its 95 % interval.
        high: Upper end.
        images: How many.
    """

    on: str
    accuracy: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % (95 % interval {100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model beside what its file says.

    Attributes:
        data: What it was fine-tuned on, in a word or two; no path.
        class_counts: Training images by class.
        accuracies: Best known first.
        calibration: How far its probabilities are from shares of right answers, a sentence; empty if nobody measured.
        decision: What was chosen and why, a sentence.
    """

    data: str
    class_counts: Mapping[str, int]
    accuracies: tuple[Accuracy, ...] = ()
    calibration: str = ""
    decision: str = ""

    def write_beside(self, model: Path) -> None:
        """Write ``facts.json`` beside a model, which it names by its hash.

        Example:
            >>> import tempfile
            >>> model = Path(tempfile.mkdtemp()) / "model.safetensors"
            >>> _ = model.write_bytes(b"weights")
            >>> ModelFacts("photos", {"cat": 3, "dog": 4}).write_beside(model)
            >>> facts_beside(model).class_counts
            {'cat': 3, 'dog': 4}
        """
        content = {"format_version": _FORMAT_VERSION, "model_sha256": _sha256(model), **asdict(self)}
        write_text_atomically(model.with_name(FACTS), json.dumps(content, indent=1) + "\n")


def facts_beside(model: Path) -> ModelFacts | None:
    """Read what was measured of a model.

    Args:
        model: Its file.

    Returns:
        The facts; ``None`` where there is no ``facts.json`` beside it, or it is of another model.

    Raises:
        ValueError: If the file is damaged or of another version.
    """
    path = model.with_name(FACTS)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, of_model = content.pop("format_version"), content.pop("model_sha256")
        if version != _FORMAT_VERSION:
            raise ValueError(f"version {version}")
        accuracies = tuple(Accuracy(**one) for one in content.pop("accuracies"))
        facts = ModelFacts(accuracies=accuracies, **content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version of nc-finetune ({error}); delete it") from error
    return facts if of_model == _sha256(model) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
