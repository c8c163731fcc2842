"""`peft-reft diff`: two adapters, field by field and tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import FileFormatError
from peft_reft.hub_format.listing import CheckedMember, check_member, list_members
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.opening import open_source

from .report import JsonOption, Report, TokenOption, table

__all__ = ["diff"]

SHOWN = 20
"""Tensors that the screen lists; `--json` lists all."""

Source: Any = typer.Argument(help="A folder, or a repository on the Hub.")
Revision: Any = typer.Option(help="Branch, tag or commit, where it is a repository.")


def diff(
    a: Annotated[str, Source],
    b: Annotated[str, Source],
    revision_a: Annotated[str | None, Revision] = None,
    revision_b: Annotated[str | None, Revision] = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Compare two adapters or bundles: config fields, and tensors by their largest absolute difference.

    Status 1 where they differ.
    """
    roots = (open_source(a, revision=revision_a, token=token), open_source(b, revision=revision_b, token=token))
    first, second = ({member.name: member for member in list_members(root)} for root in roots)
    one_sided = [(name, "a" if name in first else "b") for name in sorted(first.keys() ^ second.keys())]
    members = [_compare(roots, first[name], second[name]) for name in sorted(first.keys() & second.keys())]
    different = bool(one_sided) or any(member["config"] or member["tensors"] for member in members)
    data = {
        "a": a,
        "b": b,
        "different": different,
        "only": [{"member": name, "in": side} for name, side in one_sided],
        "members": members,
    }
    return Report(data, _screen(data), status=int(different))


def _compare(roots: tuple[Path, Path], first: Member, second: Member) -> dict[str, Any]:
    a, b = check_member(roots[0], first), check_member(roots[1], second)
    return {
        "member": first.name,
        "config": _config_differences(a.config, b.config),
        "tensors": _tensor_differences(roots, a, b),
    }


def _config_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    one, other = dict(_flat(a)), dict(_flat(b))
    found: list[dict[str, Any]] = []
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            found.append({"field": name, "only": "a" if name in one else "b", "value": {**one, **other}[name]})
        elif type(one[name]) is not type(other[name]) or one[name] != other[name]:
            found.append({"field": name, "a": one[name], "b": other[name]})
    return found


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The envelope's fields, then those of `reft`; its list of tensors is compared by the tensors themselves."""
    for name, value in config.items():
        if name != "reft":
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"reft.{inner}", entry) for inner, entry in value.items() if inner != "tensors")


def _tensor_differences(roots: tuple[Path, Path], a: CheckedMember, b: CheckedMember) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        one, other = a.tensors.get(name), b.tensors.get(name)
        if one is None or other is None:
            found.append({"tensor": name, "only": "a" if other is None else "b"})
        elif one.shape != other.shape:
            found.append({"tensor": name, "a": list(one.shape), "b": list(other.shape)})
        elif one != other:
            files = [root / member.member.folder / WEIGHTS_NAME for root, member in zip(roots, (a, b), strict=True)]
            found.append(
                {"tensor": name, "dtypes": [one.dtype, other.dtype], "max_abs": _largest_difference(files, name)}
            )
    return found


def _largest_difference(files: list[Path], name: str) -> float | str:
    """max |a − b| of one tensor, in float64; `"nan"` or `"inf"` as a word, since JSON has no such numbers."""
    from safetensors import safe_open

    tensors = []
    for file in files:
        if not file.is_file():
            raise FileFormatError(
                f"{file.parent.name} holds no {WEIGHTS_NAME}",
                code="weights.missing",
                rule="tensors are compared in safetensors",
                fix="save the adapter again without safe_serialization=False",
            )
        with safe_open(file, "pt") as opened:
            tensors.append(opened.get_tensor(name).double())
    value = float((tensors[0] - tensors[1]).abs().max()) if tensors[0].numel() else 0.0
    return value if math.isfinite(value) else str(value)


def _screen(data: Mapping[str, Any]) -> list[str | RenderableType]:
    if not data["different"]:
        return [f"{data['a']} and {data['b']} are equal"]
    lines: list[str | RenderableType] = [f"a: {data['a']}", f"b: {data['b']}"]
    lines += [f"only in {entry['in']}: adapter {entry['member']}" for entry in data["only"]]
    for member in data["members"]:
        config, tensors = member["config"], member["tensors"]
        if not config and not tensors:
            lines += ["", f"{member['member']}: equal"]
            continue
        lines += ["", f"{member['member']}: {len(config)} config fields and {len(tensors)} tensors differ"]
        if config:
            lines.append(table(("field", "a", "b"), [_field(entry) for entry in config]))
        if tensors:
            ranked = sorted(tensors, key=_weight, reverse=True)
            lines.append(table(("tensor", "max |a − b|"), [_tensor(entry) for entry in ranked[:SHOWN]]))
        if len(tensors) > SHOWN:
            lines.append(f"and {len(tensors) - SHOWN} more; --json lists all")
    return lines


def _field(entry: Mapping[str, Any]) -> tuple[object, object, object]:
    if "only" in entry:
        return (
            (entry["field"], entry["value"], "(absent)")
            if entry["only"] == "a"
            else (entry["field"], "(absent)", entry["value"])
        )
    return entry["field"], entry["a"], entry["b"]


def _weight(entry: Mapping[str, Any]) -> float:
    value = entry.get("max_abs")
    return value if isinstance(value, float) else math.inf


def _tensor(entry: Mapping[str, Any]) -> tuple[object, object]:
    if "only" in entry:
        return entry["tensor"], f"only in {entry['only']}"
    if "max_abs" not in entry:
        return entry["tensor"], f"shapes {entry['a']} and {entry['b']}"
    value = entry["max_abs"]
    shown = f"{value:.3g}" if isinstance(value, float) else value
    one, other = entry["dtypes"]
    return entry["tensor"], shown if one == other else f"{shown} ({one}, {other})"
