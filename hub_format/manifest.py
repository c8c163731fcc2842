"""`reft_manifest.json`: what a folder of ReFT weights holds, written last and checked first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ManifestError
from .migrations import migrate
from .strict_json import load_json
from .tensors import TensorInfo, file_digest
from .versions import SPEC_VERSION, parse_version

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "MANIFEST_NAME",
    "PICKLE_NAME",
    "ROUTER_NAME",
    "STREAMS_SINCE",
    "WEIGHTS_NAME",
    "FileInfo",
    "Manifest",
    "describe_file",
]

MANIFEST_NAME = "reft_manifest.json"
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
CARD_NAME = "README.md"
ROUTER_NAME = "skill_router.safetensors"
"""Beside adapters: which of them a prompt goes to (`peft_reft.continual.SkillRouter`)."""
MAX_HIDDEN = 2**24
MAX_STREAMS = 2**10
STREAMS_SINCE = "1.1"
"""The version of the format that brought `streams`; what records it is written as that one."""
BASE_FIELDS = ("architecture", "config", "hidden_size", "model_type", "stacks", "streams", "tokenizer", "vocab_size")
FIELDS = {"annotations", "base_model", "files", "members", "producer", "required_features", "spec_version", "tensors"}


@dataclass(frozen=True)
class FileInfo:
    """A file of the folder: relative path, size in bytes, sha256."""

    path: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


def describe_file(folder: Path, name: str) -> FileInfo:
    """Path, size and digest of a file that lies directly in the folder."""
    path = folder / name
    return FileInfo(name, path.stat().st_size, file_digest(path))


@dataclass(frozen=True)
class Manifest:
    """The manifest of one folder.

    Attributes:
        base_model: identity of the base model: class, model type, hidden size, blocks per stack; `streams`, the
            residual streams of a token's state, where there are several.
        members: the adapters of the folder; version 1 has exactly one.
        files: every file that carries behaviour.
        tensors: every tensor of the weights file.
        producer: name and version of the writer.
        spec_version: as it stands in the file.
    """

    base_model: Mapping[str, Any]
    members: tuple[Mapping[str, Any], ...]
    files: tuple[FileInfo, ...]
    tensors: Mapping[str, TensorInfo]
    producer: Mapping[str, str]
    spec_version: str = SPEC_VERSION

    def to_json(self) -> dict[str, Any]:
        """The object as it is written."""
        return {
            "spec_version": self.spec_version,
            "required_features": [],
            "producer": dict(self.producer),
            "base_model": dict(self.base_model),
            "members": [dict(member) for member in self.members],
            "files": [info.to_json() for info in self.files],
            "tensors": {name: info.to_json() for name, info in self.tensors.items()},
            "annotations": {},
        }

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read and check the structure of a manifest; whether the folder agrees is `reader.check_folder`'s work.

        Args:
            path: of the file.

        Returns:
            The manifest, its structure checked.

        Raises:
            ManifestError: a field is missing, unknown or of the wrong type.
            UnsupportedVersionError: another major version, or a higher minor one.
        """
        raw = load_json(path)
        stored = migrate(raw, "manifest", file=MANIFEST_NAME)
        if unknown := set(stored) - FIELDS:
            raise _refuse(f"has the unknown field {sorted(unknown)[0][:60]!r}", "update peft-reft")
        if missing := FIELDS - set(stored):
            raise _refuse(f"lacks the field {sorted(missing)[0]!r}")
        if stored["required_features"] != []:
            raise ManifestError(
                f"requires features this version lacks: {stored['required_features']!r}"[:200],
                code="manifest.feature",
                file=MANIFEST_NAME,
                rule="a feature that a reader does not know may change what the files mean",
                fix="update peft-reft",
            )
        for name in ("base_model", "producer", "tensors", "annotations"):
            if not isinstance(stored[name], dict):
                raise _refuse(f"field {name!r} is not an object")
        for name in ("files", "members"):
            if not isinstance(stored[name], list) or not all(isinstance(entry, dict) for entry in stored[name]):
                raise _refuse(f"field {name!r} is not a list of objects")
        _check_base_model(stored["base_model"])
        if "streams" in stored["base_model"] and parse_version(raw["spec_version"]) < parse_version(STREAMS_SINCE):
            raise _refuse(f"gives streams, which version {STREAMS_SINCE} brought, and says {raw['spec_version']}")
        paths = [str(entry.get("path"))[:200] for entry in stored["files"]]
        weights = [path for path in paths if path != CONFIG_NAME]
        expected = [{"kind": "reft", "config": CONFIG_NAME, "weights": weights[0] if weights else None}]
        if stored["members"] != expected or len({*paths}) != len(paths):
            raise _refuse("does not list exactly one member, its config and its weights, once each")
        return cls(
            base_model=stored["base_model"],
            members=tuple(stored["members"]),
            files=tuple(_file(entry) for entry in stored["files"]),
            tensors={name: _tensor(name, entry) for name, entry in stored["tensors"].items()},
            producer=stored["producer"],
            spec_version=raw["spec_version"],
        )


