"""The README as a package index shows it; all else stands in pyproject.toml.

An index has none of the repository's files, so a link to one of them is dead there: its text and the file's name stay.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

_LOCAL = re.compile(r"\[([^\]]+)\]\((?![a-z][a-z0-9+.-]*:|#)([^)#\s]+)[^)]*\)")


def described(readme: str) -> str:
    """Markdown whose links to files are text: `[the site](docs/index.md#top)` becomes "the site (`docs/index.md`)".

    Args:
        readme: Markdown.

    Returns:
        The same with links to addresses and to headings only.
    """
    return _LOCAL.sub(lambda found: found[1] if found[1] == found[2] else f"{found[1]} (`{found[2]}`)", readme)


if __name__ == "__main__":
    text = Path(__file__).with_name("README.md").read_text("utf-8")
    setup(long_description=described(text), long_description_content_type="text/markdown")
