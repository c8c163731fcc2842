"""PATH|REPO: the argument that names an adapter's folder or repository."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["SourceArgument"]

SourceArgument = Annotated[str, typer.Argument(metavar="PATH|REPO", help="A folder, or a repository on the Hub.")]
