"""Text that stands for itself in Markdown, whoever wrote it."""

from __future__ import annotations

import html
import re

# What makes a link without brackets.
_LINKS = re.compile(r":(?=//)|www(?=\.)|@(?=\S)", re.IGNORECASE)
# An underscore inside a word is only itself; at the beginning, what makes a heading, a list or a rule.
_SIGNS = re.compile(r"[\\`*\[\]|~$]|\b_+|_+\b|^(?:#(?=#*(?:\s|$))|[-+](?=[-\s]|$)|\d(?=\d*[.)](?:\s|$)))")


def escape_markdown(text: str) -> str:
    """Make any text stand for itself in GitHub's Markdown, as a paragraph, inside one, or in a table.

    Args:
        text: Any text; a line break becomes a blank, for a table row is one line.

    Returns:
        One line, with entities for whatever Markdown or HTML would act upon. No address becomes a link: a word joiner,
        which nobody sees, parts it, for readers look for addresses once entities are read.

    Example:
        >>> print(escape_markdown("a|b <i> *c* layer_ft"))
        a&#124;b &lt;i&gt; &#42;c&#42; layer_ft
        >>> print(escape_markdown("see https://example.org"))
        see https:&#8288;//example.org
    """
    one_line = html.escape(" ".join(text.split()), quote=False)
    unlinked = _LINKS.sub(r"\g<0>&#8288;", one_line)
    return _SIGNS.sub(lambda match: "".join(f"&#{ord(sign)};" for sign in match[0]), unlinked)
