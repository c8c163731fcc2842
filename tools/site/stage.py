"""Lays out what Zensical builds: pages with the site's links, the reference, the sources and the configuration."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from .markdown import LinkError, rewritten
from .notebooks import as_markdown
from .pages import REFERENCE, home_of, site_pages
from .reference import page

__all__ = ["stage", "with_fences"]

_EXAMPLE = re.compile(r"^( +)>>> .*\n(?:\1(?!\"\"\").+\n)*", re.MULTILINE)
_IGNORED = shutil.ignore_patterns("__pycache__")


def stage(root: Path, folder: Path) -> None:
    """Write the tree that the site is built from.

    Args:
        root: the repository.
        folder: where it is written, emptied first; Zensical puts the HTML into `site` beneath it.

    Raises:
        LinkError: a link of a page leads nowhere.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages, sources = folder / "pages", folder / "sources"
    _lay_sources(root, sources)
    sections = site_pages(root)
    homes = {page.source: page.target for _, found in sections for page in found} | {"README.md": "index.md"}
    reference = {one.source for one in REFERENCE}

    def bring(file: str) -> str:
        if not (root / file).is_file() or Path(file).suffix == ".md":
            raise LinkError(f"{file}: the site has no page for it")
        home = home_of(file)
        _write(pages / home, (root / file).read_bytes())
        return home

    for _, found in sections:
        for each in found:
            if each.source in reference:
                text = page(root, each.source)
            else:
                text = (root / each.source).read_text("utf-8")
                text = as_markdown(text) if each.source.endswith(".ipynb") else text
                text = rewritten(text, source=each.source, target=each.target, homes=homes, bring=bring)
            _write(pages / each.target, text.encode())
    here = Path(__file__).parent
    _write(pages / "assets/site.css", (here / "site.css").read_bytes())
    nav = [{title: [{each.title: each.target} for each in found]} for title, found in sections]
    config = (here / "zensical.toml").read_text("utf-8")
    _write(folder / "zensical.toml", config.replace("@NAV@", _toml(nav)).encode())


def _lay_sources(root: Path, sources: Path) -> None:
    """The packages as they are installed: the reference is read from here, not imported."""
    shutil.copytree(root / "peft_reft", sources / "peft_reft", ignore=_IGNORED)
    for name in ("hub_format", "integrations"):
        shutil.copytree(root / name, sources / "peft_reft" / name, ignore=_IGNORED)
    for path in sources.rglob("*.py"):
        path.write_text(with_fences(path.read_text("utf-8")), "utf-8")


def with_fences(source: str) -> str:
    """A module whose docstrings have their examples (`>>> …`) in fences, as Markdown wants them."""
    return _EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}{found[1]}```\n", source)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _toml(value: object) -> str:
    """A nested list of one-item tables as TOML writes it inline."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        items = (f"{json.dumps(key, ensure_ascii=False)} = {_toml(each)}" for key, each in value.items())
        return f"{{{', '.join(items)}}}"
    return json.dumps(value, ensure_ascii=False)
