"""What a built site must hold: links that lead somewhere, nothing fetched from elsewhere, every public name."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Found", "problems"]

_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
_FETCHED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Found(HTMLParser):
    """Anchors, links and fetched files of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self._article = 0
        self._code = 0
        self.prose: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element names or asks for."""
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and _FETCHED_LINKS & set(given.get("rel", "").split()):
            self.fetched.append(given["href"])
        if tag in _FETCHED and given.get(_FETCHED[tag]):
            self.fetched.append(given[_FETCHED[tag]])
        self._article += tag == "article"
        self._code += tag in ("pre", "code")

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        self._article -= tag == "article"
        self._code -= tag in ("pre", "code")

    def handle_data(self, data: str) -> None:
        """Keep the text of the page itself, code apart."""
        if self._article and not self._code:
            self.prose.append(data)


def problems(site: Path, names: Iterable[str]) -> list[str]:
    """What is wrong with a built site.

    Args:
        site: its folder.
        names: full names that the reference must have an entry for.

    Returns:
        One line for each fault; none where all is well.
    """
    pages = {path.relative_to(site).as_posix(): _read(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for name, page in pages.items():
        if name == "404.html":
            continue  # the server shows it at any depth, so its links are absolute
        for link in page.links:
            if fault := _fault(site, pages, name, link):
                found.append(f"{name}: {link}: {fault}")
        found += [f"{name}: {link}: fetched from another host" for link in page.fetched if urlsplit(link).netloc]
        for link in page.fetched:
            if not urlsplit(link).netloc and not link.startswith("data:") and not _file(site, name, link).is_file():
                found.append(f"{name}: {link}: no such file")
        text = "".join(page.prose)
        found += [f"{name}: Markdown that was not understood: {line.strip()[:80]!r}" for line in _raw(text)]
    there = set().union(*(page.ids for page in pages.values()))
    return found + [f"the reference has no entry for {name}" for name in names if name not in there]


def _read(path: Path) -> Found:
    page = Found()
    page.feed(path.read_text("utf-8"))
    return page


def _file(site: Path, page: str, link: str) -> Path:
    return site / posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(urlsplit(link).path)))


def _fault(site: Path, pages: dict[str, Found], page: str, link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    file = _file(site, page, link) if parts.path else site / page
    file = file / "index.html" if file.is_dir() else file
    if not file.is_file():
        return "no such page"
    target = pages.get(file.relative_to(site).as_posix())
    if parts.fragment and target is not None and unquote(parts.fragment) not in target.ids:
        return "no such heading"
    return None


def _raw(text: str) -> list[str]:
    """Lines that show marks of Markdown: a list without a blank line above it, a link or a table that was not made."""
    marks = ("- ", "* ", "| ", "::: ", "```")
    return [line for line in text.splitlines() if line.lstrip().startswith(marks) or "](" in line]
