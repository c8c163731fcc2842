"""What the adapters of a folder are, read from their configs and tensor tables after the format's checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import ManifestError
from peft_reft.hub_format.manifest import CONFIG_NAME, WEIGHTS_NAME
from peft_reft.hub_format.reader import UNIT_PREFIX, check_folder, check_link
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.strict_json import load_json
from peft_reft.hub_format.tensors import TensorInfo, read_tensor_table

__all__ = ["CheckedMember", "check_member", "describe_member"]


@dataclass(frozen=True)
class CheckedMember:
    """One adapter after its checks.

    Attributes:
        member: name, kind and folder.
        config: as stored.
        tensors: name → dtype, shape and digest.
        base: the base model's identity as the manifest records it; empty for a weight adapter.
        producer: name and version of the writer; likewise.
        groups: the site groups of a ReFT.
    """

    member: Member
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    base: Mapping[str, Any]
    producer: Mapping[str, Any]
    groups: tuple[SiteGroup, ...] = ()


def check_member(root: Path, member: Member) -> CheckedMember:
    """Check one adapter of a folder.

    Raises:
        ReftError: a file is missing, or not what manifest or format say.
    """
    folder = root / member.folder
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        check_link(folder / name)
    if member.kind == "reft":
        checked = check_folder(folder)
        if checked is not None:
            manifest = checked.manifest
            base, producer = manifest.base_model, manifest.producer
            return CheckedMember(member, checked.config, manifest.tensors, base, producer, checked.groups)
    elif (folder / WEIGHTS_NAME).is_file():
        return CheckedMember(member, load_json(folder / CONFIG_NAME), read_tensor_table(folder / WEIGHTS_NAME), {}, {})
    raise ManifestError(
        f"adapter {member.name!r} has a config and no {WEIGHTS_NAME}",
        code="weights.missing",
        file=WEIGHTS_NAME,
        value=member.name,
        rule="an adapter is its config and its weights",
        fix="save it again in safetensors",
    )


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
