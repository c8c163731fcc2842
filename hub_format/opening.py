"""A name that may be a folder or a repository → the folder: it, or what is brought into the cache from one commit."""

from __future__ import annotations

from pathlib import Path

from .errors import FileFormatError, shown
from .journal import settle
from .remote import fetch_folder

__all__ = ["open_source"]


def open_source(source: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder where one of that name exists, else that of a repository, at one commit.

    Args:
        source: path or repository.
        revision, token: of a repository.

    Raises:
        FileFormatError: it is a file.
        HubError: the repository is missing, gated or out of reach.
    """
    path = Path(source)
    if path.is_dir():
        settle(path)
        return path
    if path.exists() or path.is_symlink():
        raise FileFormatError(
            f"{shown(source)} is not a folder",
            code="source.folder",
            value=source,
            rule="an adapter is a folder or a repository",
            fix="name the folder that holds adapter_config.json",
        )
    return fetch_folder(source, revision=revision, token=token)
