"""`peft-reft convert`: folders of pyreft and adapters to ours, and ours to pyreft, adapters or GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_reft import convert as convert_folder
from peft_reft.storage.convert import Target

from .report import JsonOption, Report

__all__ = ["convert"]


def convert(
    source: Annotated[Path, typer.Argument(help="The folder; what it is shows in its files.")],
    target: Annotated[Path, typer.Argument(help="A new folder; for --to gguf a file.")],
    to: Annotated[Target, typer.Option(help="The format to write.")] = "reft",
    base_model: Annotated[str | None, typer.Option(help="Id or folder of the base; needed for --to reft.")] = None,
    positions: Annotated[str | None, typer.Option(help="What a pyreft folder does not store, e.g. f7+l7.")] = None,
    share_weights: Annotated[bool | None, typer.Option(help="Likewise.")] = None,
    act_fn: Annotated[str | None, typer.Option(help="Likewise, e.g. relu; none by default.")] = None,
    intervention: Annotated[
        str | None, typer.Option(help="The kind, where an adapters folder cannot say: noreft or direft.")
    ] = None,
    as_json: JsonOption = False,
) -> Report:
    """Convert an adapter folder of pyreft or adapters to ours, or one of ours to pyreft, adapters or GGUF."""
    written = convert_folder(
        source,
        target,
        base_model=base_model,
        positions=positions,
        share_weights=share_weights,
        act_fn=act_fn,
        intervention=intervention,
        to=to,
    )
    return Report({"source": str(source), "target": str(written), "to": to}, [f"wrote {written}"])
