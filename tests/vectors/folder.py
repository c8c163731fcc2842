"""A folder as literal bytes: JSON texts, a safetensors file, and the digests that join them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIG", "INDEX", "MANIFEST", "WEIGHTS", "Adapter", "dump", "pack", "safetensors_file", "sha256"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MANIFEST, INDEX = "reft_manifest.json", "reft_index.json"
Packed = tuple[str, list[int], bytes]
"""dtype, shape, bytes of a tensor."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def pack(values: NDArray[Any], dtype: str = "F32") -> Packed:
    """The tensor's bytes, little-endian and row by row."""
    flat = [float(value) for value in values.reshape(-1)]
    if dtype == "BF16":
        data = b"".join(struct.pack("<f", value)[2:] for value in flat)
    elif dtype in ("I32", "I64"):
        data = np.array(flat).astype({"I32": "<i4", "I64": "<i8"}[dtype]).tobytes()
    else:
        data = struct.pack(f"<{len(flat)}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }", *flat)
    return dtype, list(values.shape), data


def safetensors_file(
    tensors: Mapping[str, Packed], *, metadata: Mapping[str, str] | None = None, pad: int = 0
) -> bytes:
    """Header and data of tensors, in their order in the mapping."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (pad or -len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


@dataclass
class Adapter:
    """One ReFT adapter before it is written.

    Attributes:
        config: the whole config; `reft.tensors` is filled in when it is written.
        manifest: likewise; `files` and `tensors` are filled in.
        tensors: name → packed tensor.
        files: other files, or replacements of the three.
        stale: what is not to be filled in: `"tensors"`, `"files"`.
    """

    config: dict[str, Any]
    manifest: dict[str, Any]
    tensors: dict[str, Packed]
    files: dict[str, bytes] = field(default_factory=dict)
    write: Callable[[Any], bytes] = dump
    weights: Callable[[Mapping[str, Packed]], bytes] = lambda held: safetensors_file(held, metadata={"format": "pt"})

    def table(self) -> dict[str, Any]:
        return {
            name: {"dtype": dtype, "shape": shape, "sha256": sha256(data)}
            for name, (dtype, shape, data) in sorted(self.tensors.items())
        }

    def written(self) -> dict[str, bytes]:
        """File name → bytes."""
        if isinstance(self.config.get("reft"), dict) and self.tensors:
            self.config["reft"].setdefault("tensors", self.table())
        made = {CONFIG: self.write(self.config)}
        if self.tensors:
            made[WEIGHTS] = self.weights(self.tensors)
        made |= {name: data for name, data in self.files.items() if name in (CONFIG, WEIGHTS)}
        if self.tensors:
            self.manifest.setdefault("tensors", self.table())
            infos = [{"path": name, "size": len(data), "sha256": sha256(data)} for name, data in sorted(made.items())]
            self.manifest.setdefault("files", infos)
            made[MANIFEST] = self.write(self.manifest)
        return made | {name: data for name, data in self.files.items() if data is not None}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
