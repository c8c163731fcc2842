"""JSON as the format reads it: no duplicate keys, no NaN or infinity, bounded size and nesting, UTF-8."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import FileFormatError

__all__ = ["dump_json", "load_json", "parse_json"]

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32


def load_json(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read one JSON object from a file.

    Raises:
        FileFormatError: too large, not UTF-8, not JSON, a duplicate key, a non-finite number, nested too deep, or not
            an object.
    """
    with path.open("rb") as handle:
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FileFormatError(f"is larger than {max_bytes} bytes", code="json.size", file=path.name)
    return parse_json(data, name=path.name)


def parse_json(data: bytes, *, name: str) -> dict[str, Any]:
    """Parse one JSON object from bytes; `name` is used in errors."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise FileFormatError(f"the key {twice[:60]!r} stands twice", code="json.duplicate", file=name)
        return dict(items)

    def constant(text: str) -> float:
        raise FileFormatError(f"{text} is not a JSON number", code="json.number", file=name)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise FileFormatError(f"the number {text[:20]} is not finite", code="json.number", file=name)
        return value

    def integer(text: str) -> int:
        if text == "-0":  # an integer to some parsers, a float to others
            raise FileFormatError("-0 is not a whole number", code="json.number", file=name)
        return int(text)

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
            parse_int=integer,
        )
        if b"\\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
    except FileFormatError:
        raise
    except ValueError as error:  # UnicodeError is one
        raise FileFormatError(f"is not JSON: {str(error)[:120]}", code="json.syntax", file=name) from error
    except RecursionError as error:
        raise FileFormatError("is nested too deep", code="json.depth", file=name) from error
    if not isinstance(value, dict):
        raise FileFormatError(f"holds a {type(value).__name__}, not an object", code="json.object", file=name)
    if _depth(value) > MAX_DEPTH:
        raise FileFormatError(f"is nested deeper than {MAX_DEPTH}", code="json.depth", file=name)
    return value


def dump_json(value: dict[str, Any]) -> str:
    """One object as text: sorted keys, two spaces, a final newline; equal input gives equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _depth(value: object) -> int:
    depth, layer = 0, [value]
    while layer and depth <= MAX_DEPTH + 1:
        depth += 1
        layer = [
            child
            for item in layer
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
