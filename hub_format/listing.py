"""Which adapters a folder holds, by a bundle's index or by the configs in it; and the check of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundle import INDEX_NAME, REFT_FOLDER, Member, check_name, read_index
from .errors import ManifestError
from .journal import settle
from .manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from .reader import check_folder, check_link
from .schema import SiteGroup
from .strict_json import load_json
from .tensors import TensorInfo, read_tensor_table

__all__ = ["CheckedMember", "check_member", "check_members", "list_members"]


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


def list_members(root: Path) -> list[Member]:
    """The adapters of a folder, without looking at weights.

    Raises:
        ManifestError: no adapter lies there, the index is malformed, or ReFTs of a bundle lie there without one.
    """
    settle(root)
    check_link(root / INDEX_NAME)
    members = read_index(root, check_files=False)
    if members is not None:
        return members
    if any(root.glob(f"{REFT_FOLDER}/*/{CONFIG_NAME}")):
        raise ManifestError(
            f"{root.name} holds {REFT_FOLDER}/<name>/ without {INDEX_NAME}",
            code="bundle.index",
            file=INDEX_NAME,
            rule="the index of a bundle is written last",
            fix="save or push the bundle again: it was interrupted",
        )
    found = [_found(root, path) for path in sorted({*root.glob(CONFIG_NAME), *root.glob(f"*/{CONFIG_NAME}")})]
    if not found:
        raise ManifestError(
            f"{root.name} holds no {CONFIG_NAME}",
            code="adapter.missing",
            file=CONFIG_NAME,
            rule="an adapter lies at the root or in a folder of its own name",
            fix="check the name and the revision",
        )
    return sorted(found, key=lambda member: (member.folder != ".", member.name))


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
    raise _without_weights(member)


def check_members(root: Path) -> list[str]:
    """Check every adapter of a folder; returns the paths of their files, the index among them, sorted.

    Raises:
        ReftError: a file is missing or is not what manifest, index or format say.
    """
    members = list_members(root)
    names: set[str] = set()
    if read_index(root) is not None:
        names.add(INDEX_NAME)
    for member in members:
        check_link(root / member.folder / WEIGHTS_NAME)
        if not (root / member.folder / WEIGHTS_NAME).is_file():  # also where a manifest tells of a pickle
            raise _without_weights(member)
        check_member(root, member)
        own = (CONFIG_NAME, WEIGHTS_NAME, *([MANIFEST_NAME] if member.kind == "reft" else []))
        names.update((Path(member.folder) / name).as_posix() for name in own)
    return sorted(names)


def _without_weights(member: Member) -> ManifestError:
    return ManifestError(
        f"adapter {member.name!r} has a config and no {WEIGHTS_NAME}",
        code="weights.missing",
        file=WEIGHTS_NAME,
        value=member.name,
        rule="an adapter is its config and its weights",
        fix="save it again in safetensors, or take a revision that was",
    )


def _found(root: Path, path: Path) -> Member:
    check_link(path)
    kind = load_json(path).get("peft_type")
    if not isinstance(kind, str) or not kind:
        raise ManifestError(
            f"gives no peft_type but {str(kind)[:40]!r}", code="adapter.kind", file=path.relative_to(root).as_posix()
        )
    if path.parent == root:
        return Member("default", kind.lower(), ".")
    check_name(path.parent.name)
    return Member(path.parent.name, kind.lower(), path.parent.name)
