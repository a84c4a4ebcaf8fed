import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vl_convert
from PIL import Image
from rich.console import Console

from nc_finetune.report._tables.labels import variant_labels
from nc_finetune.report._tables.summary import row_labels, summarize
from nc_finetune.report.charts import accuracy_against_nc1, layerwise_nc1
from nc_finetune.report.content import build_report
from nc_finetune.report.figures import Figure, palette, vegalite_version
from nc_finetune.report.report import check_report_extra, print_summary, write_report
from nc_finetune.results.result import Result

LAYERS = ["stem", "layer1.0", "layer2.0", "penultimate"]
HOSTILE_NAME = "</script><script>alert(1)</script>|x"
HOSTILE_ERROR = "</script><img src=http://example.org/x onerror=alert(1)> | pipe\nsecond *line*"


def make_run(**changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": "imagenet", "dataset": "digits", "method": "full_ft", **changes}
    return Result(**{"run_id": "-".join(map(str, fields.values())), **fields})


def measured(method: str, seed: int, accuracy: float, nc1: float, **changes: Any) -> Result:
    layers = {layer: nc1 * (len(LAYERS) - index) for index, layer in enumerate(LAYERS)}
    nc2 = {"nc2_etf_distance": 2 * nc1}
    changes = {"tuned_percent": 6.5, "nc1_layers": layers, "collapse": nc2, **changes}
    return make_run(method=method, seed=seed, accuracy=accuracy, nc1=nc1, **changes)


def grid(**changes: Any) -> list[Result]:
    return [
        measured("linear_probe", 0, 80.0, 2.0, **changes),
        measured("linear_probe", 1, 82.0, 2.2, **changes),
        measured("scl_ft", 0, 93.0, 0.25, **changes),
        measured("scl_ft", 1, 95.0, 0.2, **changes),
    ]


class Page(HTMLParser):
    """The tags of a page and the text in each of them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[SimpleNamespace] = []
        self._open: list[SimpleNamespace] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(SimpleNamespace(name=tag, attrs=dict(attrs), text=""))
        self._open.append(self.tags[-1])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().name != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            tag.text += data

    def named(self, name: str) -> list[SimpleNamespace]:
        return [tag for tag in self.tags if tag.name == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    provenance = {"versions": {"torch": "2.6"}, "git_commit": "abc123", "git_dirty": False, "weights_hash": None}
    runs = grid(dataset=HOSTILE_NAME, provenance=provenance)
    runs[0] = replace(runs[0], provenance={**provenance, "git_dirty": True, "device": "<b>GPU</b>"})
    lost = make_run(run_id="lost-run", dataset=HOSTILE_NAME, seed=9, status="failed", error=HOSTILE_ERROR)
    target = tmp_path_factory.mktemp("report")
    write_report([*runs, lost], target)
    return target


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Split every table into its cells."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[line.strip("| ").split(" | ") for line in block] for block in blocks]


def maybe_figures(runs: list[Result]) -> tuple[Figure | None, Figure | None]:
    rows = summarize(runs)
    styles = palette(row_labels(rows))
    return layerwise_nc1(rows, styles), accuracy_against_nc1(rows, styles)


def figures_of(runs: list[Result]) -> tuple[Figure, Figure]:
    layers, accuracy = maybe_figures(runs)
    assert layers is not None
    assert accuracy is not None
    return layers, accuracy


def values(figure: Figure) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = figure.spec["data"]["values"]
    return rows


def channels(figure: Figure) -> dict[str, dict[str, str]]:
    """Collect colour and shape by method, wherever in the specification they stand."""
    layers = figure.spec.get("layer", [figure.spec])
    return {
        name: dict(
            zip(layer["encoding"][name]["scale"]["domain"], layer["encoding"][name]["scale"]["range"], strict=True)
        )
        for layer in layers
        for name in ("color", "shape")
        if name in layer["encoding"]
    }


# The page


def test_page_loads_nothing_from_elsewhere(page: Page) -> None:
    links = [tag.attrs.get(name) or "" for tag in page.tags for name in ("src", "href", "data", "action", "srcset")]
    assert not [link for link in links if re.match(r"(https?:)?//", link, re.IGNORECASE)]
    assert not page.named("link")
    assert not [tag for tag in page.named("script") if "src" in tag.attrs]
    assert "@import" not in page.named("style")[0].text


def test_page_forbids_itself_the_network(page: Page) -> None:
    (policy,) = [tag.attrs["content"] for tag in page.named("meta") if "http-equiv" in tag.attrs]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_page_holds_the_drawing_library(page: Page) -> None:
    assert "window.vegaEmbed" in page.named("script")[1].text


def test_hostile_names_add_no_element(page: Page) -> None:
    assert len(page.named("script")) == 3
    assert not page.named("img")
    assert not [tag for tag in page.tags if any(name.startswith("on") for name in tag.attrs)]
    assert not page.named("b")


def test_hostile_name_is_shown_as_it_is(page: Page) -> None:
    assert HOSTILE_NAME in [tag.text for tag in page.named("td")]
    assert HOSTILE_NAME in [tag.text for tag in page.named("option")]


def test_data_in_the_page_are_whole(page: Page) -> None:
    data = json.loads(page.named("script")[0].text)
    assert list(data["charts"]) == ["nc1", "layers", "cost"]
    assert list(data["styles"]) == ["linear probe", "SCL-FT", "full FT"]
    assert {value["group"] for value in data["charts"]["nc1"]["values"]} == set(data["groups"])
    assert next(iter(data["groups"].values()))["dataset"] == HOSTILE_NAME


def test_page_marks_the_best_accuracy(page: Page) -> None:
    results = page.named("table")[1].text
    assert "94.00 ± 1.41" in [tag.text for tag in page.tags if tag.attrs.get("class") == "best"]
    assert "94.00 ± 1.41" in results
    assert "81.00 ± 1.41" not in [tag.text for tag in page.named("strong")]


def test_every_chart_has_a_name_and_a_caption(page: Page) -> None:
    charts = [tag for tag in page.tags if tag.attrs.get("class") == "chart"]
    assert [(tag.attrs["role"], tag.attrs["aria-label"]) for tag in charts] == [
        ("img", "Accuracy against NC1"),
        ("img", "NC1 layer by layer"),
        ("img", "Accuracy against cost"),
    ]
    assert len([tag for tag in page.named("figcaption") if tag.text]) == 3


def test_page_follows_the_colour_scheme(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.named("style")[0].text
    assert "prefers-color-scheme: dark" in page.named("script")[2].text


def test_every_table_scrolls_by_itself(page: Page) -> None:
    scrolling = [tag for tag in page.tags if "scroll" in (tag.attrs.get("class") or "").split()]
    assert len(scrolling) == len(page.named("table")) == 5


def test_page_lists_lost_runs_with_their_error(page: Page) -> None:
    assert any(tag.text == "lost-run" for tag in page.named("th"))
    assert HOSTILE_ERROR in [tag.text for tag in page.named("td")]


def test_provenance_shows_distinct_values_and_leaves_out_unknown_ones(page: Page) -> None:
    table = page.named("table")[4].text
    assert "abc123 with uncommitted changes, abc123" in table
    assert table.count("2.6") == 1
    assert "<b>GPU</b>" in table
    assert "weights hash" not in table
    assert "git dirty" not in table


# The markdown


def test_markdown_rows_have_as_many_cells_as_their_heading(markdown: str) -> None:
    tables = markdown_tables(markdown)
    assert [len(table[0]) for table in tables] == [9, 10, 7, 3, 2]
    assert all(len({len(row) for row in table}) == 1 for table in tables)


def test_markdown_table_holds_the_numbers(markdown: str) -> None:
    head, _, probe, scl, lost = markdown_tables(markdown)[1]
    assert dict(zip(head, probe, strict=True))["accuracy %"] == "81.00 ± 1.41"
    assert dict(zip(head, scl, strict=True))["accuracy %"] == "**94.00 ± 1.41**"
    assert dict(zip(head, scl, strict=True))["NC1"] == "0.225 ± 0.035"
    assert dict(zip(head, scl, strict=True))["NC2"] == "0.450 ± 0.071"
    assert (lost[0], lost[-1]) == ("full FT", "0 (1 of 1 failed, 2 of 3 seeds not run)")


def test_markdown_holds_no_html_from_names(markdown: str) -> None:
    assert "<" not in markdown


def test_markdown_lists_lost_runs_on_one_line(markdown: str) -> None:
    (row,) = markdown_tables(markdown)[3][2:]
    assert row[:2] == ["lost-run", "failed"]
    assert "pipe second &#42;line&#42;" in row[2]


def test_markdown_shows_its_pictures(folder: Path, markdown: str) -> None:
    files = re.findall(r"!\[.+\]\((figures/.+\.png)\)", markdown)
    assert [file.rpartition("_")[2] for file in files] == ["layers.png", "accuracy.png", "cost.png"]
    for file in files:
        with Image.open(folder / file) as image:
            assert image.format == "PNG"
            assert image.width > 800


def test_report_leaves_no_temporary_files(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


# What is said


def summary_of(runs: list[Result]) -> str:
    return "\n".join(build_report(runs).summary)


def test_summary_names_the_best_method_its_share_and_the_seeds() -> None:
    summary = summary_of(grid())
    assert summary.startswith("4 runs: 4 finished. Every mean is over 2 seeds.\n")
    assert "the highest mean accuracy is that of SCL-FT (94.00 ± 1.41 %, 6.50 % of the parameters tuned)" in summary
    assert "followed by linear probe (81.00 ± 1.41 %" in summary


def test_summary_names_everyone_with_the_highest_mean() -> None:
    runs = [measured("layer_ft", 0, 90.0, 1.0), measured("scl_ft", 0, 90.0, 1.0)]
    summary = summary_of(runs)
    assert "layer FT (90.00 %, 6.50 % of the parameters tuned) and SCL-FT (90.00 %" in summary
    assert "followed by" not in summary


def test_summary_claims_no_comparison_for_a_lone_method() -> None:
    summary = summary_of([measured("scl_ft", 0, 90.0, 1.0)])
    assert "there is only SCL-FT" in summary
    assert "highest" not in summary


def test_notes_name_the_convention() -> None:
    assert "tr(Σ_W Σ_B†) / K" in build_report(grid(nc1_normalize="classes")).notes


def test_several_groups_get_an_overview_and_a_section_each() -> None:
    sections = build_report([*grid(dataset="a"), *grid(dataset="b")]).sections
    titles = [section.title for section in sections if section.kind != "analysis"]
    assert titles[:4] == [
        "SCL-FT against each alternative",
        "Methods over all settings",
        "The recommended method",
        "Overview: accuracy % / NC1",
    ]
    assert [title[0] for title in titles[4:]] == ["a", "b"]


def test_legends_name_all_of_many_methods() -> None:
    report = build_report([measured("scl_ft", 0, 80.0, 1.0 + scale, options={"scale": scale}) for scale in range(40)])
    pictures = [picture.figure.spec for section in report.sections for picture in section.pictures]
    drawn = [vl_convert.vegalite_to_svg(spec, vl_version=vegalite_version()) for spec in pictures]
    assert drawn
    assert all(text.count(">SCL-FT, skip scale") == 40 for text in drawn)


@pytest.mark.parametrize("names", [("a/b", "a b"), ("Digits", "digits")])
def test_names_that_differ_in_punctuation_or_case_get_pictures_of_their_own(names: tuple[str, str]) -> None:
    report = build_report([run for name in names for run in grid(dataset=name)])
    files = [picture.file.lower() for section in report.sections for picture in section.pictures]
    assert len(set(files)) == len(files) == 3


def test_no_results_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one result"):
        build_report([])


def test_mixed_conventions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs = [make_run(seed=0), make_run(seed=1, nc1_normalize="classes")]
    with pytest.raises(ValueError, match="cannot be drawn in one picture"):
        write_report(runs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_report_of_lost_runs_only_is_written(tmp_path: Path) -> None:
    text = write_report([make_run(status="diverged", error="loss is nan")], tmp_path)[0].read_text(encoding="utf-8")
    assert "1 run: 1 diverged." in text
    assert "loss is nan" in text


# The figures


def test_undefined_nc1_draws_no_figure() -> None:
    runs = [make_run(accuracy=90.0, nc1=None, nc1_layers={"stem": None})]
    assert maybe_figures(runs) == (None, None)
    assert build_report(runs).sections[0].pictures == ()


@pytest.mark.parametrize("undefined", [None, float("nan"), 0.0])
def test_undefined_nc1_is_left_out_of_the_figures(undefined: float | None) -> None:
    whole = measured("scl_ft", 0, 93.0, 0.25)
    broken = replace(whole, seed=1, nc1=undefined, nc1_layers={**whole.nc1_layers, "stem": undefined})
    layers, accuracy = figures_of([whole, broken])
    assert [point["seeds"] for point in values(layers)] == [1, 2, 2, 2]
    assert [point["seed"] for point in values(accuracy)] == [0]


def test_layers_are_drawn_in_network_order() -> None:
    layers, _ = figures_of(grid())
    assert layers.spec["layer"][0]["encoding"]["x"]["sort"] == LAYERS


def test_lines_are_means_over_seeds() -> None:
    layers, _ = figures_of(grid())
    drawn = {(point["method"], point["layer"]): point["nc1"] for point in values(layers)}
    assert drawn["SCL-FT", "penultimate"] == pytest.approx(0.225)


def axis(figure: Figure, title: str) -> tuple[str, float, float]:
    """Read kind and ends of an axis off the picture."""
    drawn = vl_convert.vegalite_to_svg(figure.spec, vl_version=vegalite_version())
    (found,) = set(re.findall(rf"axis titled '{title}' for a (\w+) scale with values from (\S+) to ([^\s\"]+)", drawn))
    return found[0], float(found[1]), float(found[2])


def test_nc1_is_drawn_on_a_log_scale_that_holds_every_point() -> None:
    layers, accuracy = figures_of(grid())
    assert axis(layers, "NC1") == ("log", 0.2, 10)
    assert axis(accuracy, "NC1") == ("log", 0.1, 5)


@pytest.mark.parametrize(
    ("nc1", "ticks"),
    [
        ((0.3, 4.0), ["0.2", "0.5", "1", "2", "5"]),
        ((0.25, 110.0), ["1", "10", "100"]),
        ((1e-4, 1e4), ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1000", "10000"]),
    ],
)
def test_nc1_is_marked_at_1_2_5_or_where_these_are_many_at_powers_of_ten(
    nc1: tuple[float, ...], ticks: list[str]
) -> None:
    _, accuracy = figures_of([measured("scl_ft", seed, 90.0, value) for seed, value in enumerate(nc1)])
    drawn = vl_convert.vegalite_to_svg(accuracy.spec, vl_version=vegalite_version())
    labels = re.search(r'role-axis-label"[^>]*>(.*?)</g>', drawn[drawn.index("X-axis") :])
    assert labels is not None
    shown = re.findall(r"<text(?:(?!opacity=\"0\")[^>])*>([^<]+)</text>", labels[1])
    assert shown == ticks


def test_accuracy_axis_frames_the_points_closely() -> None:
    _, accuracy = figures_of(grid())
    assert axis(accuracy, "test accuracy %") == ("linear", 78, 96)


def test_a_method_looks_the_same_in_both_figures() -> None:
    layers, accuracy = figures_of(grid())
    assert channels(layers) == channels(accuracy)


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    beside, alone = figures_of(grid())[1], figures_of(grid()[2:])[1]
    assert channels(alone)["color"]["SCL-FT"] == channels(beside)["color"]["SCL-FT"]


def test_no_two_methods_look_alike() -> None:
    runs = [make_run(method=f"method{index}") for index in range(20)]
    assert len(set(palette(variant_labels(runs)).values())) == 20


# The terminal and the extra


def printed(runs: list[Result]) -> str:
    terminal = io.StringIO()
    print_summary(runs, Console(file=terminal, width=80))
    return terminal.getvalue()


def test_terminal_table_fits_into_eighty_characters() -> None:
    lines = printed(grid(learning_rate=0.001, collapse={"nc2_etf_distance": 0.4567})).splitlines()
    (line,) = [line for line in lines if "SCL-FT" in line]
    assert line.split() == ["SCL-FT", "6.50", "94.00", "±", "1.41", "0.225", "±", "0.035", "0.457", "±", "0", "0.001"]


def test_terminal_takes_no_name_for_markup() -> None:
    assert "[red]x[/red]" in printed(grid(dataset="[red]x[/red]"))


def test_terminal_counts_the_runs() -> None:
    assert "5 runs: 4 finished, 1 failed." in printed([*grid(), make_run(seed=9, status="failed")])


@pytest.mark.parametrize(
    ("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")]
)
def test_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"^writing a report needs the package '{package}': .*nc-finetune\[report\]"):
        check_report_extra()
