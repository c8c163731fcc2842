"""A bundle: LoRAs and ReFTs in one folder, and the index that lists them.

adapter_config.json, adapter_model.safetensors     the LoRA "default": PEFT and transformers read it, without us
<name>/…                                           other LoRAs
reft/<name>/…                                      ReFTs, each a folder that loads alone
reft_index.json                                    the members, written last
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, ManifestError, in_file
from .manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, FileInfo, describe_file
from .migrations import migrate
from .reader import check_link, check_regular
from .strict_json import dump_json, load_json
from .versions import SPEC_VERSION
from .writer import write_atomic

__all__ = [
    "BASE",
    "INDEX_NAME",
    "REFT_FOLDER",
    "Member",
    "check_name",
    "index_text",
    "read_index",
    "read_index_entries",
    "write_index",
]

BASE = "__base__"
"""In the place of an adapter's name: the base alone, PEFT's word for a row without an adapter."""
INDEX_NAME = "reft_index.json"
REFT_FOLDER = "reft"
MAX_MEMBERS = 256
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Member:
    """One adapter of a bundle.

    Attributes:
        name: of the adapter.
        kind: `"reft"`, or PEFT's type in lower case, e.g. `"lora"`.
        folder: relative to the bundle, `"."` for its root.
    """

    name: str
    kind: str
    folder: str

    @classmethod
    def at(cls, name: str, kind: str) -> Member:
        """The member at the place that its name and kind determine."""
        check_name(name)
        if kind == "reft":
            return cls(name, kind, f"{REFT_FOLDER}/{name}")
        return cls(name, kind, "." if name == "default" else name)

    def paths(self) -> list[str]:
        """The files that make the member, relative to the bundle."""
        names = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME) if self.kind == "reft" else (CONFIG_NAME, WEIGHTS_NAME)
        return [name if self.folder == "." else f"{self.folder}/{name}" for name in names]

    def files(self, root: Path) -> list[FileInfo]:
        """Their sizes and digests."""
        found = [describe_file((root / path).parent, Path(path).name) for path in self.paths()]
        return [FileInfo(path, info.size, info.sha256) for path, info in zip(self.paths(), found, strict=True)]

    def entry(self, files: Sequence[FileInfo]) -> dict[str, Any]:
        """The member as it stands in the index."""
        return {
            "name": self.name,
            "kind": self.kind,
            "folder": self.folder,
            "files": [info.to_json() for info in files],
        }


def check_name(name: str) -> None:
    """Refuse adapter names that could leave the folder or clash with the format's own names."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == REFT_FOLDER:
        raise ConfigError(
            f"the adapter name {str(name)[:60]!r} is not allowed",
            code="name",
            value=name,
            rule=f"a name has 1 to 64 letters, digits, '_' or '-', starts with no '-', and is not {REFT_FOLDER!r}",
            fix="choose another name: it becomes the name of a folder",
        )


def write_index(root: Path, members: Sequence[Member]) -> None:
    """Write the index of a bundle whose members lie in place."""
    write_atomic(root / INDEX_NAME, index_text([member.entry(member.files(root)) for member in members]))


def index_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """The index of these members, as text."""
    return dump_json({"spec_version": SPEC_VERSION, "members": [dict(entry) for entry in entries]})


def read_index_entries(root: Path) -> dict[str, dict[str, Any]]:
    """Name → entry of an index whose structure is right; the files are not looked at."""
    read_index(root, check_files=False)
    return {entry["name"]: entry for entry in load_json(root / INDEX_NAME)["members"]}


def read_index(root: Path, *, check_files: bool = True) -> list[Member] | None:
    """The members of a bundle, by default after checking their files; None where the folder is no bundle.

    Raises:
        ManifestError: the index is malformed; a member's file is missing or is not the one that was saved.
    """
    path = root / INDEX_NAME
    check_link(path)
    check_regular(path)
    if not path.is_file():
        return None
    stored = migrate(load_json(path), "index", file=INDEX_NAME)
    entries = stored.get("members")
    if set(stored) != {"spec_version", "members"} or not isinstance(entries, list):
        raise _refuse("is not an index: it has 'spec_version' and a list 'members'")
    if len(entries) > MAX_MEMBERS:
        raise _refuse(f"lists {len(entries)} members; at most {MAX_MEMBERS} are read")
    members = [_member(entry) for entry in entries]
    if len({member.name for member in members}) != len(members):
        raise _refuse("lists a member twice")
    if check_files:
        for member, entry in zip(members, entries, strict=True):
            _check_files(root, member, entry["files"])
    return members


def _member(entry: Any) -> Member:
    if not isinstance(entry, dict) or set(entry) != {"name", "kind", "folder", "files"}:
        raise _refuse("describes a member with other fields than name, kind, folder, files")
    if not isinstance(entry["kind"], str):
        raise _refuse(f"gives a member the kind {entry['kind']!r}")
    with in_file(INDEX_NAME):
        member = Member.at(entry["name"], entry["kind"])
    if entry["folder"] != member.folder:
        raise _refuse(f"puts member {member.name!r} into {str(entry['folder'])[:60]!r}")
    return member


def _check_files(root: Path, member: Member, listed: object) -> None:
    check_link(root / member.folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME):
        check_link(root / member.folder / name)
        check_regular(root / member.folder / name)
    if member.kind == "reft":
        check_link(root / REFT_FOLDER)
    try:
        found = [info.to_json() for info in member.files(root)]
    except FileNotFoundError as error:
        raise _refuse(f"lists member {member.name!r}, a file of which is missing") from error
    if found != listed:
        raise ManifestError(
            f"describes other files for member {member.name!r} than the folder holds",
            code="bundle.files",
            file=INDEX_NAME,
            fix="save or download the bundle again: it was changed or interrupted after saving",
        )


def _refuse(why: str) -> ManifestError:
    rule = "an index has a version and its members, each with name, kind, folder and files"
    return ManifestError(why, file=INDEX_NAME, rule=rule, fix="save or download the bundle again")
