"""Folders of the `adapters` library (1.3): `adapter_config.json` beside `pytorch_adapter.bin` or safetensors.

What it does not write is whether the projection is subtracted: `subtract_projection` is no field of its config, so a
saved DiReFT reloads there as a NoReFT (configuration/adapter_config.py). Here the caller says which it was.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.activations import canonical_activation
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.positions import First, Last, parse_positions
from peft_reft.hub_format.strict_json import dump_json, load_json

from .files import finite, load_tensors
from .records import Imported, Record, Watch, act2fn_name, cannot_hold, malformed
from .rotations import pair_from_rotation, rotation_from_pair

__all__ = ["read_adapters", "write_adapters"]

NOT_THEIRS = ("hardswish", "sqrtsoftplus")
"""Activations that the transformers of adapters 1.3 (~= 4.57.6) does not know."""
KINDS = {True: ("loreft", "direft_orthogonal"), False: ("noreft", "direft")}
"""orthogonality → the kinds that its files may mean."""
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
_KEY = re.compile(r"(?P<stack>[\w.]+)\.(?P<layer>\d+)\.reft_layer\.refts\.[^.]+\.units\.(?P<unit>[01])\.(?P<name>.+)")
_PAIR = "projection.parametrizations.weight."


def read_adapters(folder: Path, *, kind: str | None = None, watch: Watch = iter) -> Imported:
    """Read a folder that `save_adapter` wrote.

    Args:
        folder: the folder.
        kind: `"noreft"` or `"direft"` where the projection is free, `"loreft"` or `"direft_orthogonal"` where it is
            orthonormal: the file does not say. None is an error for the former, and LoReFT with a warning for the
            latter, since an orthonormal DiReFT is made only by hand.
        watch: goes over the interventions.

    Raises:
        FileFormatError: a file is missing or malformed, or the kind is needed.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    stored = load_json(folder / "adapter_config.json").get("config")
    if path is None or not isinstance(stored, dict) or stored.get("architecture") != "reft":
        raise malformed(
            folder.name, f"is no ReFT of the adapters library: it has a config and one of {', '.join(WEIGHTS)}"
        )
    orthogonal = stored.get("orthogonality") is True
    kind = _kind(orthogonal, kind)
    prefix, suffix = (_count(stored, name) for name in ("prefix_positions", "suffix_positions"))
    tied = stored.get("tied_weights") is True or not (prefix and suffix)
    positions = "+".join(f"{letter}{n}" for letter, n in (("f", prefix), ("l", suffix)) if n)
    if not positions or stored.get("output_reft") is False:
        raise malformed("adapter_config.json", "edits no positions of a block's output")
    used = ({0} if prefix else set()) | ({1} if suffix and not stored.get("tied_weights") else set())
    used = used or {0}
    head = folder / "pytorch_model_head.bin"
    units: dict[tuple[str, int, int], dict[str, Tensor]] = {}
    for key, tensor in load_tensors(path).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise malformed(path.name, f"holds the unknown tensor {key[:80]!r}")
        if int(match["unit"]) in used:  # a unit for a side without positions is saved too, and does nothing
            units.setdefault((match["stack"], int(match["layer"]), int(match["unit"])), {})[match["name"]] = tensor
    records = tuple(
        Record(
            layer, "block_output", 0 if tied else unit, finite(_tensors(raw, orthogonal, path.name), path.name), stack
        )
        for (stack, layer, unit), raw in watch(units.items())
    )
    ranks = {len(record.tensors["bias"]) for record in records}
    if len(ranks) != 1:
        raise malformed(path.name, f"holds ranks {sorted(ranks)}")
    return Imported(
        kind,
        ranks.pop(),
        records,
        positions=positions,
        share_weights=tied,
        act_fn=_activation(stored.get("non_linearity")),
        dropout=float(stored.get("dropout") or 0.0),
        stored=frozenset({"positions", "share_weights", "act_fn", "dropout"}),
        head=load_tensors(head) if head.is_file() else None,
    )


