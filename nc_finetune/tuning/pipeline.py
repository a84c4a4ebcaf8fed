"""From a folder of images to a model that one can trust."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from tempfile import gettempdir

import lightning as L
import torch
from torch import Tensor

from nc_finetune._common.atomic_files import write_text_atomically
from nc_finetune._common.quiet import quietly
from nc_finetune._common.terminal import duration
from nc_finetune.backbones import Backbone
from nc_finetune.callbacks import PredictionWriter
from nc_finetune.classifier import DivergedError, ImageClassifier
from nc_finetune.data import ImageData
from nc_finetune.data.labelled_images import LabelledImages, SkippingLoader, collate
from nc_finetune.deployment import check_push, load_delta, push_model
from nc_finetune.report import check_report_extra
from nc_finetune.report.tuned_page import render_tuned_page
from nc_finetune.run.ray_tasks import RayTasks
from nc_finetune.selection.shared_caches import pixel_folder
from nc_finetune.tuning.estimate import Estimate, estimate_accuracy
from nc_finetune.tuning.facts import model_facts
from nc_finetune.tuning.first_answers import check_networks, choose_backbone, read_out_at_sizes
from nc_finetune.tuning.folder import MODEL, PREDICTIONS, REPORT, Identity, Step, TuneFolder
from nc_finetune.tuning.images import (
    Hashes,
    TestImages,
    all_labelled,
    check_images,
    hashes_of,
    labelled_hashes,
    listed,
    undecoded,
)
from nc_finetune.tuning.judged import Judged, best_of, estimate_best
from nc_finetune.tuning.label_command import label_command
from nc_finetune.tuning.page import describe
from nc_finetune.tuning.search import Search
from nc_finetune.tuning.work import Clock, Work

DEFAULT_BACKBONE = "tf_efficientnet_lite0=package"
Tell = Callable[[str], None]
_NAMED = 10  # images
_LARGEST, _SHARE_OF_DISK = 384, 0.25


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to.

    Attributes:
        model: The classifier, in eval mode; ``model.safetensors`` holds it.
        estimate: Its accuracy on new images, by images that it, or its like, was not trained on.
        test: Its accuracy on the test images; ``None`` where there were none.
        decision: What was chosen and why, a sentence.
        judged: Everything that was compared, the chosen one among it.
        left_out: What was not tried for want of time, by name.
        out: The folder.
        seconds: What all of it took, work of earlier processes included.
    """

    model: ImageClassifier = field(repr=False)
    estimate: Estimate
    test: Estimate | None
    decision: str
    judged: list[Judged] = field(repr=False)
    left_out: list[str]
    out: Path
    seconds: float

    @property
    def report(self) -> Path:
        """The page about it."""
        return self.out / REPORT

    @property
    def commands(self) -> list[str]:
        """What to type to predict, and to export; nothing of random weights, with which no command can load a model."""
        if self.model.backbone.weights is None:
            return []
        return [
            f"nc-finetune predict {quote(str(self.model_file))} FOLDER --out predictions.csv",
            f"nc-finetune export {quote(str(self.model_file))} --to onnx --out model.onnx",
        ]

    @property
    def model_file(self) -> Path:
        """The file of the model."""
        return self.out / MODEL


