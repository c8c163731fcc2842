"""pyreft's folders: `config.json` and one `intkey_<key>.bin` per intervention (pyreft 0.1.0, pyvene up to 0.1.8)."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.strict_json import dump_json, load_json

from .files import finite, load_tensors
from .records import Imported, Record, Watch, act2fn_name, cannot_hold, malformed
from .rotations import pair_from_rotation, rotation_from_pair

__all__ = ["KINDS", "read_pyreft", "write_pyreft"]

KINDS = {
    "LoreftIntervention": "loreft",
    "NoreftIntervention": "noreft",
    "NodireftIntervention": "direft",
    "DireftIntervention": "direft_orthogonal",
    "ConsreftIntervention": "consreft",
    "LobireftIntervention": "lobireft",
}
"""pyreft's class → our kind. The paper's DiReFT is its `Nodireft`; its `Direft` keeps R orthonormal."""
COMPONENTS = ("block_output", "block_input", "attention_output", "mlp_output")
_TAILS = {
    "output": "block_output",
    "input": "block_input",
    "mlp.output": "mlp_output",
    "self_attn.output": "attention_output",
    "attn.output": "attention_output",
    "attention.output": "attention_output",
}
_ROTATE = "rotate_layer.parametrizations.weight."
_BUFFERS = {"embed_dim", "interchange_dim"}
ITEMS = 14


def read_pyreft(folder: Path, *, kind: str | None = None, watch: Watch = iter) -> Imported:
    """Read a folder that pyreft's `save` wrote, or the bins that its trainer leaves without a config.

    Args:
        folder: the folder.
        kind: our name of the kind, where there is no `config.json` and the tensors fit more than one.
        watch: goes over the interventions.

    Raises:
        FileFormatError: a file is missing, malformed, or uses what this library has no counterpart for.
    """
    files = {_key_of(path): path for path in sorted(folder.glob("intkey_*.bin"))}
    if not files:
        raise malformed(folder.name, "holds no intkey_*.bin", "name the folder that pyreft's save wrote")
    config = load_json(folder / "config.json") if (folder / "config.json").is_file() else None
    places = _from_names(files) if config is None else _from_config(config, files)
    kinds, records, options = set[str](), [], {}
    for layer, component, term, key, name in watch(places):
        path = files[key]
        raw = {n: t for n, t in load_tensors(path).items() if n not in _BUFFERS}
        found = _kind(raw, KINDS[name] if name else kind, path.name)
        kinds.add(found)
        tensors = _tensors(found, raw, path.name)
        if "projection_bias" in tensors:
            options["add_bias"] = True
        records.append(Record(layer, component, term, finite(tensors, path.name)))
    ranks = {len(record.tensors["bias"]) for record in records}
    if len(kinds) != 1 or len(ranks) != 1:
        raise malformed(folder.name, f"mixes kinds {sorted(kinds)} or ranks {sorted(ranks)} in one adapter")
    terms = {record.term for record in records}
    untied = terms == {0, 1}
    if terms not in ({0}, {0, 1}) or (untied and 2 * sum(record.term for record in records) != len(records)):
        raise malformed(
            folder.name, f"has interventions number {sorted(terms)} at its sites, not one or two everywhere"
        )
    return Imported(kinds.pop(), ranks.pop(), tuple(records), share_weights=False if untied else None, options=options)


def write_pyreft(adapter: Imported, folder: Path, *, hidden: int, watch: Watch = iter) -> None:
    """Write a folder that pyreft's `load` reads. Positions, dropout and activation have no place in it.

    An activation is warned of: pyreft would load the adapter without it, and unlike positions no call states it.

    Raises:
        ReftError: a kind, component or number of terms that pyreft does not have.
    """
    names = {ours: theirs for theirs, ours in KINDS.items()}
    if adapter.kind not in names:
        raise cannot_hold("a pyreft folder", f"intervention {adapter.kind!r}", f"it has {', '.join(sorted(names))}")
    for record in adapter.records:
        if record.component not in COMPONENTS or record.term > 1:
            what = f"component {record.component!r}" if record.term < 2 else "more than two terms"
            raise cannot_hold("a pyreft folder", what, f"it has {', '.join(COMPONENTS)} and two terms")
    if adapter.act_fn is not None:
        warnings.warn(
            "pyreft's folders store no activation: after its load, set act_fn = "
            f"ACT2FN[{act2fn_name(adapter.act_fn)!r}] on every intervention, or the edit is another one",
            stacklevel=4,
        )
    records = sorted(adapter.records, key=lambda record: (record.term, record.layer))
    keys = [f"layer_{r.layer}_comp_{r.component}_unit_pos_nunit_1#{r.term}" for r in records]
    config = {
        "representations": [
            [record.layer, record.component, "pos", 1, adapter.rank] + [None] * (ITEMS - 5) for record in records
        ],
        "intervention_types": [f"<class 'pyreft.interventions.{names[adapter.kind]}'>"] * len(records),
        "intervention_dimensions": [hidden] * len(records),
        "intervention_constant_sources": [True] * len(records),
        "sorted_keys": keys,
        "mode": "parallel",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for record, key in watch(list(zip(records, keys, strict=True))):
        torch.save(_their_tensors(adapter.kind, record.tensors), folder / f"intkey_{key}.bin")
    (folder / "config.json").write_text(dump_json(config), encoding="utf-8")


def _key_of(path: Path) -> str:
    """A file's key in today's spelling: underscores (dots up to pyvene 0.1.6), `comp` (`repr` before 0.0.8)."""
    key = path.name.removeprefix("intkey_").removesuffix(".bin").replace(".", "_")
    return re.sub(r"^(layer_\d+_)?repr_", lambda match: f"{match[1] or ''}comp_", key)


def _from_config(config: Mapping[str, Any], files: Mapping[str, Path]) -> list[tuple[int, str, int, str, str]]:
    entries, types = config.get("representations"), config.get("intervention_types")
    if not isinstance(entries, list) or not isinstance(types, list) or len(entries) != len(types):
        raise malformed("config.json", "lacks representations and intervention_types of one length")
    seen = Counter[tuple[int, str]]()
    found = []
    for entry, written in zip(entries, types, strict=True):
        given = list(entry.values()) if isinstance(entry, dict) else entry
        if not isinstance(given, list) or len(given) < 4 or type(given[0]) is not int or not isinstance(given[1], str):
            raise malformed("config.json", f"has a representation that is no list: {str(entry)[:80]}")
        if given[2] != "pos" or given[3] not in (1, None):
            raise malformed("config.json", f"edits unit {given[2]!r} × {given[3]!r}; only single positions are known")
        if any(item is not None for item in given[7:11]):
            raise malformed("config.json", "links, groups or partitions interventions, which has no counterpart here")
        match = re.search(r"(\w+)'?>?$", str(written))
        name = match[1] if match else ""
        if name not in KINDS:
            raise malformed("config.json", f"names the class {name[:60]!r}; known are {', '.join(KINDS)}")
        layer, component, mangled = _place(given[0], given[1])
        term = seen[layer, component]
        seen[layer, component] += 1
        key = f"{mangled}_unit_pos_nunit_1#{term}"
        if key not in files:
            raise malformed("config.json", f"describes {key!r}, and there is no such file")
        found.append((layer, component, term, key, name))
    if len(found) != len(files):
        raise malformed("config.json", f"describes {len(found)} interventions, the folder holds {len(files)}")
    return found


def _from_names(files: Mapping[str, Path]) -> list[tuple[int, str, int, str, str]]:
    found = []
    for key in files:
        match = re.fullmatch(rf"layer_(\d+)_comp_({'|'.join(COMPONENTS)})_unit_pos_nunit_1#(\d+)", key)
        if match is None:
            raise malformed(
                files[key].name, "cannot be placed without a config.json", "copy pyreft's config.json here"
            )
        found.append((int(match[1]), match[2], int(match[3]), key, ""))
    return found


def _place(layer: int, component: str) -> tuple[int, str, str]:
    """(layer, our component, the key's spelling); a component may be a path such as `model.layers[3].output`."""
    if component in COMPONENTS:
        return layer, component, f"layer_{layer}_comp_{component}"
    match = re.fullmatch(r"[\w.]+\[(\d+)\]\.([\w.]+)", component)
    if match is None or match[2] not in _TAILS:
        raise malformed("config.json", f"edits {component[:80]!r}; known are {', '.join(COMPONENTS)} and their paths")
    return int(match[1]), _TAILS[match[2]], f"comp_{component.replace('.', '_')}"


def _kind(raw: Mapping[str, Tensor], kind: str | None, file: str) -> str:
    """The kind that the tensors fit; where two do, what the caller says."""
    if "rotate_layer" in raw:
        fitting = {"loreft"}
    elif "proj_layer.weight" in raw:
        fitting = {"noreft", "direft"}
    elif "learned_source.weight" in raw:
        fitting = {"direft_orthogonal"}
    else:
        fitting = {"consreft", "lobireft"} if "learned_source" in raw else set()
    if kind is None and len(fitting) == 1:
        return fitting.pop()
    if kind is None or kind not in fitting:
        said = "no config.json says which" if kind is None else f"it is said to be {kind!r}"
        raise malformed(
            file, f"its tensors are those of {' or '.join(sorted(fitting)) or 'no known kind'}, and {said}"
        )
    return kind


def _tensors(kind: str, raw: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Their tensors in our names and orientation. Nodireft's `proj_layer.bias` is never used, and so left out."""
    names = dict(raw)
    try:
        if kind == "loreft":
            found = {
                "rotation": names.pop("rotate_layer").mT,
                "weight": names.pop("weight"),
                "bias": names.pop("bias"),
            }
        elif kind in ("noreft", "direft"):
            found = {"projection": names.pop("proj_layer.weight")}
            extra = names.pop("proj_layer.bias", None)
            if extra is not None and kind == "noreft":
                found["projection_bias"] = extra
        else:
            found = {"rotation": rotation_from_pair(names.pop(f"{_ROTATE}original"), names.pop(f"{_ROTATE}0.base")).mT}
        if kind in ("consreft", "lobireft"):
            found["bias"] = names.pop("learned_source")
        elif kind != "loreft":
            found["weight"], found["bias"] = names.pop("learned_source.weight"), names.pop("learned_source.bias")
    except KeyError as error:
        raise malformed(file, f"lacks the tensor {error.args[0]!r} of a {kind}") from error
    if names:
        raise malformed(file, f"holds the unknown tensor {sorted(names)[0][:60]!r}")
    return found


def _their_tensors(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if kind == "loreft":
        columns = tensors["rotation"].mT.contiguous()
        return {"weight": tensors["weight"], "bias": tensors["bias"], "rotate_layer": columns}
    hidden = tensors["projection" if "projection" in tensors else "rotation"].shape[1]
    found = {"embed_dim": torch.tensor(hidden), "interchange_dim": torch.tensor(hidden)}
    if "projection" in tensors:
        found["proj_layer.weight"] = tensors["projection"]
        zero = torch.zeros_like(tensors["bias"])  # its default add_bias=True expects one
        found["proj_layer.bias"] = tensors.get("projection_bias", zero)
    else:
        original, base = pair_from_rotation(tensors["rotation"].mT)
        found |= {f"{_ROTATE}original": original, f"{_ROTATE}0.base": base}
    if "weight" not in tensors:
        return {**found, "learned_source": tensors["bias"]}
    return {**found, "learned_source.weight": tensors["weight"], "learned_source.bias": tensors["bias"]}
