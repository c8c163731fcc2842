"""All vectors as path → bytes, `expected.json` among them."""

from __future__ import annotations

import json
from typing import Any

from .activations import GOOD_ACTIVATIONS
from .adapters import BASE
from .bad import BAD
from .folder import dump
from .good import GOOD
from .orthogonal import GOOD_ORTHOGONAL

__all__ = ["all_files", "layout"]

WIDTH = 118


def layout(value: Any, indent: str = "") -> str:
    """JSON with a line for everything that fits one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(value, (dict, list)):
        return line
    inner = indent + " "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + layout(item, inner) for item in value) + f"\n{indent}]"
    pairs = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {layout(item, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(pairs) + f"\n{indent}}}"


def all_files() -> dict[str, bytes]:
    """Path below `tests/data/vectors` → bytes."""
    files = {"base/config.json": dump(BASE)}
    for name, good in {**GOOD, **GOOD_ACTIVATIONS, **GOOD_ORTHOGONAL}.items():
        made, expected = good.make(name)
        files |= {f"good/{name}/{path}": data for path, data in made.items()}
        files[f"good/{name}/expected.json"] = (layout({"about": good.about, **expected}) + "\n").encode()
    for name, bad in BAD.items():
        files |= {f"bad/{name}/{path}": data for path, data in bad.make(name).items()}
        expected = {"about": bad.about, "code": bad.code, "file": bad.file, "stage": bad.stage}
        files[f"bad/{name}/expected.json"] = (layout(expected) + "\n").encode()
    return files
