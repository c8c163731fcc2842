"""How a good folder becomes a bad one: a change of what is written, or of the bytes that were."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .adapters import adapter
from .arithmetic import numbers
from .folder import CONFIG, MANIFEST, WEIGHTS, Adapter, dump, pack, sha256

__all__ = [
    "SITE",
    "Bad",
    "Make",
    "after",
    "base_model",
    "before",
    "config",
    "envelope",
    "filled",
    "header",
    "index",
    "manifest",
    "more_tensors",
    "raw",
    "reft",
    "renamed",
    "resealed",
    "tensor",
    "text",
    "with_files",
    "without",
]

Files = dict[str, bytes]
SITE = "base_model.model.model.layers.0.reft.reft_0."
Make = Callable[[str], Files]


def before(change: Callable[[Adapter], object], **fields: Any) -> Make:
    """A change before writing: all digests are of what is written."""

    def make(name: str) -> Files:
        made = adapter(f"bad/{name}", **{"r": 2, "layers_to_transform": [0], "positions": "f2+l2", **fields})
        change(made)
        return made.written()

    return make


def reft(**values: Any) -> Make:
    """Fields of the object `reft`."""
    return before(lambda made: made.config["reft"].update(values))


def after(change: Callable[[Files], object], **fields: Any) -> Make:
    """A change of the bytes; nothing is described anew."""

    def make(name: str) -> Files:
        files = before(lambda made: None, **fields)(name)
        change(files)
        return {path: data for path, data in files.items() if data is not None}

    return make


def resealed(files: Files) -> Files:
    """Sizes and digests of config and weights as they are now, in the manifest."""
    content = json.loads(files[MANIFEST])
    content["files"] = [
        {"path": name, "size": len(files[name]), "sha256": sha256(files[name])} for name in (CONFIG, WEIGHTS)
    ]
    files[MANIFEST] = dump(content)
    return files


def raw(name: str, change: Callable[[bytes], bytes], *, seal: bool = True) -> Make:
    """A file's bytes; described anew where it is not the manifest."""

    def apply(files: Files) -> None:
        files[name] = change(files[name])
        if seal and name != MANIFEST:
            resealed(files)

    return after(apply)


def text(name: str, old: str, new: str) -> Make:
    """A piece of a file's text, once."""

    def change(data: bytes) -> bytes:
        assert old.encode() in data, (name, old)
        return data.replace(old.encode(), new.encode(), 1)

    return raw(name, change)


def header(old: str, new: str, *, more: bytes = b"") -> Make:
    """A piece of the safetensors header, once, and bytes at the end of the data."""

    def change(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        held = data[8 : 8 + length]
        assert old.encode() in held, old
        held = held.replace(old.encode(), new.encode(), 1)
        return struct.pack("<Q", len(held)) + held + data[8 + length :] + more

    return raw(WEIGHTS, change)


def manifest(change: Callable[[dict[str, Any]], object]) -> Make:
    """The manifest alone."""

    def apply(files: Files) -> None:
        content = json.loads(files[MANIFEST])
        change(content)
        files[MANIFEST] = dump(content)

    return after(apply)


def index(make: Make, change: Callable[[dict[str, Any]], object]) -> Make:
    """The index of a bundle alone."""

    def made(name: str) -> Files:
        files = make(name)
        content = json.loads(files["reft_index.json"])
        change(content)
        return {**files, "reft_index.json": dump(content)}

    return made


def with_files(make: Make, more: Mapping[str, bytes]) -> Make:
    return lambda name: {**make(name), **more}


@dataclass(frozen=True)
class Bad:
    """A bad folder.

    Attributes:
        about: what is wrong.
        make: name → files.
        code: of the refusal.
        file: that is to blame; None where it is the folder, or the model it is loaded on.
        stage: `"folder"`: refused by its bytes alone. `"base"`: refused when it is put on the tiny base.
    """

    about: str
    make: Make
    code: str
    file: str | None
    stage: str = "folder"


def config(change: Callable[[dict[str, Any]], object]) -> Make:
    return before(lambda made: change(made.config))


def envelope(**values: Any) -> Make:
    return config(lambda content: content.update(values))


def tensor(name: str, change: Callable[[Any], Any], dtype: str = "F32") -> Make:
    """One tensor of the edit replaced, all digests right."""

    def apply(made: Adapter) -> None:
        full = SITE + name
        shape = made.tensors[full][1]
        values = change(numbers(f"bad/{full}", *shape))
        made.tensors[full] = pack(values, dtype)

    return before(apply)


def filled(value: float) -> Callable[[Any], Any]:
    return lambda values: np.full_like(values, value)


def base_model(**values: Any) -> Make:
    return manifest(lambda content: content["base_model"].update(values))


def more_tensors(name: str, *shape: int, dtype: str = "F32") -> Make:
    return before(lambda made: made.tensors.update({name: pack(numbers(name, *shape), dtype)}))


def renamed(old: str, new: str) -> Make:
    def apply(made: Adapter) -> None:
        made.tensors = {name.replace(old, new): held for name, held in made.tensors.items()}

    return before(apply)


def without(make: Make, *names: str) -> Make:
    return lambda name: {path: data for path, data in make(name).items() if path not in names}
