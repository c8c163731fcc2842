"""Blocks of code of the site's pages, and the commands that stand in those of a shell."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from .pages import site_pages

__all__ = ["ROOT", "SHELLS", "blocks", "command", "commands", "fences", "pages"]

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "sh")
"""Languages whose blocks are lines for a terminal."""
_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# .*$|^#.*$")


@cache
def pages() -> tuple[str, ...]:
    """Markdown files that the site shows, and the README, from the repository's root."""
    shown = [page.source for _, found in site_pages(ROOT) for page in found if page.source.endswith(".md")]
    return (*shown, "README.md")


def fences(page: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block of a page, in order."""
    return [(language.strip(), code) for _, language, code in _FENCE.findall((ROOT / page).read_text("utf-8"))]


def blocks(page: str, *languages: str) -> list[str]:
    """What stands between the fences of these languages, in order."""
    return [code for language, code in fences(page) if language in languages]


def commands(page: str) -> list[str]:
    """Every command line of a page's shell blocks: continued lines are joined, comments dropped."""
    lines = [line for block in blocks(page, *SHELLS) for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r" {2,}", " ", text) for line in lines if (text := _COMMENT.sub("", line).strip())]


def command(page: str, start: str) -> str:
    """The one command of a page that begins so.

    Raises:
        ValueError: none does, or several do.
    """
    found = [line for line in commands(page) if line.startswith(start)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} commands of {page} begin with {start!r}: {found or commands(page)}")
    return found[0]