def write_adapters(
    adapter: Imported,
    folder: Path,
    *,
    hidden: int,
    base_model: Mapping[str, Any],
    name: str = "default",
    watch: Watch = iter,
) -> None:
    """Write a folder that `load_adapter` of the adapters library reads.

    Raises:
        ReftError: what that library does not have: other kinds, components or positions, and every DiReFT, which it
            would load as a NoReFT.
    """
    target = "a folder of the adapters library"
    if adapter.kind not in ("loreft", "noreft") or adapter.options.get("add_bias"):
        rule = "it has LoReFT and NoReFT; it reloads a saved DiReFT as NoReFT, since it does not store the difference"
        raise cannot_hold(target, f"intervention {adapter.kind!r} with options {dict(adapter.options)}", rule)
    counts = _their_positions(adapter.positions or "", target)
    if any(record.component != "block_output" for record in adapter.records):
        raise cannot_hold(target, "another component than block_output", "it edits blocks' outputs only")
    if adapter.act_fn in NOT_THEIRS:
        rule = "it has the activations of transformers 4.57"
        raise cannot_hold(target, f"act_fn={adapter.act_fn!r}", rule)
    orthogonal = adapter.kind == "loreft"
    config = {
        "architecture": "reft",
        "dropout": adapter.dropout or 0.0,
        "dtype": None,
        "init_weights_seed": None,
        "layers": sorted({record.layer for record in adapter.records}),
        "non_linearity": act2fn_name(adapter.act_fn),
        "orthogonality": orthogonal,
        "output_reft": True,
        "prefix_positions": counts[0],
        "r": adapter.rank,
        "suffix_positions": counts[1],
        "tied_weights": bool(adapter.share_weights) and all(counts),
    }
    tensors: dict[str, Tensor] = {}
    alike = adapter.share_weights or not all(counts)
    for record in watch(adapter.records):
        for unit in (0,) if config["tied_weights"] else (0, 1):
            if alike or record.term == unit:
                path = f"{record.stack}.{record.layer}.reft_layer.refts.{name}.units.{unit}"
                tensors |= {f"{path}.{n}": t for n, t in _their_tensors(record.tensors, orthogonal).items()}
    written = {
        "config": config,
        "hidden_size": hidden,
        "model_class": base_model.get("architecture"),
        "model_name": base_model.get("name"),
        "model_type": base_model.get("model_type"),
        "name": name,
        "version": "adapters.1.3.0",
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "pytorch_adapter.bin")
    (folder / "adapter_config.json").write_text(dump_json(written), encoding="utf-8")


def _kind(orthogonal: bool, kind: str | None) -> str:
    fitting = KINDS[orthogonal]
    if kind is None and orthogonal:
        warnings.warn("taken for a LoReFT; say intervention='direft_orthogonal' if it was a DiReFT", stacklevel=4)
        return "loreft"
    if kind not in fitting:
        raise malformed(
            "adapter_config.json",
            f"does not say whether this is {' or '.join(fitting)}, and intervention={kind!r} was given",
            f"pass intervention={fitting[0]!r} or intervention={fitting[1]!r}: the adapters library does not store it",
        )
    return kind


def _count(stored: Mapping[str, Any], name: str) -> int:
    value = stored.get(name)
    if type(value) is not int or value < 0:
        raise malformed("adapter_config.json", f"has {name}={str(value)[:20]}, which is no count")
    return value


def _activation(name: object) -> str | None:
    """Our name of theirs, which they look up in lower case; they write `leaky_relu` also in one word."""
    lower = name.lower() if isinstance(name, str) else name
    try:
        return canonical_activation("leaky_relu" if lower == "leakyrelu" else lower)
    except ConfigError as error:
        raise malformed("adapter_config.json", f"has a non_linearity that is none here: {error}") from error


def _tensors(raw: Mapping[str, Tensor], orthogonal: bool, file: str) -> dict[str, Tensor]:
    names = dict(raw)
    try:
        found = {"weight": names.pop("learned_source.weight"), "bias": names.pop("learned_source.bias")}
        if orthogonal:
            found["rotation"] = _rows(names.pop(f"{_PAIR}original"), names.pop(f"{_PAIR}0.base"))
        else:
            found["projection"] = names.pop("projection.weight")
    except KeyError as error:
        raise malformed(file, f"lacks the tensor {error.args[0]!r}") from error
    if names:
        raise malformed(file, f"holds the unknown tensor {sorted(names)[0][:60]!r}")
    return found


def _their_tensors(tensors: Mapping[str, Tensor], orthogonal: bool) -> dict[str, Tensor]:
    found = {"learned_source.weight": tensors["weight"], "learned_source.bias": tensors["bias"]}
    if not orthogonal:
        return {**found, "projection.weight": tensors["projection"]}
    rows = tensors["rotation"]
    square = rows.shape[0] == rows.shape[1]
    original, base = pair_from_rotation(rows if square else rows.mT)
    return {**found, f"{_PAIR}original": original if square else original.mT.contiguous(), f"{_PAIR}0.base": base}


def _rows(original: Tensor, base: Tensor) -> Tensor:
    """R `[r, n]`; torch parametrises the transpose of what is wider than tall, and a square matrix as it is."""
    if original.shape[0] == original.shape[1]:
        return rotation_from_pair(original, base)
    return rotation_from_pair(original.mT, base).mT


def _their_positions(positions: str, target: str) -> tuple[int, int]:
    parsed = parse_positions(positions)
    shape = tuple(type(term) for term in parsed.terms)
    if parsed.exclusions or shape not in ((First,), (Last,), (First, Last)):
        raise cannot_hold(
            target, f"positions {positions!r}", "it has a prefix and a suffix: 'f<n>', 'l<n>' or 'f<n>+l<n>'"
        )
    prefix = next((term.count for term in parsed.terms if isinstance(term, First)), 0)
    return prefix, next((term.count for term in parsed.terms if isinstance(term, Last)), 0)
