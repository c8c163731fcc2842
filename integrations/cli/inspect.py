"""`peft-reft inspect`: what an adapter edits, where, how big it is and by whom it was made, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from peft_reft.hub_format.bundle import read_index
from peft_reft.hub_format.listing import check_member, list_members
from peft_reft.hub_format.opening import open_source

from .figure import draw, figure_lines
from .members import describe_member
from .report import JsonOption, Report, RevisionOption, TokenOption, table
from .sizes import edit_sizes
from .source import SourceArgument

__all__ = ["inspect"]

FIGURE = (
    "Show how large the edits are, by layer and term: the root mean square of |h'-h| over h with independent standard "
    "normal entries, which needs no base. For an edit Ah+c its parts are |A| (Frobenius; LoReFT: RtW-RtR) and |c| "
    "(Rtb); the largest singular value of A stands beside them."
)


def inspect(
    source: SourceArgument,
    figure: Annotated[bool, typer.Option("--figure", help=FIGURE)] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write that as a picture, a new file.")
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Show what the adapters of a folder or repository edit, where, how big they are and who wrote them."""
    root = open_source(source, revision=revision, token=token)
    bundle = read_index(root) is not None
    checked = [check_member(root, member) for member in list_members(root)]
    members = [describe_member(root, member) for member in checked]
    sizes = {one.member.name: edit_sizes(root, one) for one in checked if one.groups} if figure or svg else {}
    for member in members:
        if member["name"] in sizes:
            member["sizes"] = [size.to_json() for size in sizes[member["name"]]]
    if svg is not None:
        draw(svg, source, sizes)
    data = {
        "source": source,
        "bundle": bundle,
        "bytes": sum(member["bytes"] for member in members),
        "parameters": sum(member["parameters"] for member in members),
        "members": members,
    }
    lines = _screen(data)
    if figure:
        lines += figure_lines(sizes)
    return Report(data, lines if svg is None else [*lines, "", f"wrote {svg}"])


def _screen(data: Mapping[str, Any]) -> list[str | RenderableType]:
    members = data["members"]
    lines: list[str | RenderableType] = [
        f"{data['source']}: {'a bundle of ' if data['bundle'] else ''}{len(members)} "
        f"adapter{'s' if len(members) > 1 else ''}, {data['parameters']:,} parameters, {data['bytes']:,} bytes"
    ]
    for member in members:
        lines += ["", f"{member['name']} ({member['kind']}, {member['parameters']:,} parameters)", _facts(member)]
        if "edits" in member:
            heads = ("edit", "rank", "positions", "component", "layers", "parameters")
            lines.append(table(heads, [_row(edit) for edit in member["edits"]]))
    return lines


def _facts(member: Mapping[str, Any]) -> RenderableType:
    base = member["base"]
    identity = ", ".join(f"{name} {value}" for name, value in base.items() if isinstance(value, (str, int)))
    producer = " ".join(map(str, member["producer"].values())) or "not recorded"
    rows = [
        ("  base", f"{member['base_model'] or 'not named'}" + (f" ({identity})" if identity else "")),
        ("  task", member["task_type"] or "not named"),
        ("  written by", f"{producer}, peft {member['peft_version'] or 'unknown'}"),
        ("  stored", f"{member['bytes']:,} bytes, {', '.join(member['dtypes'])}, in {member['folder']}"),
    ]
    if "weights" in member:
        rows += [(f"  {name}", value) for name, value in member["weights"].items() if value is not None]
    return table(("", ""), rows)


def _row(edit: Mapping[str, Any]) -> tuple[object, ...]:
    positions = edit["positions"] + (" of each turn" if edit["turns"] == "each" else "")
    layers = "; ".join(
        (f"{stack} " if len(edit["layers"]) > 1 else "") + spans(numbers) for stack, numbers in edit["layers"].items()
    )
    rank = "" if edit["rank"] is None else edit["rank"]
    return (
        f"  {edit['intervention']}",
        rank,
        positions + (", tied" if edit["tied"] and "+" in positions else ""),
        edit["component"],
        layers or f"{edit['sites']} sites",
        f"{edit['parameters']:,}",
    )


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs drawn together: `0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
