"""Whether the images and weights of earlier runs are those that are there now."""

from __future__ import annotations

from dataclasses import dataclass, field

from nc_finetune.backbones import weights_hash
from nc_finetune.data import load_source
from nc_finetune.results.identity import differences, flatten
from nc_finetune.results.result import SCHEMA_VERSION, Result
from nc_finetune.run.cell import Cell

_UNREADABLE = (ValueError, RuntimeError, OSError, ImportError)


@dataclass
class Comparison:
    """Compare runs with what a grid would be run on; every data set and every network is read once.

    Attributes:
        problems: What could not be compared, a sentence each.
    """

    problems: list[str] = field(default_factory=list)
    _known: dict[tuple[str, ...], str | None] = field(default_factory=dict)

    def what_differs(self, result: Result, cell: Cell) -> str | None:
        """Say in what a run differs from what its cell would be run on now.

        Args:
            result: A run of that name.
            cell: What would be run.

        Returns:
            The difference in words; ``None`` where there is none, or it cannot be told.
        """
        if result.config and (settings := differences(flatten(result.config), flatten(cell.config))):
            return f"was run with another {', '.join(settings)}"
        if self._changed(result.provenance.get("data_fingerprint"), self._data(result, cell)):
            if result.schema_version < SCHEMA_VERSION:
                return "is of an older version, which does not tell whether its images were those that are there now"
            return f"is of other images than those that are now in {cell.dataset.source}"
        if self._changed(result.provenance.get("weights_hash"), self._weights(result, cell)):
            return f"is of other weights than those that {cell.backbone.name} has now"
        return None

    @staticmethod
    def _changed(before: object, now: str | None) -> bool:
        return isinstance(before, str) and now is not None and before != now

    def _data(self, result: Result, cell: Cell) -> str | None:
        """Hash the data as they are; ``None`` where nothing was recorded to compare with, or they cannot be read."""
        if result.provenance.get("data_fingerprint") is None:
            return None
        spec = cell.dataset
        key = ("data", spec.source, str(spec.image_column), str(spec.label_column))
        if key not in self._known:
            try:
                source = load_source(spec.location, spec.image_column, spec.label_column)
                self._known[key] = source.fingerprint()
            except _UNREADABLE as error:
                self._known[key] = None
                self._say(f"the images in {spec.source}", error)
        return self._known[key]

    def _weights(self, result: Result, cell: Cell) -> str | None:
        """Hash the weights; random ones are those of the seed and the version of torch, and not compared."""
        spec = cell.backbone
        known = cell.method.pretrained and result.provenance.get("weights_hash") is not None
        if spec.weights is None or not known:
            return None
        key = ("weights", spec.name, spec.weights, repr(sorted(spec.model_options.items())), repr(spec.options))
        if key not in self._known:
            try:
                self._known[key] = weights_hash(cell.build_backbone().model)
            except _UNREADABLE as error:
                self._known[key] = None
                self._say(f"the weights of {spec.name}", error)
        return self._known[key]

    def _say(self, what: str, error: Exception) -> None:
        reason = str(error).partition("\n")[0]
        self.problems.append(f"{what} cannot be compared with those of earlier runs, which stand: {reason}")
