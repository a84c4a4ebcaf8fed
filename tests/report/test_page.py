"""The page in a real browser."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import quick_first
from headless_browser import Page, browser_page

from nc_finetune.report.report import write_report
from nc_finetune.results.result import Result

METHODS = {"linear_probe": 0.4, "layer_ft": 5.4, "scl_ft": 5.4, "full_ft": 100.0}
LAYERS = ["stem", "blocks.0", "blocks.1", "penultimate"]
HOSTILE = "</script><img src=http://example.org/x onerror=alert(1)>"
WIDTHS = (1280, 390)


def make_run(dataset: str, method: str, size: int, seed: int, chance: random.Random) -> Result:
    accuracy, nc1 = 60 + chance.random() * 30, 0.2 + chance.random()
    return Result(
        run_id=f"{dataset}-{method}-{size}-{seed}",
        backbone="resnet18",
        weights="imagenet",
        dataset=dataset,
        method=method,
        seed=seed,
        samples_per_class=size,
        train_size=size * 3,
        accuracy=accuracy,
        nc1=nc1,
        nc1_layers={layer: nc1 * (4 - place) for place, layer in enumerate(LAYERS)},
        tuned_percent=METHODS[method],
        epoch_seconds=METHODS[method] / 10,
        peak_memory_bytes=2**30,
        delta_bytes=int(METHODS[method] * 1e5),
        learning_curve={"train_loss": [2.0, 1.0, 0.5], "train_accuracy": [30.0, 60.0, 90.0]},
        class_names=["cat", "dog", HOSTILE],
        confusion=["0:9 1:1", "0:4 1:5 2:1", "2:10"],
    )


def make_runs(datasets: int = 2, sizes: tuple[int, ...] = (5, 20), seeds: int = 2) -> list[Result]:
    chance = random.Random(0)  # noqa: S311
    names = ["digits", HOSTILE, *(f"data {index}" for index in range(datasets))][:datasets]
    return [
        make_run(name, method, size, seed, chance)
        for name in names
        for method in METHODS
        for size in sizes
        for seed in range(seeds)
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = make_runs()
    lost = replace(runs[0], run_id="lost", seed=9, status="failed", error=HOSTILE)
    return write_report([*runs, lost], tmp_path_factory.mktemp("page")).page


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browser_page() as page:
        yield page


# A page takes a second to open and to draw: on a phone, always where the width matters, and else with the slow tests.
@pytest.fixture(params=quick_first(1, WIDTHS))
def page(browser: Page, report: Path, request: pytest.FixtureRequest) -> Page:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(report, request.param)
    browser.wait_for("document.body.dataset.drawn")
    return browser


def change(page: Page, script: str) -> None:
    """Change a control as a reader would, and wait until everything is drawn again."""
    before = page.run("document.body.dataset.drawn")
    page.run(f"(() => {{ {script} }})()")
    page.wait_for(f"document.body.dataset.drawn !== '{before}'")


def choose(page: Page, control: str, value: str) -> None:
    script = f"const s = document.querySelector('{control}'); s.value = {value!r};"
    change(page, f"{script} s.dispatchEvent(new Event('change', {{ bubbles: true }}));")


def rows_shown(page: Page) -> int:
    return int(page.run("document.querySelectorAll('#results tbody tr:not([hidden])').length"))


def column(page: Page, place: int) -> list[Any]:
    found: list[Any] = page.run(
        f"[...document.querySelectorAll('#results tbody tr')].map((row) => Number(row.cells[{place}].dataset.value))"
    )
    return found


def marks(page: Page, chart: str) -> int:
    """Count the points that are drawn; lines and legend have other roles."""
    script = f"document.querySelectorAll('#chart-{chart} .mark-symbol.role-mark path').length"
    return int(page.run(script))


def test_nothing_is_loaded_and_nothing_complains(page: Page, report: Path) -> None:
    assert page.requests == [report.absolute().as_uri()]
    assert page.problems == []


def test_every_picture_is_drawn(page: Page) -> None:
    names = page.run("[...document.querySelectorAll('.chart')].map((chart) => chart.id)")
    assert names == [f"chart-{name}" for name in ("nc1", "layers", "sizes", "cost", "curves", "confusion")]
    assert page.run("document.querySelectorAll('.chart svg').length") == len(names)
    assert (marks(page, "nc1"), marks(page, "layers"), marks(page, "sizes"), marks(page, "cost")) == (32, 16, 8, 4)


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_the_page_is_no_wider_than_its_window(page: Page) -> None:
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.run("[...document.querySelectorAll('.chart svg')].every((svg) => svg.clientWidth <= window.innerWidth)")


def test_filters_hide_rows_columns_and_points(page: Page) -> None:
    assert rows_shown(page) == 16
    choose(page, "[name=dataset]", "digits")
    assert (rows_shown(page), marks(page, "nc1")) == (8, 16)
    assert (
        page.run("[...document.querySelector('table.overview').tHead.rows[0].cells].filter((c) => !c.hidden).length")
        == 3
    )
    choose(page, "[name=size]", "20 images a class")
    assert (rows_shown(page), marks(page, "nc1")) == (4, 8)
    change(page, "document.querySelector('[name=method][value=\"SCL-FT\"]').click();")
    assert (rows_shown(page), marks(page, "nc1")) == (3, 6)
    assert page.run("document.getElementById('count').textContent") == "3 of 16 rows shown."
    change(page, "document.querySelector('#filters [type=reset]').click();")
    assert (rows_shown(page), marks(page, "nc1")) == (16, 32)
    assert page.problems == []


def test_a_click_on_a_heading_sorts_by_number_and_another_the_other_way(page: Page) -> None:
    click = "[...document.querySelectorAll('#results th button')].find((b) => b.textContent === 'accuracy %').click()"
    page.run(click)
    rising = column(page, 4)
    page.run(click)
    assert rising == sorted(rising)
    assert column(page, 4) == rising[::-1]
    assert page.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"


def test_every_table_of_numbers_is_sorted_by_its_headings(page: Page) -> None:
    table = "document.querySelectorAll('table.main')[1]"
    page.run(f"[...{table}.querySelectorAll('th button')].find((b) => b.textContent === 'mean rank').click()")
    ranks = page.run(f"[...{table}.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.value))")
    assert ranks == sorted(ranks)
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_a_heading_sorts_from_the_keyboard(page: Page) -> None:
    page.run("document.querySelector('#results th button').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
    assert page.run("document.querySelector('#results [aria-sort]').cellIndex") == 0


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_legends_stand_in_the_pictures_only_where_the_filters_scroll_away(page: Page) -> None:
    wide = page.run("window.innerWidth > 640")
    assert page.run("document.querySelectorAll('#chart-nc1 .role-legend').length") == (0 if wide else 1)
    shapes = page.run("[...document.querySelectorAll('.swatch path')].map((path) => path.getAttribute('d'))")
    assert len(set(shapes)) == len(shapes) == len(METHODS)


def test_what_cannot_be_chosen_is_not_offered(page: Page) -> None:
    shown = "[...document.querySelectorAll('#filters select')].filter((s) => s.offsetParent).map((s) => s.name)"
    assert page.run(shown) == ["dataset", "size"]


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_no_labels_of_an_axis_lie_on_each_other(page: Page) -> None:
    overlaps = """[...document.querySelectorAll('.chart .role-axis-label')].filter((axis) => {
      const boxes = [...axis.querySelectorAll('text')].filter((text) => text.getAttribute('opacity') !== '0')
        .map((text) => text.getBoundingClientRect()).filter((box) => box.width);
      return boxes.some((a, i) => boxes.some((b, j) => j > i && a.left < b.right - 1 && b.left < a.right - 1
        && a.top < b.bottom - 2 && b.top < a.bottom - 2));
    }).length"""
    assert page.run(overlaps) == 0


def test_setting_and_cost_choose_what_is_drawn(page: Page) -> None:
    label = page.run("document.getElementById('chart-layers').getAttribute('aria-label')")
    other = page.run("[...document.getElementById('setting').options].at(-1).value")
    choose(page, "#setting", other)
    assert page.run("document.getElementById('chart-layers').getAttribute('aria-label')") != label
    choose(page, "#kind", "delta size")
    assert "delta size" in page.run("document.getElementById('chart-cost').textContent")


def test_pictures_tell_what_is_in_them_in_words_and_as_a_table(page: Page) -> None:
    label = page.run("document.getElementById('chart-nc1').getAttribute('aria-label')")
    assert label.startswith("Accuracy against NC1, 32 points. ")
    assert "SCL-FT: accuracy" in label
    page.run("document.querySelector('#data-nc1 summary').click()")
    page.wait_for("document.querySelectorAll('#data-nc1 tbody tr').length === 32")


def test_a_point_tells_its_numbers_when_it_is_pointed_at(page: Page) -> None:
    page.run("document.querySelector('#chart-nc1').scrollIntoView()")
    script = (
        "(() => { const b = document.querySelector('#chart-nc1 .mark-symbol.role-mark path').getBoundingClientRect();"
    )
    x, y = page.run(f"{script} return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.wait_for("document.querySelector('.vg-tooltip.visible')")
    assert "accuracy %" in page.run("document.querySelector('.vg-tooltip').textContent")


def test_hostile_names_are_text(page: Page) -> None:
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run(f"document.body.innerText.includes({HOSTILE!r})")
    assert page.problems == []


def test_dark_mode_is_dark_and_draws_in_light_letters(browser: Page, report: Path) -> None:
    browser.open(report, 1280, dark=True)
    browser.wait_for("document.body.dataset.drawn")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert browser.run("document.querySelector('#chart-nc1 .role-axis-label text').getAttribute('fill')") == "#e6edf3"


def test_two_hundred_cells_make_a_page_of_less_than_8_mb(tmp_path: Path) -> None:
    runs = make_runs(datasets=5, sizes=(5, 20), seeds=5)
    assert len(runs) == 200
    assert write_report(runs, tmp_path).page.stat().st_size < 8 * 2**20
