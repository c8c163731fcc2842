"""Blocks of code of the site's pages."""

from __future__ import annotations

import re
from pathlib import Path

from tools.site.pages import site_pages

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    """Markdown files that the site shows, and the README, from the repository's root."""
    shown = [page.source for _, found in site_pages(ROOT) for page in found if page.source.endswith(".md")]
    return [*shown, "README.md"]


def blocks(page: str, language: str) -> list[str]:
    """What stands between the fences of a language, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [code for _, spoken, code in FENCE.findall(text) if spoken == language]
