"""JSON as the format reads it: no duplicate keys, no NaN or infinity, bounded size and nesting, UTF-8."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import FileFormatError

__all__ = ["dump_json", "load_json", "parse_json"]

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 32
RULES = {
    "json.depth": f"objects and lists are nested at most {MAX_DEPTH} deep",
    "json.duplicate": "a key stands once in an object",
    "json.number": "numbers are finite, and no whole number is -0",
    "json.object": "the file holds one object",
    "json.size": f"a file has at most {MAX_BYTES} bytes",
    "json.syntax": "JSON as in RFC 8259, in UTF-8 without a byte order mark",
}
"""Code → the rule that is broken."""


def load_json(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read one JSON object from a file.

    Raises:
        FileFormatError: too large, not UTF-8, not JSON, a duplicate key, a non-finite number, nested too deep, or not
            an object.
    """
    with path.open("rb") as handle:
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _refuse(f"is larger than {max_bytes} bytes", "json.size", path.name)
    return parse_json(data, name=path.name)


def parse_json(data: bytes, *, name: str) -> dict[str, Any]:
    """Parse one JSON object from bytes; `name` is used in errors."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _refuse(f"the key {twice[:60]!r} stands twice", "json.duplicate", name)
        return dict(items)

    def constant(text: str) -> float:
        raise _refuse(f"{text} is not a JSON number", "json.number", name)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise _refuse(f"the number {text[:20]} is not finite", "json.number", name)
        return value

    def integer(text: str) -> int:
        if text == "-0":  # an integer to some parsers, a float to others
            raise _refuse("-0 is not a whole number", "json.number", name)
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
        raise _refuse(f"is not JSON: {str(error)[:120]}", "json.syntax", name) from error
    except RecursionError as error:
        raise _refuse("is nested too deep", "json.depth", name) from error
    if not isinstance(value, dict):
        raise _refuse(f"holds a {type(value).__name__}, not an object", "json.object", name)
    if _depth(value) > MAX_DEPTH:
        raise _refuse(f"is nested deeper than {MAX_DEPTH}", "json.depth", name)
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


def _refuse(message: str, code: str, name: str) -> FileFormatError:
    return FileFormatError(message, code=code, file=name, rule=RULES[code], fix="save or download the adapter again")
