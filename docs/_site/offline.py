"""Refuse a site that would ask the network for anything but what a reader clicks on."""

import re
from pathlib import Path
from typing import Any

_ASKED_FOR = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//[^"' >]+"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preconnect|icon))[^>]*href=["']?(?:https?:)?//[^"' >]+"""
)


def on_post_build(config: Any, **_: Any) -> None:
    """Raise for the first page that loads something from elsewhere."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := _ASKED_FOR.search(page.read_text(encoding="utf-8")):
            raise SystemExit(f"{page} would load {found[0]!r} from the network; bring it along")
