"""What the adapters of a folder are, as their configs and tensor tables say after the format's checks."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from peft_reft.hub_format.listing import CheckedMember
from peft_reft.hub_format.reader import UNIT_PREFIX
from peft_reft.hub_format.schema import SiteGroup

__all__ = ["describe_member"]


def describe_member(root: Path, checked: CheckedMember) -> dict[str, Any]:
    """What `inspect` shows of one adapter."""
    member, config = checked.member, checked.config
    described: dict[str, Any] = {
        "name": member.name,
        "kind": member.kind,
        "folder": member.folder,
        "bytes": sum(path.stat().st_size for path in (root / member.folder).iterdir() if _belongs(path)),
        "parameters": sum(prod(info.shape) for info in checked.tensors.values()),
        "dtypes": sorted({info.dtype for info in checked.tensors.values()}),
        "base_model": config.get("base_model_name_or_path"),
        "base": {name: value for name, value in checked.base.items() if name != "stacks"},
        "task_type": config.get("task_type"),
        "producer": dict(checked.producer),
        "peft_version": config.get("peft_version"),
    }
    if member.kind == "reft":
        described["edits"] = _edits(checked)
    else:
        described["weights"] = {name: config.get(name) for name in ("r", "lora_alpha", "target_modules")}
    return described


def _belongs(path: Path) -> bool:
    return path.is_file() and path.name.startswith(("adapter_", "reft_manifest"))


def _edits(checked: CheckedMember) -> list[dict[str, Any]]:
    """One entry per site group, with the layers and parameters that the tensors show."""
    groups = checked.groups
    units = [number for number, group in enumerate(groups) for _ in range(group.units)]
    sites: list[set[str]] = [set() for _ in groups]
    sizes = [0 for _ in groups]
    for name, info in checked.tensors.items():
        site, _, rest = name.rpartition(f".{UNIT_PREFIX}")
        if not site.endswith(".reft"):
            continue
        number = units[int(rest.partition(".")[0])]
        sites[number].add(site)
        sizes[number] += prod(info.shape)
    return [_edit(group, place, size, checked.base) for group, place, size in zip(groups, sites, sizes, strict=True)]


def _edit(group: SiteGroup, sites: set[str], parameters: int, base: Mapping[str, Any]) -> dict[str, Any]:
    stacks = base.get("stacks")
    layers: dict[str, set[int]] = {}
    for site in sites:
        for stack in stacks if isinstance(stacks, dict) else ():
            _, found, rest = site.partition(f"{stack}.")
            block = rest.partition(".")[0]
            if found and block.isdecimal():
                layers.setdefault(str(stack), set()).add(int(block))
    return {
        "intervention": group.intervention,
        "rank": group.r if group.signature.has_rank else None,
        "positions": str(group.positions),
        "turns": group.turns,
        "component": group.component,
        "tied": group.share_weights,
        "layers": {stack: sorted(blocks) for stack, blocks in sorted(layers.items())},
        "sites": len(sites),
        "parameters": parameters,
    }
