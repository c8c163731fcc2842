"""`peft-reft push`: a saved folder to the Hub, checked first, as one commit with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_reft.storage.hub_folder import push_saved

from .report import JsonOption, Report, TokenOption

__all__ = ["push"]


def push(
    path: Annotated[Path, typer.Argument(help="The folder of a ReFT or a bundle.")],
    repo: Annotated[str, typer.Argument(help="The repository, e.g. me/my-reft; made if it does not exist.")],
    add: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add the folder's one ReFT under this name beside what is there."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what is there, a LoRA too; by default a LoRA is not.")
    ] = False,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; the account's default otherwise.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Check a saved adapter or bundle and push it as one commit, with its card brought up to date."""
    if add is not None and replace:
        raise typer.BadParameter("--add keeps what is there, --replace does not: give one of them")
    url = push_saved(
        path,
        repo,
        add=False if replace else add,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
    )
    return Report({"path": str(path), "repo": repo, "commit": url}, [f"pushed {path}: {url}"])
