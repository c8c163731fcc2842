"""`peft-reft pull`: the adapters of a repository into a folder, from one commit, checked before they land."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_reft import pull as pull_from_hub

from .report import JsonOption, Report, RevisionOption, TokenOption

__all__ = ["pull"]


def pull(
    repo: Annotated[str, typer.Argument(help="The repository, e.g. me/my-reft.")],
    path: Annotated[Path, typer.Argument(help="The folder; adapters that it holds already are replaced.")],
    revision: RevisionOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Bring the adapters of a repository and their card into a folder, all from one commit, checked first."""
    folder = pull_from_hub(repo, path, revision=revision, token=token)
    return Report({"repo": repo, "path": str(folder)}, [f"wrote {folder}"])
