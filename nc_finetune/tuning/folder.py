"""The folder of a tuning: each finished step in one file, and what the images were, so that it goes on where it was."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nc_finetune._common.atomic_files import write_atomically, write_text_atomically
from nc_finetune.deployment.model_facts import FACTS

MODEL, REPORT, PREDICTIONS = "model.safetensors", "report.html", "predictions.csv"
_FORMAT_VERSION = 1
_RUN, _STEPS, _KEY = "tune.json", "steps", "step"
_RESULTS = (MODEL, REPORT, PREDICTIONS, FACTS, _RUN, _STEPS)
_PATIENCE = 10.0


@dataclass(frozen=True)
class Identity:
    """What a tuning is of.

    Attributes:
        source: Where the images come from, as it was given.
        settings: What else decides about the outcome, ready for JSON.
        order: Hash of the images in their order: what is kept goes by their places.
        images: By the hash of each labelled image, ``"<number of it>"`` where it is there more than once, its split
            and its class.
    """

    source: str
    settings: dict[str, Any]
    images: dict[str, str]
    order: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "format_version": _FORMAT_VERSION,
            "source": self.source,
            "settings": self.settings,
            "order": self.order,
            "of": self.images,
        }

    @classmethod
    def of(cls, source: str, settings: Mapping[str, Any], images: Iterator[tuple[str, str]]) -> Identity:
        """Return the identity of images.

        Args:
            source: Where they come from.
            settings: What else decides.
            images: Hash, and split with class, of each.
        """
        seen: Counter[str] = Counter()
        found: dict[str, str] = {}
        order = hashlib.blake2b(digest_size=16)
        for digest, label in images:
            order.update(f"{digest} {label}\n".encode())
            found[f"{digest} {seen[digest]}" if seen[digest] else digest] = label
            seen[digest] += 1
        return cls(source, json.loads(json.dumps(dict(settings))), found, order.hexdigest())

    def changes_since(self, before: Identity) -> list[str]:
        """Say in a few words each what differs from an earlier one; nothing where all is the same."""
        new, gone = self.images.keys() - before.images.keys(), before.images.keys() - self.images.keys()
        moved = [name for name in self.images.keys() & before.images.keys() if self.images[name] != before.images[name]]
        counted = ((len(new), "new"), (len(gone), "gone"), (len(moved), "in another class or split"))
        said = [f"{number:,} images are {what}" for number, what in counted if number]
        settings = (
            f"{name} is {self.settings.get(name)} in place of {before.settings.get(name)}"
            for name in sorted({*self.settings, *before.settings})
            if self.settings.get(name) != before.settings.get(name)
        )
        moved_rows = ["images are in another order"] if not said and self.order != before.order else []
        return [*said, *moved_rows, *settings]


@dataclass(frozen=True)
class Step:
    """What a finished step found.

    Attributes:
        facts: Ready for JSON.
        tensors: By name.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class TuneFolder:
    """Where a tuning keeps what it has found.

    Args:
        path: The folder; made when something is written.

    Example:
        >>> import tempfile, torch
        >>> folder = TuneFolder(Path(tempfile.mkdtemp()))
        >>> folder.write("readout 64", Step({"accuracy": 0.5}, {"logits": torch.zeros(2, 3)}))
        >>> folder.read("readout 64").facts
        {'accuracy': 0.5}
        >>> folder.read("readout 96") is None
        True
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out; remove what a killed one was writing.

        Raises:
            ValueError: If another one is at work there, or the folder holds files of something else.
            NotADirectoryError: If the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"--out is a folder, and {self.path} is a file; choose another")
        self._refuse_others()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise ValueError(
                f"another tuning is at work in {self.path}; wait for it, or choose another --out"
            ) from error
        try:
            for folder in (self.path, self.path / _STEPS):
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def open_for(self, identity: Identity, check: Callable[[], object] = lambda: None) -> list[str]:
        """Begin, or go on; what was found of other images or with other settings is moved to ``earlier/<number>``.

        Args:
            identity: What is to be tuned.
            check: Called before anything is moved; what it raises leaves the folder as it is.

        Returns:
            What has changed since the last time, a sentence each; empty where nothing has.

        Raises:
            ValueError: If the folder holds a tuning of another source, or files of something else.
        """
        before = self._identity()
        changes: list[str] = []
        if before is None:
            self._refuse_others()
        else:
            if before.source != identity.source:
                raise ValueError(
                    f"{self.path} holds a tuning of {before.source}, not of {identity.source}; choose another --out"
                )
            changes = identity.changes_since(before)
            if changes and not any((self.path / name).exists() for name in (MODEL, _STEPS)):
                changes = []  # nothing was found then
            elif changes:
                check()
                self._set_aside()
        if before != identity:
            write_text_atomically(self.path / _RUN, json.dumps(identity.to_json()) + "\n")
        return changes

    def read(self, name: str) -> Step | None:
        """Return what a step has found; ``None`` where it is still to be done, or its file is damaged."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_KEY])
                return Step(facts, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
            return None

    def write(self, name: str, step: Step) -> None:
        """Keep what a step has found: all of it, or nothing."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in step.tensors.items()}
        write_atomically(self._path(name), save(tensors, {"format": "pt", _KEY: json.dumps(step.facts)}))

    def _refuse_others(self) -> None:
        """Refuse a folder of something else, before anything is written there."""
        if not self.path.is_dir() or (self.path / _RUN).exists():
            return
        if others := sorted(path.name for path in self.path.iterdir() if path.name[0] != "."):
            raise ValueError(f"{self.path} holds other files, such as {others[0]}; choose an empty --out, or a new one")

    def _path(self, name: str) -> Path:
        return self.path / _STEPS / f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}.safetensors"

    def _identity(self) -> Identity | None:
        path = self.path / _RUN
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"version {content['format_version']}")
            return Identity(content["source"], content["settings"], content["of"], content["order"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or of another version of nc-finetune ({error}); choose another --out"
            ) from error

    def _set_aside(self) -> None:
        earlier = next(
            free for number in itertools.count(1) if not (free := self.path / "earlier" / str(number)).exists()
        )
        earlier.mkdir(parents=True)
        for name in _RESULTS:
            if (self.path / name).exists():
                (self.path / name).replace(earlier / name)
