"""One JSON file per run: what was run, what came out, and where it came from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune.functional.discriminant import SHRINKAGES
from nc_finetune.functional.reference_heads import NEIGHBORS, PENALTIES
from nc_finetune.results.json_numbers import from_json, to_json

SCHEMA_VERSION = 2
_READABLE = (1, SCHEMA_VERSION)
Status = Literal["ok", "diverged", "failed"]
Measure = Literal["accuracy", "average precision"]
# What numbers of a solved head are chosen from.
_LISTS: dict[str, Sequence[float]] = {"shrinkage": SHRINKAGES, "l2": PENALTIES}
# At these a list ends since there is nothing beyond.
_LIMITS: dict[str, float] = {"shrinkage": 1, "neighbors": 1}
# Parts of a config that are specifications of their own.
_SPECS = ("backbone", "dataset", "method", "head", "loss", "choice", "settings")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of a benchmark grid.

    Attributes:
        run_id: Name of the run, unique in its grid and the same whenever the same cell is planned again.
        backbone: Name of the architecture.
        weights: The weights that were asked for; ``None`` is random initialisation.
        dataset: Name of the data set.
        method: Name of the fine-tuning method, e.g. ``"scl_ft"``.
        key_layer: The tuned block, where the method has one.
        config: Everything that the run depends on, as its cell says it: backbone, data set, method, head and loss with
            all arguments, training size, seed and settings. Empty in records of schema version 1.
        options: Arguments of method, backbone, head and loss that differ from their defaults, and
            ``balance_classes`` where classes were drawn equally often.
        head: Class of the classifier.
        loss: Class of the training loss.
        seed: Seed of the training sample, of the head's initialisation and of the order of the batches.
        samples_per_class: Training images a class; ``None`` is the whole training split.
        train_share: Share of the training split that was trained on; ``None`` is all of it.
        train_size: Training images in all.
        split_sizes: Images of ``"train"``, ``"val"`` and ``"test"``.
        doubled_images: Images that are in two splits, file by file; ``None`` where it was not looked for.
        doubled_examples: The first of them.
        untrained_classes: Names of the classes without a training image.
        notes: What was warned of, and what is undefined and why.
        accuracy: Test accuracy in per cent; like the two below ``None`` where images have several labels.
        balanced_accuracy: Test accuracy in per cent in which every class counts the same.
        val_accuracy: Accuracy in per cent by which the learning rate was chosen: on the validation split, or where
            folds chose on training images, each held out of the fit that judged it.
        average_precision: Of images with several labels, mean average precision on the test split in per cent.
        val_average_precision: The same of what the learning rate was chosen by.
        nc1: NC1 of what the classifier sees, on the training split; of images with several labels, those with one label
            alone count, and it is ``None`` where a label never is alone.
        nc1_normalize: Convention of every NC1 of the run.
        nc1_layers: NC1 by layer, from the stem to the penultimate feature.
        collapse: NC1-NC4 of what the classifier sees, on the training split, by their names in
            :class:`~nc_finetune.NeuralCollapse`; NC3 and NC4 where the decision is linear in the feature. Empty in
            records that are older than it. Of images with several labels also ``multilabel_variability``,
            ``multilabel_etf_distance`` and ``multilabel_scaled_average``, see
            :class:`~nc_finetune.functional.MultilabelCollapse`.
        class_spread: By class, the spread of what the classifier sees over the squared distance to the nearest other
            class, on the training split, see :func:`~nc_finetune.functional.class_collapse`: infinite where their means
            coincide, not known of a class without training images; empty where images have several labels, and in
            records that are older than it.
        closest_pairs: CDNV of the five pairs of classes that are closest there, by ``<class>|<class>``, see
            :func:`~nc_finetune.functional.pair_cdnv`; empty likewise.
        calibration_error: Expected calibration error on the test split in per cent, 15 bins, of the probabilities as
            the head was fitted; ``None`` where images have several labels, and in records that are older than it.
        tempered_calibration_error: The same at :attr:`temperature`.
        temperature: What logits are divided by, as images say that the model was not fitted to: of the validation
            split, of folds, or of a readout each training image, left out; ``None`` where there are none.
        tuned_parameters: Parameters that were trained, the head's included.
        total_parameters: Parameters of the backbone without its original classifier, and of the head.
        tuned_percent: ``100 * tuned_parameters / total_parameters``.
        learning_rate: The chosen rate of the tuned part (of the head, where nothing else is tuned).
        learning_rates: The score in per cent that rates were chosen by, by rate, those that the list was extended by
            among them; ``None`` where it diverged.
        choice: How else rates were chosen, where by folds or beyond their list: ``by``, and ``extensions``, how often
            the list was extended. Of ``folds`` also how many, the ``images`` that they held out, after which ``epochs``
            these were looked at, their ``scores`` then in per cent by rate, after how many epochs each rate
            ``stopped_after``, and the ``seconds`` of all fits but the last.
        epochs: Passes over the training data; where folds chose when to stop, until then.
        epoch_seconds: Median time of one training pass, validation left out.
        peak_memory_bytes: Largest memory in use: of the accelerator, or of the process on the CPU.
        delta_bytes: Size of what was tuned, as :func:`~nc_finetune.save_delta` writes it, without its description.
        run_seconds: Time of the whole run, with all candidate rates and folds, and the choice of the block, also of
            what an earlier process or run had done for it.
        processor_seconds: Time that processors spent on the whole run, all of them together; ``None`` where a part of
            it was done by an earlier process, or the choice of the block by an earlier run. What neighbouring runs of
            a grid share, decoded images and frozen prefixes, counts in the first of them.
        flops: Floating-point operations of the whole run, in convolutions, matrix products and attention, where the
            grid's settings ask to count them, nothing of it shared with others; ``None`` likewise.
        learning_curve: ``train_loss`` and ``train_accuracy`` (per cent, in train mode, along the way) by epoch; of
            images with several labels the loss alone.
        class_names: K names.
        confusion: One text a true class, ``"<predicted>:<count> ..."`` by label, of the test images; empty where these
            have several labels.
        selection: How the key layer was chosen, where it was ``"auto"``.
        readout: How the head was solved, where it was: ``layers``, ``shrinkage``, ``leave_one_out_accuracy`` in per
            cent, and where layers were chosen the accuracies ``by_layers``; of one that was solved after a fit which
            head was ``taken``, and validation accuracies ``by_heads``.
        status: ``"ok"``, ``"diverged"`` (a loss that is not finite, or class means that coincide although every class
            has training images) or ``"failed"``.
        error: What went wrong, where something did.
        bad_images: Images that did not decode and were left out, each with the reason.
        provenance: Versions, git commit, hash of the weights, fingerprint of the data, platform, device.
        schema_version: Version of this record.
    """

    run_id: str
    backbone: str
    weights: str | None
    dataset: str
    method: str
    key_layer: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    head: str = "linear"
    loss: str = "cross_entropy"
    seed: int = 0
    samples_per_class: int | None = None
    train_share: float | None = None
    train_size: int | None = None
    split_sizes: dict[str, int] = field(default_factory=dict)
    doubled_images: int | None = None
    doubled_examples: list[str] = field(default_factory=list)
    untrained_classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    val_accuracy: float | None = None
    average_precision: float | None = None
    val_average_precision: float | None = None
    nc1: float | None = None
    nc1_normalize: str = "none"
    nc1_layers: dict[str, float | None] = field(default_factory=dict)
    collapse: dict[str, float | None] = field(default_factory=dict)
    class_spread: dict[str, float | None] = field(default_factory=dict)
    closest_pairs: dict[str, float | None] = field(default_factory=dict)
    calibration_error: float | None = None
    tempered_calibration_error: float | None = None
    temperature: float | None = None
    tuned_parameters: int | None = None
    total_parameters: int | None = None
    tuned_percent: float | None = None
    learning_rate: float | None = None
    learning_rates: dict[str, float | None] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    epoch_seconds: float | None = None
    peak_memory_bytes: int | None = None
    delta_bytes: int | None = None
    run_seconds: float | None = None
    processor_seconds: float | None = None
    flops: int | None = None
    learning_curve: dict[str, list[float]] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    confusion: list[str] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)
    readout: dict[str, Any] = field(default_factory=dict)
    status: Status = "ok"
    error: str | None = None
    bad_images: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def measure(self) -> Measure:
        """What a run is judged by: accuracy, or average precision where images have several labels."""
        return "accuracy" if self.average_precision is None else "average precision"

    @property
    def score(self) -> float | None:
        """The measure on the test split, in per cent."""
        return self.accuracy if self.average_precision is None else self.average_precision

    @property
    def val_score(self) -> float | None:
        """The measure on the validation split, in per cent."""
        return self.val_accuracy if self.val_average_precision is None else self.val_average_precision

    @property
    def edges(self) -> tuple[str, ...]:
        """What was chosen and is the lowest or the highest of the values that were tried, though there are more beyond.

        Returns:
            ``"learning rate"``, names of options that folds chose, and of a solved head ``"shrinkage"``, ``"l2"`` or
            ``"neighbors"``.

        Example:
            >>> run = Result(run_id="r", backbone="b", weights=None, dataset="d", method="m", learning_rate=3e-3)
            >>> tried = {"0.001": 80.0, "0.003": 90.0}
            >>> dataclasses.replace(run, learning_rates=tried, readout={"neighbors": 100}).edges
            ('learning rate', 'neighbors')
        """
        chosen = [(name, value, tried) for name, value, tried in self._chosen() if value != _LIMITS.get(name)]
        found = [name for name, value, tried in chosen if not min(tried) < value < max(tried)]
        return (*found, *self.choice.get("edges", []))

    @property
    def bracketed(self) -> bool | None:
        """Whether lower and higher values than the chosen ones were tried, as far as there are any: no :attr:`edges`.

        ``None`` where nothing was chosen.

        Example:
            >>> run = Result(run_id="r", backbone="b", weights=None, dataset="d", method="m", learning_rate=3e-3)
            >>> tried = {"0.001": 80.0, "0.003": 90.0}
            >>> run.bracketed, dataclasses.replace(run, learning_rates=tried).bracketed
            (None, False)
        """
        return not self.edges if any(self._chosen()) else None

    @property
    def took_all_epochs(self) -> bool:
        """Whether folds chose after how many epochs to stop, and chose all that there were."""
        looked_at = self.choice.get("epochs", [])
        return len(looked_at) > 1 and self.epochs == max(looked_at)

    def _chosen(self) -> Iterator[tuple[str, float, Sequence[float]]]:
        """Name numbers that were chosen, each with its value and those that were tried."""
        if self.learning_rate is not None and self.learning_rates:
            yield "learning rate", float(f"{self.learning_rate:g}"), [float(rate) for rate in self.learning_rates]
        if self.readout.get("taken") == "trained":  # the solved head was not
            return
        for name, value in self.readout.items():
            if isinstance(value, (int, float)) and (tried := self._listed(name)):
                yield name, value, tried

    def _listed(self, name: str) -> Sequence[float]:
        """Return what a number of a solved head was chosen from; nothing where it was given, or is none of these."""
        solved = self.config.get("method", {}).get("solve_head")
        options = solved if isinstance(solved, dict) else self.options
        given = options.get(name, options.get(f"head.{name}"))
        if given is not None:
            return given if isinstance(given, list) and len(given) > 1 else ()
        size = math.inf if self.train_size is None else self.train_size
        return [number for number in NEIGHBORS if number < size] if name == "neighbors" else _LISTS.get(name, ())

    def confusion_matrix(self) -> list[list[int]]:
        """Return counts of test images, true classes downwards, predicted ones across; empty if they are not known.

        Example:
            >>> run = Result(
            ...     run_id="r", backbone="b", weights=None, dataset="d", method="m", confusion=["0:5 1:2", "1:7"]
            ... )
            >>> run.confusion_matrix()
            [[5, 2], [0, 7]]
        """
        matrix = [[0] * len(self.confusion) for _ in self.confusion]
        for row, text in zip(matrix, self.confusion, strict=True):
            for pair in text.split():
                predicted, count = pair.split(":")
                row[int(predicted)] = int(count)
        return matrix