def tune(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] = "tuned",
    *,
    backbones: Sequence[str] = (DEFAULT_BACKBONE,),
    minutes: float | None = None,
    test: str | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    group: str | None = None,
    force: bool = False,
    executor: RayTasks | None = None,
    push_to_hub: str | None = None,
    tell: Tell = lambda line: None,
) -> Tuned:
    """Find the best classifier for some labelled images in the time that there is; no label is wasted.

    After one forward pass there is an answer: the readout of the frozen network, which is saved at once, with its
    leave-one-out accuracy. Then larger images are tried, and, as long as time is left, ways to tune the network, from
    cheap to dear, each judged on folds of the training images. The best of all is fitted to all of them. Test images
    are touched once, at the end. Whatever ends a run, what it has found stays in ``out``, and the same call goes on
    there.

    Args:
        source: Labelled images, as for :class:`~nc_finetune.ImageData`. Its training and validation split are learnt
            from.
        out: Folder of the model, the report and the state.
        backbones: Pre-trained networks, ``"name=weights"`` or ``"name"``; of several the one with the best readout is
            taken. See :func:`~nc_finetune.create_backbone`.
        minutes: How long it may take; ``None`` is as long as one full fine-tuning of 15 epochs, 10 minutes at most.
        test: A share or number of images to hold out for the test, or another source of them; ``None`` is the test
            split of the source, if it has one.
        image_size: Height and width to which images are resized; ``None`` tries several.
        batch_size: Images a step.
        seed: One seed, one result, as far as time does not decide.
        image_column: Of a table; ``None`` finds it.
        label_column: Likewise.
        group: Column, or pattern of file names, of what belongs together and is never parted by folds.
        force: Go on where images would spoil the model or its test.
        executor: Spreads candidates over processes of a Ray cluster (extra ``ray``), which all find the images and the
            weights under the same names; ``None`` judges one after the other here.
        push_to_hub: ``"user/name"`` to which the model goes at the end, as a private repository of the Hugging Face hub
            with a card (extra ``hub``); see :func:`~nc_finetune.deployment.push_model`.
        tell: Called with each line of progress.

    Returns:
        The model, how good it is, and how it was chosen.

    Raises:
        ValueError: If images, folder, networks or arguments cannot be used; the message says what to do. Before any
            work, if nobody is logged in at the hub, or the repository exists.
        FileNotFoundError: If the source is a path and nothing is there.

    Example:
        >>> import tempfile
        >>> quick = {"backbones": ["test_resnet=null"], "image_size": 32, "minutes": 0.01}
        >>> found = tune("sklearn:digits", tempfile.mkdtemp(), test="0.9", **quick)
        >>> found.model_file.name, found.estimate.accuracy > 0.5
        ('model.safetensors', True)
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    if not backbones:
        raise ValueError("there must be at least one backbone, such as " + DEFAULT_BACKBONE)
    check_report_extra()
    if push_to_hub is not None:
        check_push(push_to_hub)
    options = {"image_column": image_column, "label_column": label_column, "group": group}
    options = {name: value for name, value in options.items() if value is not None}
    settings = {"backbones": list(backbones), "test": test, "image_size": image_size, "batch_size": batch_size}
    folder, clock = TuneFolder(Path(out)), Clock(None if minutes is None else 60 * minutes)
    with folder.locked(), quietly() as notes:
        data, tested = all_labelled(
            str(source), test, image_size=224, batch_size=batch_size, seed=seed, on_bad_image="skip", **options
        )
        named = str(Path(source).resolve()) if Path(source).exists() else str(source)
        settings |= {"seed": seed, **options, **_weight_files(backbones)}
        hashes = hashes_of(data, tested)
        identity = Identity.of(named, settings, labelled_hashes(data, tested, hashes))
        _check(data, tested, hashes, force, tell)
        changes = folder.open_for(identity, partial(check_networks, data, backbones, image_size))
        if changes:
            tell(f"since the last time {', '.join(changes)}; what was found then lies in {folder.path / 'earlier'}")
        if _fits_on_disk(data):
            data.pixel_cache = pixel_folder()
        work = Work(folder, data, tested, hashes, clock, seed, tell, notes=notes, executor=executor)
        work.tell_notes()
        found = _run(work, list(backbones), image_size)
    if list(backbones) == [DEFAULT_BACKBONE]:
        tell(
            "a larger network would recognise more: name some by --backbones, such as vit_base_patch14_dinov2, once"
            " there is a network to load it from"
        )
    for line in (f"report: {found.report}", *found.commands):
        tell(line)
    if push_to_hub is not None:  # last: it may fail
        tell(f"on the hub: {push_model(found.model_file, push_to_hub)}")
    return found


def _weight_files(backbones: Sequence[str]) -> dict[str, str]:
    """Return in which state the files of weights are that are named."""
    paths = {name: Path(name.partition("=")[2]) for name in backbones}
    return {
        f"weights of {name}": f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
        for name, path in paths.items()
        if path.is_file()
    }


def _fits_on_disk(data: ImageData) -> bool:
    """Tell whether decoded images of the largest size take little of the room where temporary files go."""
    free = shutil.disk_usage(gettempdir()).free
    return 3 * _LARGEST**2 * len(data.images("train")) < _SHARE_OF_DISK * free


def _check(data: ImageData, tested: TestImages | None, hashes: Hashes, force: bool, tell: Tell) -> None:
    """Refuse what would spoil the model."""
    counts = data.class_counts
    if max(counts) < 2:
        raise ValueError(
            f"each of the {sum(map(bool, counts))} classes of {data.source} has one image alone: classes are the names"
            " of folders, or of a column; give each at least two images"
        )
    faults = check_images(data, tested, hashes)
    if faults and not force:
        raise ValueError(f"{'; '.join(faults)}; mend the images, or go on as they are with --force")
    for fault in faults:
        tell(f"note: {fault}")


def _run(work: Work, backbones: list[str], image_size: int | None) -> Tuned:
    counts = [count for count in work.data.class_counts if count]
    each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"
    work.tell(f"{len(work.labels):,} images of {len(counts)} classes, {each} each")
    name, backbone = choose_backbone(work, backbones, image_size)
    if name.endswith("=null"):
        work.tell(
            f"note: the weights of {name.partition('=')[0]} are random, and the file of the model does not hold them:"
            " no command can load it again; for a model to be used name weights, or a file of them"
        )
    readout = read_out_at_sizes(work, name, backbone, image_size)
    search = Search(work, name, backbone, readout)
    search.run()
    best, model = _best_fitted(work, backbone, search)
    estimate = estimate_best(work.judged, work.labels, work.seed, work.lost)
    decision = _in_words(best, work, estimate, search.said_of_rate(best))
    work.tell(decision)
    test = None if work.tested is None else _test(model, work)
    found = Tuned(model, estimate, test, decision, work.judged, work.left_out, work.folder.path, work.clock.spent)
    said = {"backbone": None if backbones == [DEFAULT_BACKBONE] else name, "image_size": image_size}
    _write_page(work, found, best, backbone, label_command(work.data, group=work.data.plan.group, **said))
    _predict(work, model)
    work.tell_notes()
    return replace(found, seconds=work.clock.spent)


def _best_fitted(work: Work, backbone: Backbone, search: Search) -> tuple[Judged, ImageClassifier]:
    """Fit the best to all images; where that diverges, the next."""
    while True:
        best = best_of(work.judged, work.labels)
        try:
            return best, _fitted(work, best, backbone, search)
        except DivergedError as error:
            work.tell(f"{best.name}, fitted to all images: {error}")
            work.judged = [one for one in work.judged if one.candidate is None or one.candidate != best.candidate]


def _fitted(work: Work, best: Judged, backbone: Backbone, search: Search) -> ImageClassifier:
    """Return the best one, fitted to all images, and write it; take it from its file where it is there already."""
    known = work.folder.read("final")
    facts = {"name": best.name, "epochs": best.epochs, "image_size": best.image_size, "doubts": True}
    work.data.image_size = best.image_size
    path = work.folder.path / MODEL
    if known is not None and known.facts == facts and path.is_file():
        return load_delta(path, _unfitted(work, best, backbone)).eval()
    if best.readout is not None:
        model = best.readout.build(backbone, work.data.num_classes)
    else:
        work.tell(f"{best.name}: fitted to all {len(work.labels):,} images, {best.epochs} epochs")
        model = search.fit_to_all(best)
    work.save(model)
    work.folder.write("final", Step(facts))
    return model


def _unfitted(work: Work, best: Judged, backbone: Backbone) -> ImageClassifier:
    built = best.readout or best.candidate
    assert built is not None  # noqa: S101 - it is one or the other
    return built.build(backbone, work.data.num_classes)


def _in_words(best: Judged, work: Work, estimate: Estimate, rate: str) -> str:
    others = f", the best of {len(work.judged)} that were judged" if len(work.judged) > 1 else ""
    missing = f"; {len(work.left_out)} more were not tried for want of time" if work.left_out else ""
    rate = rate and f", {rate}"
    return f"chosen: {best.name}{rate}{others}{missing}; to be expected on new images: {estimate}"


def _test(model: ImageClassifier, work: Work) -> Estimate | None:
    """Look at the test images."""
    assert work.tested is not None  # noqa: S101 - what calls this has looked
    tested = work.tested
    tested.images.decode, tested.images.pixels = work.data.images("train").decode, None
    logits, labels = predicted(model, tested.images, work.data.batch_size)
    if not len(labels):
        work.tell(f"note: no image of {tested.name} decodes: there is no test")
        return None
    if bad := undecoded(tested.images):
        work.tell(f"note: {len(bad)} images of {tested.name} do not decode and are left out: {listed(bad)}")
    ours = {name: label for label, name in enumerate(work.data.class_names)}
    numbered = torch.tensor([ours[name] for name in tested.class_names])
    found = estimate_accuracy([logits.argmax(1) == numbered[labels]])
    work.tell(f"{tested.name}: {found}, {found.images:,} images, looked at once")
    return found


@torch.inference_mode()
def predicted(model: ImageClassifier, images: LabelledImages, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, K)`` and labels ``(N,)`` of those images that decode, in their order, on the CPU."""
    loader = SkippingLoader(images, batch_size=batch_size, collate_fn=collate)
    model.eval()
    found = [(model(batch.to(model.device)).float().cpu(), labels) for batch, labels in loader]
    if not found:
        return torch.empty(0, model.num_classes), torch.empty(0, dtype=torch.long)
    return torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found])


