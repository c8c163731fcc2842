"""`peft-reft bundle`: a LoRA and a ReFT that were saved apart, put into one folder that loads as both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_reft.hub_format.opening import open_source
from peft_reft.mixed.joining import join

from .report import JsonOption, Report, TokenOption

__all__ = ["bundle"]


def bundle(
    lora: Annotated[
        str, typer.Argument(metavar="LORA", help="Folder or repository of a LoRA as stock PEFT saves it, or a bundle.")
    ],
    reft: Annotated[str, typer.Argument(metavar="REFT", help="Folder or repository of one ReFT.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new folder.")],
    name: Annotated[str, typer.Option(help="Of the ReFT in the bundle.")] = "edit",
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Although the two name different bases of the Hub.")
    ] = False,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Put a LoRA and a ReFT into one new folder, their files unchanged, that loads as both and as the LoRA alone."""
    folders = [open_source(source, token=token) for source in (lora, reft)]
    members = join(folders[0], folders[1], out, name=name, allow_other_base=allow_other_base)
    names = [member.name for member in members]
    return Report({"path": str(out), "members": names}, [f"wrote {out}: {', '.join(names)}"])