def write_result(result: Result, folder: Path) -> Path:
    """Write a result as ``<folder>/<run_id>.json``, atomically.

    Args:
        result: The run.
        folder: The folder of the results.

    Returns:
        The path of the file.
    """
    path = folder / f"{result.run_id}.json"
    record = to_json(dataclasses.asdict(result))
    write_text_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return path


def read_result(path: Path) -> Result:
    """Read one result.

    Args:
        path: A JSON file that :func:`write_result` wrote.

    Returns:
        The run.

    Raises:
        ValueError: If the file is not a result of this schema version or of version 1, which says less.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete the file and run the benchmark again") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version not in _READABLE:
        readable = " and ".join(map(str, _READABLE))
        raise ValueError(f"{path} has schema version {version}, this version reads {readable}; run it again")
    try:
        result = Result(**from_json(record))
    except TypeError as error:
        raise ValueError(f"{path} is not a benchmark result ({error}); delete the file and run it again") from error
    if wrong := [name for name, hint in _HINTS.items() if not _fits(getattr(result, name), hint)]:
        raise ValueError(
            f"{path} is not a benchmark result ({wrong[0]} is {getattr(result, wrong[0])!r:.60}, which is no"
            f" {_HINTS[wrong[0]]}); delete the file and run it again"
        )
    if damage := _damage(result):
        raise ValueError(f"{path} is not a benchmark result (its {damage}); delete the file and run it again")
    return result


def _damage(result: Result) -> str:
    """Say what inside the parts of a record is not as it was written; empty where all is."""
    try:
        classes = len(result.confusion_matrix())
    except (ValueError, IndexError) as error:
        return f"confusion is damaged: {error}"
    if classes and len(result.class_names) not in (0, classes):
        return f"confusion is of {classes} classes, and {len(result.class_names)} are named"
    if wrong := [part for part in _SPECS if not isinstance(result.config.get(part, {}), dict)]:
        return f"config has {result.config[wrong[0]]!r:.60} as {wrong[0]}, which is no mapping"
    try:
        result.edges, result.took_all_epochs  # noqa: B018 - reads what was tried
    except (TypeError, ValueError, AttributeError) as error:
        return f"choice is damaged: {error}"
    return ""


_HINTS = get_type_hints(Result)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether what JSON holds is of a type; an integer is a float, too."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or origin is Literal:
        return hint is Any or value in parts
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if parts:  # a union
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def read_results(folder: Path) -> list[Result]:
    """Read every result of a folder, sorted by file name.

    Args:
        folder: The folder of the results.

    Returns:
        The runs; empty if the folder is not there.

    Raises:
        ValueError: If a file is not a result.
    """
    return [read_result(path) for path in sorted(folder.glob("*.json"))]