def _write_page(work: Work, found: Tuned, best: Judged, backbone: Backbone, to_mend: str) -> None:
    tested = work.tested
    said = [f"{found.decision[0].upper()}{found.decision[1:]}."]
    if tested is not None and found.test is not None:
        said.append(f"On {tested.name}, looked at once: {found.test}, {found.test.images:,} images.")
    said.append(f"All of it took {duration(found.seconds)}.")
    page = describe(f"Tuned on {work.data.source}", said, work, best, found.model, backbone, found.commands)
    write_text_atomically(found.report, render_tuned_page(page))
    calibration = page.facts.get("calibration", "")
    model_facts(work.data, found.decision, found.estimate, found.test, calibration).write_beside(found.model_file)
    if page.doubtful:
        named = (f"{image.file} ({image.label}, looks like {image.suggested})" for image in page.doubtful[:_NAMED])
        work.tell(f"labels to look at first: {', '.join(named)}; all of them, to be mended: {to_mend}")


def _predict(work: Work, model: ImageClassifier) -> None:
    """Write what the model says of images without a label, where there are any."""
    if work.data.files is None:
        return
    path = work.folder.path / PREDICTIONS
    trainer = L.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(path)],
    )
    trainer.predict(model, datamodule=work.data, return_predictions=False)
    work.tell(f"{len(work.data.files):,} images without a label: {path}")
