"""A page of the repository as the site needs it: links that lead to the site's pages, charts drawn."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping

from .flowchart import as_html

__all__ = ["LinkError", "outside_code", "rewritten"]

_FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(rf"{_FENCE.pattern}|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_CHART = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class LinkError(ValueError):
    """A link to a file that the site neither shows nor can bring along."""


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A text with its prose changed and its code left alone.

    Args:
        text: Markdown.
        change: what is done to each stretch between fences and backticks.

    Returns:
        The text.
    """
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def rewritten(text: str, *, source: str, target: str, homes: Mapping[str, str], bring: Callable[[str], str]) -> str:
    """A page for the site.

    Args:
        text: the Markdown as it stands in the repository.
        source: its file there; links are relative to it.
        target: its file on the site.
        homes: file of the repository → file of the site, for all pages.
        bring: asked for every other file that is linked; copies it to the site and returns where it is.

    Returns:
        The Markdown with its links relative to `target`, and with flowcharts as HTML.

    Raises:
        LinkError: a link to nothing.
    """
    folder, here = posixpath.dirname(source), posixpath.dirname(target)

    def moved(link: re.Match[str]) -> str:
        path, mark, anchor = link[0].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        file = posixpath.normpath(posixpath.join(folder, path))
        return posixpath.relpath(homes.get(file) or bring(file), here or ".") + mark + anchor

    def prose(part: str) -> str:
        return _LINK.sub(moved, part)

    # a link whose text is code has its brackets in prose and only its text between backticks
    return outside_code(_CHART.sub(lambda chart: as_html(chart[1]), text), prose)
