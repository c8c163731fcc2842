"""The header of a safetensors file, parsed strictly and without loading a tensor.

Layout (safetensors README, "Format"): 8 bytes little-endian header size, a JSON object name → {dtype, shape,
data_offsets}, then the data, without holes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError
from .strict_json import parse_json

__all__ = ["TensorInfo", "file_digest", "read_tensor_table", "read_values"]

MAX_HEADER = 1024 * 1024
MAX_TENSORS = 10_000
BLOCK = 1 << 20
"""So many bytes are read, and so many numbers' looked at, in one go."""
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
LARGEST: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x47EFFFFFE0000000),
    "F32": ("<u4", 0x7F7FFFFF),
    "F16": ("<u2", 0x7BFF),
    "BF16": ("<u2", 0x7F7F),
}
"""dtype → its bits as an unsigned integer, and those of the largest number allowed: without their sign, IEEE 754
numbers sort as their bits do, NaN and infinity above all others. Of float64 it is float32's largest, in which edits
are computed."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one tensor, with the digest of its bytes (little-endian, row-major)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in a config and a manifest."""
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}


def read_tensor_table(path: Path, *, check_values: bool = False) -> dict[str, TensorInfo]:
    """Name → dtype, shape and digest of every tensor of a safetensors file.

    Args:
        path: of the file.
        check_values: whether NaN, infinity and numbers beyond float32 are refused, as a reader must.

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
        text = handle.read(length)
        if text[:1] not in (b"{", b""):
            raise _refuse(path, "has a header that does not start with '{'")
        header = parse_json(text, name=path.name)
        notes = header.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
            raise _refuse(path, "has a __metadata__ that does not map texts to texts")
        if len(header) > MAX_TENSORS:
            raise _refuse(path, f"lists {len(header)} tensors; at most {MAX_TENSORS} are read")
        spans = [(name, *_entry(path, name, entry)) for name, entry in header.items()]
        table: dict[str, TensorInfo] = {}
        numbers = _Numbers(path) if check_values else None
        position = 0
        for name, dtype, shape, begin, end in sorted(spans, key=lambda span: (span[3], span[4])):
            if begin != position or end - begin != prod(shape) * ITEM_BYTES[dtype] or 8 + length + end > size:
                raise _refuse(path, f"tensor {name[:80]!r} does not lie where its shape says")
            digest = hashlib.sha256()
            for block in _blocks(handle, end - begin):
                digest.update(block)
                if numbers is not None and dtype in LARGEST:
                    numbers.take(name, dtype, block)
            table[name] = TensorInfo(dtype, shape, digest.hexdigest())
            position = end
        if numbers is not None:
            numbers.look()
        if 8 + length + position != size:
            raise _refuse(path, "has bytes that belong to no tensor")
    return dict(sorted(table.items()))


def read_values(path: Path, names: Iterable[str]) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """Name → values of floating-point tensors of a file that `read_tensor_table` has read, one at a time."""
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
        for name in names:
            begin, end = header[name]["data_offsets"]
            handle.seek(8 + length + begin)
            data = handle.read(end - begin)
            if header[name]["dtype"] == "BF16":  # the upper half of a float32
                flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                flat = np.frombuffer(data, f"<f{ITEM_BYTES[header[name]['dtype']]}")
            yield name, flat.reshape(header[name]["shape"])


def read_notes(path: Path) -> dict[str, str]:
    """The metadata of a file that `read_tensor_table` has read."""
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        notes: dict[str, str] = json.loads(handle.read(length)).get("__metadata__", {})
        return notes


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refuse(path, f"tensor {name[:80]!r} is described with other fields than dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _refuse(path, f"tensor {name[:80]!r} has dtype {str(dtype)[:20]!r}, which the format does not use")
    sizes = [shape, offsets]
    if not all(isinstance(item, list) and all(type(n) is int and 0 <= n < 2**48 for n in item) for item in sizes):
        raise _refuse(path, f"tensor {name[:80]!r} has a shape or offsets that are not sizes")
    if len(offsets) != 2 or len(shape) > 8 or offsets[0] > offsets[1]:
        raise _refuse(path, f"tensor {name[:80]!r} has a shape or offsets that are not sizes")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _blocks(handle: Any, count: int) -> Iterator[bytes]:
    """The next bytes, in pieces that memory is never short of."""
    while count and (block := handle.read(min(count, BLOCK))):
        yield block
        count -= len(block)


class _Numbers:
    """Refuses numbers that are not allowed: of many small tensors in one look.

    Args:
        path: of their file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dtype = ""
        self.size = 0
        self.blocks: list[tuple[str, bytes]] = []

    def take(self, name: str, dtype: str, block: bytes) -> None:
        """Bytes of a tensor; what is less than a number at their end, in a file that is being cut, is left out."""
        block = block[: len(block) - len(block) % ITEM_BYTES[dtype]]
        if dtype != self.dtype or self.size >= BLOCK:
            self.look()
        self.dtype, self.size = dtype, self.size + len(block)
        self.blocks.append((name, block))

    def look(self) -> None:
        """Look at what was taken.

        Raises:
            FileFormatError: NaN, infinity, or a number beyond float32; names the tensor.
        """
        blocks, self.blocks, self.size = self.blocks, [], 0
        if not blocks or _are_allowed(b"".join(block for _, block in blocks), self.dtype):
            return
        name = next(name for name, block in blocks if not _are_allowed(block, self.dtype))
        raise FileFormatError(
            f"tensor {name[:120]!r} holds NaN or infinity, or a number that float32 does not hold",
            code="tensors.finite",
            file=self.path.name,
            rule="every value is a finite number",
            fix="train again with a smaller learning rate, or take an earlier checkpoint",
        )


def _are_allowed(data: bytes, dtype: str) -> bool:
    unsigned, largest = LARGEST[dtype]
    bits = np.frombuffer(data, dtype=unsigned)
    return not bool(((bits & bits.dtype.type(2 ** (8 * ITEM_BYTES[dtype] - 1) - 1)) > largest).any())


def _refuse(path: Path, why: str) -> FileFormatError:
    return FileFormatError(
        why,
        code="tensors",
        file=path.name,
        rule="a safetensors file: a header of JSON, then the data of its tensors without holes",
        fix="save or download the adapter again",
    )