def _check_base_model(stored: Mapping[str, Any]) -> None:
    if unknown := set(stored) - set(BASE_FIELDS):
        raise _refuse(f"gives the base model the unknown item {sorted(unknown)[0][:60]!r}", "update peft-reft")
    for name in ("architecture", "model_type", "config", "tokenizer"):
        if not isinstance(stored.get(name), (str, type(None))):
            raise _refuse(f"gives the base model a {name} of {str(stored[name])[:40]}, which is no text")
    for name in ("hidden_size", "vocab_size"):
        size = stored.get(name, 1)
        if not ((type(size) is int and 1 <= size <= MAX_HIDDEN) or (size is None and name == "vocab_size")):
            raise _refuse(f"gives the base model a {name} of {str(size)[:40]}")
    streams = stored.get("streams", 2)
    if (
        type(streams) is not int
        or not 2 <= streams <= MAX_STREAMS
        or ("streams" in stored) > ("hidden_size" in stored)
    ):
        raise _refuse(f"gives the base model streams of {str(streams)[:40]}")
    stacks = stored.get("stacks")
    lengths = stacks.values() if isinstance(stacks, dict) else [stacks]
    if not (stacks is None or isinstance(stacks, dict)) or not all(type(n) in (int, type(None)) for n in lengths):
        raise _refuse(f"gives the base model stacks of {str(stacks)[:40]}")


def _file(entry: Mapping[str, Any]) -> FileInfo:
    if set(entry) != {"path", "size", "sha256"}:
        raise _refuse("describes a file with other fields than path, size, sha256")
    path, size, digest = entry["path"], entry["size"], entry["sha256"]
    if not isinstance(path, str) or path not in (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME):
        raise _refuse(f"names the file {str(path)[:80]!r}, which is none of the format's")
    if type(size) is not int or size < 0 or not _is_digest(digest):
        raise _refuse(f"describes {path!r} with a size or digest of the wrong form")
    return FileInfo(path, size, digest)


def _tensor(name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "sha256"}:
        raise _refuse(f"describes tensor {name[:80]!r} with other fields than dtype, shape, sha256")
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _refuse(f"gives tensor {name[:80]!r} a shape that is no list of sizes")
    if not isinstance(entry["dtype"], str) or not _is_digest(entry["sha256"]):
        raise _refuse(f"gives tensor {name[:80]!r} a dtype or digest of the wrong form")
    return TensorInfo(entry["dtype"], tuple(shape), entry["sha256"])


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _refuse(why: str, fix: str | None = None) -> ManifestError:
    rule = "a manifest has exactly the fields and files that the specification of its version names"
    return ManifestError(why, file=MANIFEST_NAME, rule=rule, fix=fix or "save or download the adapter again")
