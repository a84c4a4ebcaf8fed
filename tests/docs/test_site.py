"""What the files that build the site do; that it is built strictly is ``make docs``."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from site_files import DOCS, load

ROOT = DOCS.parent


@pytest.mark.parametrize(
    "asking",
    [
        '<script src="https://cdn.example/katex.js"></script>',
        "<img alt=x src=//cdn.example/x.png>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
    ],
)
def test_a_site_that_asks_the_network_is_refused(asking: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f"<p>{asking}</p>")
    with pytest.raises(SystemExit, match=r"would load .*example"):
        load("offline").on_post_build(SimpleNamespace(site_dir=tmp_path))


def test_a_site_that_links_elsewhere_is_not(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<a href="https://arxiv.org"></a><script src="assets/a.js"></script>')
    load("offline").on_post_build(SimpleNamespace(site_dir=tmp_path))


def test_every_grid_is_named_on_the_page_of_benchmarks() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    grids = [path.stem for path in (ROOT / "recipes" / "benchmarks").glob("*.yaml")]
    assert [grid for grid in grids if f"`benchmarks/{grid}`" not in text] == []


def test_every_report_is_on_the_page_of_benchmarks() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    reports = [path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks" / "results").rglob("*.md")]
    assert [report for report in reports if f"](../{report})" not in text] == []
