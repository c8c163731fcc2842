"""Changes of a folder's files, bytes by bytes and value by value, and its digests made right again."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["CONFIG", "INDEX", "MANIFEST", "WEIGHTS", "Files", "mutate", "seal", "some_value"]

Files = dict[str, bytes]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MANIFEST, INDEX = "reft_manifest.json", "reft_index.json"
TOKENS = [
    *(b"null true false -0 -1 0 1e999 NaN 1.0 99999999999999999999 [] {} [[[[ }}}} ".split()),
    *(b'"" "\\ud800" "\\u0000" "loreft" "1.0" "f1" ".." "default" "self":1, "r":1, "F64" "BOOL" '.split()),
    b"\xff", b"\x00", b",", b":", b" ", b"\xef\xbb\xbf", b"\xd9\xa3",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 8, 2**31, 2**63, 10**30, 0.5, 1.0, -0.5, 1e300, "", "1.0", "1.1", "0.9", "2.0",
    "f1", "l2+f1", "all-l1", "p[-1:]", "tok(a)", "g[0:1]", "generated", "loreft", "bias", "reft_r1", "sae", "each",
    "rotated_interchange", "relu", "paper", "head_output[1]", "mlp_output", "model.layers", "..", "/etc/passwd",
    "lm_head", "default", "reft", "\u0663", "a\nb", "(a+)+$", "x" * 300, [], {}, [0], [[0, 1]], [None], ["lm_head"],
    [0, 0], {"a": 1}, {"a": [0, 1]}, {"loreft": 1}, {"topk": 1}, {"tokenizer": "sha256:" + "0" * 64, "ids": {"a": 1}},
]  # fmt: skip


def mutate(files: Files, source: random.Random) -> Files:
    """One to three changes of one file; in three of four cases the digests are then made right again."""
    changed = dict(files)
    name = source.choice(sorted(changed))
    if name.endswith(".json") and source.random() < 0.7:
        changed[name] = of_values(changed[name], source)
    elif name.endswith(WEIGHTS) and source.random() < 0.5:
        changed[name] = of_header(changed[name], source)
    else:
        changed[name] = of_bytes(changed[name], source)
    return seal(changed) if source.random() < 0.75 else changed


def of_bytes(data: bytes, source: random.Random) -> bytes:
    """Bits, bytes, tokens, pieces cut, doubled or moved."""
    held = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(held) + 1)
        end = min(len(held), at + source.choice((1, 2, 4, 16, 64)))
        choice = source.randrange(6)
        if choice == 0 and at < len(held):
            held[at] ^= 1 << source.randrange(8)
        elif choice == 1:
            held[at:end] = source.choice(TOKENS)
        elif choice == 2:
            held[at:at] = source.choice(TOKENS)
        elif choice == 3:
            del held[at:end]
        elif choice == 4:
            held[at:at] = held[at:end]
        else:
            there = source.randrange(len(held) + 1)
            piece = held[at:end]
            held[there:there] = piece
    return bytes(held)


def of_values(data: bytes, source: random.Random) -> bytes:
    """Values of a JSON file replaced, removed, added, renamed or put elsewhere."""
    root = json.loads(data)
    for _ in range(source.randint(1, 3)):
        places = list(_places(root))
        if not places:  # nothing is left to change
            break
        holder, key = source.choice(places)
        if not _there(holder, key):
            continue
        choice = source.randrange(8)
        if choice < 4:
            holder[key] = some_value(source)
        elif choice == 4:
            del holder[key]
        elif choice == 5:
            other, there = source.choice(places)
            holder[key] = json.loads(json.dumps(other[there])) if _there(other, there) else None
        elif choice == 6 and isinstance(holder, dict):
            holder[source.choice(["x", "r", "self", "positions", "", str(key) + "_", str(key).upper()])] = holder[key]
        elif isinstance(holder, dict):
            holder[f"{key}.{source.choice(['bias', 'weight', 'reft.reft_0.bias', 'x'])}"] = holder.pop(key)
        else:
            holder.append(holder[key])
    return json.dumps(root).encode()


def of_header(data: bytes, source: random.Random) -> bytes:
    """The header's values, its length following; the data as it was, or shorter or longer."""
    (length,) = struct.unpack("<Q", data[:8])
    header = of_values(data[8 : 8 + length], source)
    body = data[8 + length :]
    if source.random() < 0.2:
        body = body[: source.randrange(len(body) + 1)] + source.randbytes(source.choice((0, 1, 4, 8)))
    return struct.pack("<Q", len(header)) + header + body


def some_value(source: random.Random) -> Any:
    return json.loads(json.dumps(source.choice(VALUES)))


def seal(files: Files) -> Files:
    """Digests of tensors and files as they are now, in every manifest and index that can be parsed."""
    sealed = dict(files)
    for path in [path for path in sealed if path.endswith(MANIFEST)]:
        _attempt(lambda path=path: _seal_folder(sealed, path.removesuffix(MANIFEST)))  # type: ignore[misc]
    if INDEX in sealed:
        _attempt(lambda: _seal_index(sealed))
    return sealed


def _seal_folder(files: Files, at: str) -> None:
    weights = files[at + WEIGHTS]
    start = 8 + struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8:start])
    table = {
        name: {
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "sha256": hashlib.sha256(weights[slice(*(start + n for n in entry["data_offsets"]))]).hexdigest(),
        }
        for name, entry in header.items()
        if name != "__metadata__"
    }
    manifest = json.loads(files[at + MANIFEST])
    try:
        config = json.loads(files[at + CONFIG])
        config["reft"]["tensors"] = table
        files[at + CONFIG] = json.dumps(config).encode()
    except (ValueError, TypeError, KeyError):
        pass  # its bytes are described as they are
    manifest["tensors"] = table
    manifest["files"] = [_info(files, at + name, name) for name in (CONFIG, WEIGHTS)]
    files[at + MANIFEST] = json.dumps(manifest).encode()


def _seal_index(files: Files) -> None:
    index = json.loads(files[INDEX])
    for member in index["members"]:
        for info in member["files"]:
            info.update(_info(files, info["path"], info["path"]))
    files[INDEX] = json.dumps(index).encode()


def _info(files: Files, path: str, name: str) -> dict[str, Any]:
    return {"path": name, "size": len(files[path]), "sha256": hashlib.sha256(files[path]).hexdigest()}


def _attempt(work: Callable[[], object]) -> None:
    try:
        work()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, RecursionError):
        return


def _places(value: Any) -> Any:
    for key in range(len(value)) if isinstance(value, list) else sorted(value):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)
