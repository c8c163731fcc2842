"""PATH|REPO: a folder where one of that name exists, else a repository, brought into the cache from one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_reft.hub_format.errors import FileFormatError
from peft_reft.hub_format.journal import settle
from peft_reft.hub_format.remote import fetch_folder

__all__ = ["SourceArgument", "open_source"]

SourceArgument = Annotated[str, typer.Argument(metavar="PATH|REPO", help="A folder, or a repository on the Hub.")]


def open_source(source: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder that an argument names.

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
            f"{source} is not a folder",
            code="source.folder",
            value=source,
            rule="an adapter is a folder or a repository",
            fix="name the folder that holds adapter_config.json",
        )
    return fetch_folder(source, revision=revision, token=token)
