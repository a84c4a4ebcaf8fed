"""Any text in Markdown, as a reader of Markdown shows it."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nc_finetune._common.markdown_text import escape_markdown

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SIGNS = "\\`*_[]()<>{}|#+-=~!&;:/@.$^\"' \n\t1wax\u00e9"


def shown(markdown: str) -> str:
    """Return the HTML of a paragraph."""
    return READER.render(markdown).removeprefix("<p>").removesuffix("</p>\n").replace("\u2060", "")


def as_it_is(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace('"', "&quot;")


@given(st.text(SIGNS, min_size=1).filter(str.strip))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert shown(escape_markdown(text)) == as_it_is(text)


@pytest.mark.parametrize(
    "text", ["# a", "- a", "+", "1. a", "12) a", "---", "__a__", "```", "&lt;i&gt;", "![a](b)", "<b>", "~~a~~"]
)
def test_no_mark_acts(text: str) -> None:
    assert shown(text) != as_it_is(text)
    assert shown(escape_markdown(text)) == as_it_is(text)


@pytest.mark.parametrize("text", ["http://a.org", "FTP://a.org", "www.a.org", "a.b@c.org"])
def test_an_address_is_no_link_even_once_entities_are_read(text: str) -> None:
    assert not re.search(r"://|www\.|@\w", html.unescape(escape_markdown(text)), re.IGNORECASE)


def test_a_cell_of_a_table_stays_one() -> None:
    table = READER.render(f"| a |\n|---|\n| {escape_markdown('b | c')} |")
    assert "<td>b | c</td>" in table


@pytest.mark.parametrize("text", ["layer_ft", "-0.5", "0.97", "#3", "a - b"])
def test_what_does_not_act_stays_readable(text: str) -> None:
    assert escape_markdown(text) == text
