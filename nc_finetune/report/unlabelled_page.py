"""The page about images that nobody has labelled: the strangest ones, and those of which a model is least sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nc_finetune.deployment import Predicted
from nc_finetune.report.html import render
from nc_finetune.report.image_address import image_address

_SHOWN = 24


@dataclass(frozen=True)
class ShownImage:
    """An image on the page.

    Attributes:
        file: Its file, or place.
        address: Of its thumbnail; empty where it does not decode.
        words: What is said of it, lines.
    """

    file: str
    address: str
    words: Sequence[str]


@dataclass(frozen=True)
class UnlabelledPage:
    """What the page says.

    Attributes:
        title: Its heading.
        summary: Sentences.
        strangest: Images that lie furthest from the training images, the strangest first; none where the model keeps no
            distances of these.
        unsure: Others whose most probable class is least probable, likewise.
    """

    title: str
    summary: Sequence[str]
    strangest: Sequence[ShownImage]
    unsure: Sequence[ShownImage]


def describe_predictions(found: Predicted, title: str, most: int = _SHOWN) -> UnlabelledPage:
    """Choose what the page shows.

    Args:
        found: What a model says of images.
        title: Of the page.
        most: How many images of each kind.

    Returns:
        The page.

    Raises:
        ValueError: If the model has no statistics of its training images.
    """
    if not found.knows_doubts:
        raise ValueError("a page of strange images takes a model with statistics of its training images")
    said = found.predictions
    places = range(len(said))
    by_strangeness = sorted(places, key=lambda place: -(said[place].strangeness or 0))
    strangest = by_strangeness[:most] if said and said[0].strangeness is not None else []
    others = [place for place in places if not said[place].stranger]
    unsure = sorted(others, key=lambda place: said[place].probability)[:most]
    return UnlabelledPage(
        title,
        _summary(found),
        [_shown(found, place) for place in strangest],
        [_shown(found, place) for place in unsure],
    )


def render_unlabelled_page(page: UnlabelledPage) -> str:
    """Write the page as HTML that opens from a disk, without scripts and without a network.

    Raises:
        ImportError: If jinja2, of the extra ``report``, is not installed.
    """
    return render("unlabelled.html.jinja", page=page)


def _summary(found: Predicted) -> list[str]:
    said = found.predictions
    lines = [_of_strangers([one.stranger for one in said if one.stranger is not None])] if said else []
    sets = [one.in_set for one in said if one.in_set is not None]
    if sets:
        sizes = [len(one) for one in sets]
        several, none = sum(size > 1 for size in sizes), sum(size == 0 for size in sizes)
        lines.append(
            f"The set of an image has {sum(sizes) / len(sizes):.2f} classes on average: {several:,} images have more"
            f" than one; {none:,} have none, whose likeliest class is less likely than right ones mostly are."
        )
    if found.is_too_sure:
        lines.append(
            "The network was tuned on the training images, and its fit had no validation images to compare with: new"
            " images look stranger than they are."
        )
    if found.skipped:
        lines.append(f"{len(found.skipped):,} images do not decode, and were skipped.")
    return lines


def _of_strangers(known: Sequence[bool]) -> str:
    if not known:
        return "How far images lie from the training images is not told: the model keeps no distances of these."
    return (
        f"{sum(known):,} of {len(known):,} images lie further from the training images than 95 % of these do: perhaps"
        " of none of the classes. Of images like the training images it would be one in twenty."
    )


def _shown(found: Predicted, place: int) -> ShownImage:
    said = found.predictions[place]
    words = [f"{said.label} ({100 * said.probability:.1f} %)"]
    if said.in_set is not None:
        words.append(f"set: {', '.join(said.in_set) or 'none'}")
    if said.unlike is not None:
        words.append(f"{100 * said.unlike:.1f} % of the training images lie further out")
    return ShownImage(str(said.item), image_address(found.thumbnail(place)), words)
