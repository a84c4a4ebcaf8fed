"""The page about suspected labels: each image beside typical ones of the class that it was given, and the suggested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nc_finetune.report.html import render
from nc_finetune.report.image_address import image_address


@dataclass(frozen=True)
class Suspected:
    """An image whose label may be wrong.

    Attributes:
        file: Its file, or row.
        split: The split that it is in.
        label: The class that it was given.
        given: The probability of that.
        suggested: The most probable class.
        probability: Of that.
        thumbnail: A PNG or JPEG file; empty where there is none.
    """

    file: str
    split: str
    label: str
    given: float
    suggested: str
    probability: float
    thumbnail: bytes = b""

    @property
    def address(self) -> str:
        """The thumbnail as an address that needs no network."""
        return image_address(self.thumbnail)


@dataclass(frozen=True)
class LabelsPage:
    """What the page says.

    Attributes:
        title: Its heading.
        summary: Sentences.
        suspected: Worst first.
        typical: Thumbnails of images whose label is most probable, by class.
        commands: What to type next.
    """

    title: str
    summary: Sequence[str]
    suspected: Sequence[Suspected]
    typical: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    commands: Sequence[str] = ()


def render_labels_page(page: LabelsPage) -> str:
    """Write the page as HTML that opens from a disk, without scripts and without a network.

    Raises:
        ImportError: If jinja2, of the extra ``report``, is not installed.
    """
    return render(
        "labels.html.jinja",
        page=page,
        percent=_percent,
        typical={name: [image_address(image) for image in images if image] for name, images in page.typical.items()},
    )


def _percent(share: float) -> str:
    """Return per cent, none of them 0 or 100 that is not."""
    return "under 1\u00a0%" if 0 < share < 0.005 else f"{100 * share:.0f}\u00a0%"
