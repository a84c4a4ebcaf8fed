"""The page about one tuning: the decision, what was compared, the collapse of the layers, and images in doubt."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from nc_finetune.report._tables.tables import Entry, Table
from nc_finetune.report.figures import altair, log_axis, vegalite_version
from nc_finetune.report.html import render
from nc_finetune.report.image_address import image_address

_WIDTH, _HEIGHT, _WIDTH_PER_LAYER = 520, 280, 24
_COLOURS = ("#0072B2", "#D55E00")


@dataclass(frozen=True)
class Compared:
    """A line of what was compared.

    Attributes:
        name: What it is.
        image_size: Height and width in pixels.
        accuracy: On images that it was not trained on, a share.
        low: Lower end of its 95 % interval.
        high: Upper end.
        seconds: What judging took.
        chosen: Whether it was.
    """

    name: str
    image_size: int
    accuracy: float
    low: float
    high: float
    seconds: float
    chosen: bool = False


@dataclass(frozen=True)
class ClassRow:
    """What is known of a class.

    Attributes:
        name: Its name.
        images: For training.
        recognised: Share of them, each by a model that was not trained on it.
        spread: Variance of its features over the squared distance to the nearest other class mean; low is collapsed.
        nearest: That class.
        shown: Some of its images, files of PNG or JPEG.
    """

    name: str
    images: int
    recognised: float
    spread: float
    nearest: str
    shown: Sequence[bytes] = ()


@dataclass(frozen=True)
class Confused:
    """How often images of one class were taken for another.

    Attributes:
        label: The class that they were given.
        taken: The other one.
        images: How many.
        shown: Some of them, files of PNG or JPEG.
    """

    label: str
    taken: str
    images: int
    shown: Sequence[bytes] = ()


@dataclass(frozen=True)
class Doubtful:
    """An image whose label may be wrong, or that is taken for another class.

    Attributes:
        file: Its file, or row.
        label: The class that it was given.
        suggested: The class that the others suggest.
        probability: Of the suggestion.
        thumbnail: A PNG or JPEG file; empty where the image does not decode.
    """

    file: str
    label: str
    suggested: str
    probability: float
    thumbnail: bytes

    @property
    def address(self) -> str:
        """The thumbnail as an address that needs no network."""
        return image_address(self.thumbnail)


@dataclass(frozen=True)
class TunedPage:
    """What the page says.

    Attributes:
        title: Its heading.
        summary: Sentences, the decision first.
        compared: What was judged alike.
        left_out: What was not tried.
        nc1: NC1 of each layer by state, such as ``"before"`` and ``"after"``.
        classes: Those that have collapsed least first.
        pairs: How often images of one class were taken for another, the most frequent first.
        doubtful: Images whose label may be wrong, worst first.
        commands: What to type next.
        facts: Size, speed, versions, by name.
    """

    title: str
    summary: Sequence[str]
    compared: Sequence[Compared]
    left_out: Sequence[str] = ()
    nc1: dict[str, dict[str, float]] = field(default_factory=dict)
    classes: Sequence[ClassRow] = ()
    pairs: Sequence[Confused] = ()
    doubtful: Sequence[Doubtful] = ()
    commands: Sequence[str] = ()
    facts: dict[str, str] = field(default_factory=dict)


def render_tuned_page(page: TunedPage) -> str:
    """Write the page as HTML that opens from a disk, without scripts and without a network.

    Raises:
        ImportError: If a package of the extra ``report`` is not installed.
    """
    return render(
        "tuned.html.jinja",
        page=page,
        compared=_compared_table(page.compared),
        classes=_class_table(page.classes),
        class_images=[_addresses(row.shown) for row in page.classes],
        pairs=_pair_table(page.pairs),
        pair_images=[_addresses(pair.shown) for pair in page.pairs],
        picture=_nc1_picture(page.nc1),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _compared_table(rows: Sequence[Compared]) -> Table:
    columns = ("candidate", "pixels", "accuracy %", "95 % interval", "seconds")
    return Table(
        columns,
        tuple(
            (
                Entry(row.name, best=row.chosen),
                Entry(str(row.image_size)),
                Entry(_percent(row.accuracy), best=row.chosen),
                Entry(f"{_percent(row.low)} to {_percent(row.high)}"),
                Entry(f"{row.seconds:.1f}"),
            )
            for row in rows
        ),
    )


def _class_table(rows: Sequence[ClassRow]) -> Table:
    columns = ("class", "images", "recognised %", "spread over distance", "nearest class")
    return Table(
        columns,
        tuple(
            (
                Entry(row.name),
                Entry(str(row.images)),
                Entry(_percent(row.recognised)),
                Entry(f"{row.spread:.3g}"),
                Entry(row.nearest),
            )
            for row in rows
        ),
    )


def _pair_table(pairs: Sequence[Confused]) -> Table:
    return Table(
        ("class", "taken for", "images"),
        tuple((Entry(pair.label), Entry(pair.taken), Entry(str(pair.images))) for pair in pairs),
    )


def _addresses(images: Sequence[bytes]) -> list[str]:
    return [image_address(image) for image in images if image]


def _nc1_picture(nc1: dict[str, dict[str, float]]) -> str:
    """Draw NC1 by layer as an address of an SVG picture; empty where there is nothing to draw."""
    points = [
        {"state": state, "layer": layer, "nc1": value}
        for state, layers in nc1.items()
        for layer, value in layers.items()
        if value > 0 and value < float("inf")
    ]
    if not points:
        return ""
    import vl_convert

    alt = altair()
    layers = list(dict.fromkeys(point["layer"] for point in points))
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "layer:O",
                sort=layers,
                title="layer, from input to output",
                axis=alt.Axis(labelAngle=-90, labelOverlap="parity", labelLimit=120, grid=False),
            ),
            y=alt.Y("nc1:Q", title="NC1", **log_axis(alt, "nc1", "y")),
            color=alt.Color(
                "state:N",
                scale=alt.Scale(domain=list(nc1), range=list(_COLOURS[: len(nc1)])),
                legend=alt.Legend(title=None, orient="top"),
            ),
        )
        .properties(width=max(_WIDTH, _WIDTH_PER_LAYER * len(layers)), height=_HEIGHT, background="white")
    )
    spec = {**chart.to_dict(validate=False), "data": {"name": "shown", "values": points}}
    drawn: str = vl_convert.vegalite_to_svg(spec, vl_version=vegalite_version())
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"
