"""From no answer to one in a single pass: readouts of the networks, at one image size and then at larger ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from nc_finetune.backbones import Backbone, create_backbone
from nc_finetune.data import ImageData
from nc_finetune.selection.device import best_device
from nc_finetune.tuning.estimate import estimate_accuracy
from nc_finetune.tuning.judged import Judged, right
from nc_finetune.tuning.readouts import (
    TURNS,
    Readout,
    good_places,
    image_sizes,
    log_likelihoods,
    read_out,
    takes_size,
    typical_side,
)
from nc_finetune.tuning.work import Work

_SHARE_OF_A_PASS = 0.25  # of the time that is left, for a pass at a larger size
_CLEARLY = 1.0  # standard errors


def check_networks(data: ImageData, names: Sequence[str], image_size: int | None) -> None:
    """Build each network, and see whether it takes images of a size.

    Args:
        data: The images.
        names: As for :func:`build_network`.
        image_size: Of the images; ``None`` finds sizes that it takes.

    Raises:
        ValueError: If it cannot be built, or takes none of that size.
        UnavailableError: If weights cannot be had from the hub.
    """
    for name in names:
        network = build_network(name)
        if image_size is not None:
            first_size(data, network, image_size)


def choose_backbone(work: Work, names: Sequence[str], image_size: int | None) -> tuple[str, Backbone]:
    """Return the network with the likeliest leave-one-out readout at its first size, which is saved at once.

    Args:
        work: What is shared.
        names: ``"name=weights"``, at least one.
        image_size: Of the images; ``None`` is a small one.

    Returns:
        The name as it was given, and the network.
    """
    if len(names) == 1:
        return names[0], build_network(names[0], work.seed)
    scores: dict[str, float] = {}
    for name in names:
        backbone = build_network(name, work.seed)
        found = _read_out(work, name, backbone, first_size(work.data, backbone, image_size))
        scores[name] = log_likelihoods(found.logits, work.labels).nanmean().item()
        if scores[name] == max(scores.values()) and not _is_finished(work):
            work.save(found.build(backbone, work.data.num_classes))
        del backbone
    best = max(scores, key=lambda name: scores[name])
    work.lost += [one for one in work.judged if one.backbone != best]
    work.judged.clear()
    work.tell(f"network: {best}, with the likeliest readout of {len(names)}")
    return best, build_network(best, work.seed)


def build_network(name: str, seed: int = 0) -> Backbone:
    """Return a network by ``"name=weights"``, or by its name with its default weights, where it is to compute.

    Args:
        name: What it is.
        seed: Of random weights.

    Raises:
        ValueError: If name or weights are unknown.
        UnavailableError: If the weights cannot be had from the hub.
    """
    name, equals, weights = name.partition("=")
    tag = None if weights == "null" else (weights if equals else "default")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_backbone(name, tag).to(best_device())


def read_out_at_sizes(work: Work, name: str, backbone: Backbone, image_size: int | None) -> Readout:
    """Read a network out at one size, save that, and go on to larger images while these are clearly likelier.

    Args:
        work: What is shared; all readouts are added to what was judged.
        name: Of the network.
        backbone: The network.
        image_size: The only size; ``None`` tries several.

    Returns:
        The best of them, which is saved.
    """
    sizes = _sizes(work.data, backbone, image_size)
    last = best = _read_out(work, name, backbone, sizes[0])
    if not _is_finished(work):
        work.save(best.build(backbone, work.data.num_classes))
    for place, size in enumerate(sizes[1:], 1):
        need = last.seconds * (size / last.image_size) ** 2
        if work.folder.read(_step(name, size)) is None and need > _SHARE_OF_A_PASS * work.clock.left:
            work.left_out += [f"readout at {one} pixels" for one in sizes[place:]]
            work.tell(
                f"larger images: a pass at {size} pixels would take {need:.0f} s, too much of the time that is left"
            )
            break
        last = _read_out(work, name, backbone, size)
        gain = log_likelihoods(last.logits, work.labels) - log_likelihoods(best.logits, work.labels)
        gain = gain[gain.isfinite()]
        if not gain.mean() > _CLEARLY * gain.std() / len(gain) ** 0.5:  # what costs more has to be clearly better
            break
        best = last
        if not _is_finished(work):
            work.save(best.build(backbone, work.data.num_classes))
    return best


def first_size(data: ImageData, backbone: Backbone, image_size: int | None = None) -> int:
    """Return the size of images for a first pass: the one that is given, or that of typical images, from 64 to 128.

    Args:
        data: The images.
        backbone: The network.
        image_size: The only size; ``None`` takes a small one.

    Raises:
        ValueError: If the network takes no images of the size that is given.
    """
    return _sizes(data, backbone, image_size)[0]


def _sizes(data: ImageData, backbone: Backbone, image_size: int | None) -> list[int]:
    if image_size is not None:
        if not takes_size(backbone, image_size):
            nearest, own = backbone.nearest_size(image_size), backbone.preprocessing.image_size
            raise ValueError(
                f"{backbone.name} takes no images of {image_size} pixels; leave image_size out, or try"
                f" {nearest if takes_size(backbone, nearest) else own}"
            )
        return [image_size]
    return image_sizes(backbone, typical_side(data) or backbone.preprocessing.image_size)


def _read_out(work: Work, name: str, backbone: Backbone, size: int) -> Readout:
    """Solve a readout, or take the one that is kept."""
    work.data.image_size = size
    kept = work.folder.read(_step(name, size))
    if kept is not None and Readout.of_step(kept).doubt is None:
        kept = None  # of a version that kept no statistics
    if kept is None:
        first = partial(_first_answer, work, backbone)
        found = read_out(backbone, work.data, work.folds, work.groups, first, statistics=True)
        work.folder.write(_step(name, size), found.step())
        _say_what_is_bad(work)
    else:
        found = Readout.of_step(kept)
    judged = Judged(f"readout, {size} pixels", size, found.fold_logits, found.seconds, readout=found, backbone=name)
    work.judged.append(judged)
    work.tell_notes()
    if _step(name, size) in work.done_here:
        return found
    work.done_here.add(_step(name, size))
    if kept is not None:
        work.clock.count(found.seconds)
    known = found.logits.isfinite().all(1)
    accuracy = (
        estimate_accuracy([right(found.logits, work.labels)[known]], folds=TURNS)
        if known.any()
        else "no image can be left out"
    )
    each = 1000 * found.seconds / len(work.labels)
    work.tell(
        f"readout of {name.partition('=')[0]} at {size} pixels: {accuracy}, each image by what the others teach;"
        f" {found.seconds:.1f} s, {each:.1f} ms an image"
    )
    return found


def _first_answer(work: Work, backbone: Backbone, found: Readout) -> None:
    """Save the first readout of all, and say how good it is, before others are looked at."""
    if work.judged or work.lost or _is_finished(work):
        return
    work.save(found.build(backbone, work.data.num_classes))
    known = found.logits.isfinite().all(1)
    if work.groups is not None or not known.any():
        said = "folds will tell how good it is"
    else:
        said = f"{estimate_accuracy([right(found.logits, work.labels)[known]])}, leaving one image out"
    work.tell(
        f"first answer: a readout at {found.image_size} pixels, saved after one pass of {found.seconds:.1f} s; {said}"
    )


def _say_what_is_bad(work: Work) -> None:
    """Name images that do not decode, and classes of which none does."""
    bad = work.data.bad_images()
    if not bad or work.bad_said:
        return
    work.bad_said = True
    shown = ", ".join(map(str, bad[:3]))
    work.tell(
        f"note: {len(bad)} images do not decode and are left out: {shown}{' ...' * (len(bad) > 3)}; while they are"
        " there nothing is kept of frozen parts, so that removing them saves time"
    )
    good = set(work.labels[good_places(work.data)].tolist())
    if gone := [name for label, name in enumerate(work.data.class_names) if label not in good]:
        work.tell(f"note: no image of {', '.join(map(repr, gone))} decodes: nothing is ever called that")


def _is_finished(work: Work) -> bool:
    """Tell whether an earlier process has written the model that came out in the end."""
    return work.folder.read("final") is not None


def _step(name: str, size: int) -> str:
    return f"readout {name} {size}"
