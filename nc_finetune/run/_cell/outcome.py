"""What the result of a run says, as far as the run has come."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import lightning as L
from torch import nn

from nc_finetune._common.explain import explain
from nc_finetune.backbones import PENULTIMATE, weights_hash
from nc_finetune.data import ImageData
from nc_finetune.results.result import Result
from nc_finetune.run._cell.calibration import HeadLogits, calibrated
from nc_finetune.run._cell.recording import TestConfusion, delta_size, solved_head
from nc_finetune.run._cell.training import Fit, score_name
from nc_finetune.run.cell import Cell, options_of
from nc_finetune.run.provenance import environment
from nc_finetune.run.specs import split_size

SPLITS = ("train", "val", "test")
_EXAMPLES = 3  # of images or names in one sentence


def planned_result(cell: Cell) -> Result:
    """Return what is known of a run before it starts."""
    samples_per_class, train_share = split_size(cell.samples_per_class)
    method, config = cell.build_method(), cell.config
    head = method.own_head or cell.head.class_to_build()
    return Result(
        run_id=cell.run_id,
        backbone=cell.backbone.name,
        weights=cell.backbone.weights,
        dataset=cell.dataset_name,
        method=cell.method.method_class().name,
        key_layer=_span(method.key_layer),
        config=config,
        options=options_of(config),
        head=_snake(head) if isinstance(head, type) else Result.head,
        loss=_snake(cell.loss.class_to_build() or nn.CrossEntropyLoss),
        seed=cell.seed,
        samples_per_class=samples_per_class,
        train_share=train_share,
        nc1_normalize=cell.settings.normalize,
        epochs=cell.settings.epochs if method.trains else 1,
        provenance=environment(),
    )


def with_network(result: Result, cell: Cell) -> Result:
    """Add the hash of the network that every fit begins with, before a method adds anything to it, and its block."""
    L.seed_everything(cell.seed, verbose=False)
    backbone = cell.build_backbone()
    known = {**result.provenance, "weights_hash": weights_hash(backbone.model)}
    return replace(result, provenance=known, key_layer=_span(cell.build_method().key_layers(backbone)))


def with_data(result: Result, cell: Cell, data: ImageData) -> Result:
    """Add what is trained and tested on."""
    doubled = data.duplicates
    counts = zip(data.class_names, data.class_counts, strict=True)
    hashes = {"data_fingerprint": data.fingerprint, "splits_hash": data.splits_hash}
    return replace(
        result,
        loss=_snake(type(cell.loss.build_for(data))),
        train_size=len(data.train_set),
        split_sizes={name: len(data.images(name)) for name in SPLITS},
        class_names=list(data.class_names),
        untrained_classes=[name for name, count in counts if not count],
        doubled_images=len(doubled),
        doubled_examples=[str(found) for found in doubled[:_EXAMPLES]],
        provenance={**result.provenance, **hashes},
    )


def failed_result(cell: Cell, error: Exception) -> Result:
    """Return the result of a cell that came to nothing.

    Args:
        cell: What was to run.
        error: Why it did not.

    Returns:
        A result with status ``"failed"``.
    """
    return replace(planned_result(cell), status="failed", error=explain(error) or f"{type(error).__name__}: {error}")


def with_outcome(result: Result, fit: Fit, data: ImageData) -> Result:
    """Add what the chosen fit came to; this is the one time that the test split is touched."""
    model = fit.model
    (test,) = fit.trainer.test(model, datamodule=data, verbose=False)
    confusions = [part for part in fit.trainer.callbacks if isinstance(part, TestConfusion)]  # type: ignore[attr-defined]
    nc1 = fit.nc1_layers[PENULTIMATE]
    unmeasured = _unmeasured_classes(data)
    # Where a class has no image, or labels never stand alone, NC1 is undefined whatever the network does.
    collapsed = math.isnan(nc1) and not data.multi_label and not unmeasured
    undefined = math.isnan(nc1) and bool(unmeasured)
    logits = [part.of("test") for part in fit.trainer.callbacks if isinstance(part, HeadLogits)]  # type: ignore[attr-defined]
    calibration = calibrated(logits[0] if logits else None, fit.temperature, fit.tempered)
    measured = {name.removeprefix("test/"): 100 * value for name, value in test.items()}
    validated = {} if math.isnan(fit.val_score) else {score_name(data): fit.val_score}
    return replace(
        result,
        key_layer=_span(model.method.key_layers(model.backbone)),  # which may be one that folds chose
        head=_snake(type(model.taken_head.trained)),
        loss=_snake(type(model.loss)),
        accuracy=measured.get("accuracy"),
        balanced_accuracy=measured.get("balanced_accuracy"),
        average_precision=measured.get("average_precision"),
        val_accuracy=validated.get("accuracy"),
        val_average_precision=validated.get("average_precision"),
        nc1=nc1,
        nc1_layers=dict(fit.nc1_layers),
        collapse=dict(fit.collapse),
        tuned_parameters=model.tuned_parameters,
        total_parameters=model.total_parameters,
        tuned_percent=100 * model.tuned_parameters / model.total_parameters,
        learning_rate=fit.learning_rate,
        epochs=fit.epochs,
        epoch_seconds=fit.epoch_seconds,
        delta_bytes=delta_size(model),
        readout=solved_head(fit.trainer, model),
        learning_curve=fit.learning_curve,
        confusion=confusions[0].rows if confusions else [],
        class_spread=dict(fit.class_spread),
        closest_pairs=dict(fit.closest_pairs),
        calibration_error=calibration.error,
        tempered_calibration_error=calibration.tempered_error,
        temperature=calibration.temperature,
        status="diverged" if collapsed else "ok",
        error="NC1 is undefined: the class means coincide" if collapsed else None,
        bad_images=[str(bad) for bad in data.bad_images()],
        notes=[
            *result.notes,
            *([f"NC1 is undefined: no training image of {_listed(unmeasured)}"] if undefined else []),
        ],
    )


def _unmeasured_classes(data: ImageData) -> list[str]:
    """Name the classes of which no training image decodes."""
    images = data.train_set
    bad = {} if images.bad is None else {row for row in images.indices if images.bad[row]}
    sets = images.table.label_sets
    good = [row for row in images.indices if row not in bad]
    present = {label for row in good for label in (sets[row] if sets else (images.table.labels[row],))}
    return [name for label, name in enumerate(data.class_names) if label not in present]


def _listed(names: Sequence[str]) -> str:
    """Name a few, and count the rest."""
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(map(repr, names[:_EXAMPLES])) + more


def _snake(cls: type) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def _span(layers: str | Sequence[str] | None) -> str | None:
    """Name a key layer, or a span of them, in one word."""
    return layers if isinstance(layers, str) else "+".join(layers or ()) or None
