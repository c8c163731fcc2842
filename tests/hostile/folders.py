"""Folders of an adversary: changed, then described anew, so that only the format's own rules can refuse them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from contract.tiny import reft_model
from peft_reft.hub_format.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME

Change = Callable[[Path], object]


def good(folder: Path, **fields: Any) -> Path:
    """A folder that loads: LoReFT of rank 2 on every block of the tiny llama."""
    settings = {"positions": "f2+l2", "r": 2, **fields}
    reft_model("llama", **settings).save_pretrained(str(folder))
    return folder


def header_of(weights: Path) -> dict[str, Any]:
    """The header of a safetensors file, read without any check."""
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    parsed: dict[str, Any] = json.loads(data[8 : 8 + length])
    return parsed


def with_header(folder: Path, header: bytes, data: bytes | None = None) -> None:
    """Replace the header of the weights, and their data if given."""
    old = (folder / WEIGHTS_NAME).read_bytes()
    if data is None:
        data = old[8 + struct.unpack("<Q", old[:8])[0] :]
    (folder / WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(header)) + header + data)


def header_text(folder: Path, old: str, new: str) -> None:
    """Replace text in the header, once."""
    text = json.dumps(header_of(folder / WEIGHTS_NAME), separators=(",", ":"))
    assert old in text
    with_header(folder, text.replace(old, new, 1).encode())


def config_text(folder: Path, old: str, new: str) -> None:
    """Replace text in the config, once, and describe the file anew."""
    text = (folder / CONFIG_NAME).read_text()
    assert old in text
    (folder / CONFIG_NAME).write_text(text.replace(old, new, 1))
    redescribe(folder)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file; `change` may return the new content."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(changed if isinstance(changed, dict) and "reft" in changed else content))


def config(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of the config, described anew."""

    def apply(folder: Path) -> None:
        edit(folder / CONFIG_NAME, change)
        redescribe(folder)

    return apply


def reft(**values: Any) -> Change:
    """A change of fields of the object `reft`, described anew."""
    return config(lambda content: content["reft"].update(values))


def manifest(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of the manifest alone."""
    return lambda folder: edit(folder / MANIFEST_NAME, change)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """A change of the tensors, with digests of the new bytes in config and manifest."""

    def apply(folder: Path) -> None:
        held = load_file(folder / WEIGHTS_NAME)
        change(held)
        save_file(held, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        reseal(folder)

    return apply


def each(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """A change of the first tensor whose name ends on `part`."""

    def apply(held: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(held) if name.endswith(part))
        held[name] = change(held[name]).contiguous()

    return tensors(apply)


def reseal(folder: Path) -> None:
    """Digests of all tensors into the config and the manifest, then the files' into the manifest."""
    data = (folder / WEIGHTS_NAME).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    table = {
        name: {
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "sha256": hashlib.sha256(data[slice(*(start + n for n in entry["data_offsets"]))]).hexdigest(),
        }
        for name, entry in sorted(header_of(folder / WEIGHTS_NAME).items())
        if name != "__metadata__"
    }
    edit(folder / CONFIG_NAME, lambda content: content["reft"].update(tensors=table))
    edit(folder / MANIFEST_NAME, lambda content: content.update(tensors=table))
    redescribe(folder)


def redescribe(folder: Path) -> None:
    """Sizes and digests of the files into the manifest."""

    def describe(content: dict[str, Any]) -> None:
        content["files"] = [
            {
                "path": name,
                "size": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
            for name in (CONFIG_NAME, WEIGHTS_NAME)
            if (folder / name).is_file()
        ]

    edit(folder / MANIFEST_NAME, describe)
