"""The header of a safetensors file, parsed strictly and without loading a tensor.

Layout (safetensors README, "Format"): 8 bytes little-endian header size, a JSON object name → {dtype, shape,
data_offsets}, then the data, without holes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .errors import FileFormatError
from .strict_json import parse_json

__all__ = ["TensorInfo", "file_digest", "read_tensor_table"]

MAX_HEADER = 1024 * 1024
MAX_TENSORS = 10_000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor, with the digest of its bytes (little-endian, row-major)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in a config and a manifest."""
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}


def read_tensor_table(path: Path) -> dict[str, TensorInfo]:
    """Name → dtype, shape and digest of every tensor of a safetensors file.

    Raises:
        FileFormatError: the header is too large or malformed, or the data does not fit it exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            raise _refuse(path, "is shorter than its header")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER or 8 + length > size:
            raise _refuse(path, f"declares a header of {length} bytes; at most {MAX_HEADER} are read")
        header = parse_json(handle.read(length), name=path.name)
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise _refuse(path, f"lists {len(header)} tensors; at most {MAX_TENSORS} are read")
        spans = [(name, *_entry(path, name, entry)) for name, entry in header.items()]
        table: dict[str, TensorInfo] = {}
        position = 0
        for name, dtype, shape, begin, end in sorted(spans, key=lambda span: (span[3], span[4])):
            if begin != position or end - begin != prod(shape) * ITEM_BYTES[dtype] or 8 + length + end > size:
                raise _refuse(path, f"tensor {name[:80]!r} does not lie where its shape says")
            table[name] = TensorInfo(dtype, shape, _digest(handle, end - begin))
            position = end
        if 8 + length + position != size:
            raise _refuse(path, "has bytes that belong to no tensor")
    return dict(sorted(table.items()))


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refuse(path, f"tensor {name[:80]!r} is described with other fields than dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise _refuse(path, f"tensor {name[:80]!r} has dtype {str(dtype)[:20]!r}, which the format does not use")
    sizes = [shape, offsets]
    if not all(isinstance(item, list) and all(type(n) is int and 0 <= n < 2**48 for n in item) for item in sizes):
        raise _refuse(path, f"tensor {name[:80]!r} has a shape or offsets that are not sizes")
    if len(offsets) != 2 or len(shape) > 8 or offsets[0] > offsets[1]:
        raise _refuse(path, f"tensor {name[:80]!r} has a shape or offsets that are not sizes")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _digest(handle: Any, count: int) -> str:
    digest = hashlib.sha256()
    while count:
        block = handle.read(min(count, 1 << 20))
        if not block:
            break
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


def _refuse(path: Path, why: str) -> FileFormatError:
    return FileFormatError(why, code="tensors", file=path.name)
