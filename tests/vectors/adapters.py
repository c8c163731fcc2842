"""Adapters of the tiny base, from the fields that differ from the defaults, and what is expected of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from positions.reference import edited_tokens, split_row

from .arithmetic import edit, nearly_equal, numbers, rotation
from .folder import Adapter, Packed, pack, sha256

__all__ = ["BASE", "FIELDS", "HIDDEN", "Unit", "adapter", "case", "case_of_all", "expected_adapter", "units_of"]

HIDDEN, BLOCKS, HEADS, STACK = 8, 2, 2, "model.layers"
BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_HASHED = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
)
IDENTITY: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "stacks": {STACK: BLOCKS},
    "vocab_size": 16,
    "config": "sha256:"
    + sha256(json.dumps({name: BASE[name] for name in _HASHED}, sort_keys=True, separators=(",", ":")).encode()),
}
GROUP: dict[str, Any] = {
    "r": 4,
    "intervention": "loreft",
    "options": None,
    "layers_to_transform": None,
    "component": "block_output",
    "positions": "l1",
    "turns": "first",
    "share_weights": True,
    "dropout": 0.0,
    "act_fn": None,
    "layers_pattern": None,
}
FIELDS: dict[str, Any] = {
    **GROUP,
    "init_weights": None,
    "interventions": None,
    "subspaces": None,
    "special_tokens": None,
    "spec_version": "1.0",
}
ENVELOPE: dict[str, Any] = {
    "peft_type": "REFT",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny-base",
    "revision": None,
    "inference_mode": True,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "auto_mapping": None,
    "peft_version": "0.21.2",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "noreft": {"add_bias": False},
    "reft_r1": {"topk": 8},
    "rotated_interchange": {"variable": "V", "values": [False, True], "value": True},
    "prosv": {"factor_start": 1.0, "direction_start": 1.0},
    "distribution": {"penalty": 0.0},
    "heads": {"heads": 1, "gates": False, "penalty": 0.001, "sparsity": 0.0},
}
SHAPES: dict[str, dict[str, str]] = {
    "loreft": {"rotation": "rh", "weight": "rh", "bias": "r"},
    "noreft": {"projection": "rh", "weight": "rh", "bias": "r", "projection_bias": "r"},
    "direft": {"projection": "rh", "weight": "rh", "bias": "r"},
    "direft_orthogonal": {"rotation": "rh", "weight": "rh", "bias": "r"},
    "consreft": {"rotation": "rh", "bias": "r"},
    "lobireft": {"rotation": "rh", "bias": "r"},
    "bias": {"shift": "h"},
    "red": {"scale": "h", "shift": "h"},
    "gated": {"rotation": "rh", "weight": "rh", "bias": "r", "gate_weight": "1h", "gate_bias": "1"},
    "reft_r1": {"rotation": "1h"},
    "rotated_interchange": {"rotation": "rh", "points": "vr"},
    "sae": {
        "scale": "r",
        "shift": "r",
        "encoder": "rh",
        "encoder_bias": "r",
        "threshold": "r",
        "decoder": "rh",
    },
    "clamp": {"rotation": "1h", "strength": "1", "low": "1", "high": "1"},
    "prosv": {"factor": "1", "direction": "h"},
    "adapter": {"down": "rh", "up": "rh"},
    "distribution": {"rotation": "rh", "weight": "rh", "bias": "r", "spread_weight": "rh", "spread_bias": "r"},
    "heads": {"scale": "h", "shift": "h", "scale_gate": "n", "shift_gate": "n"},
}
BROUGHT_BY = {"projection_bias": "add_bias", "scale_gate": "gates", "shift_gate": "gates"}
TAKEN = 3
"""Directions that a unit keeps out of."""
NEARLY_EQUAL = "rank_nearly_equal_rows"
"""The seed whose rotations are as close to a loss of rank as the format allows."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Unit:
    """One intervention: its number, its group, the term it belongs to (None: all), and where it edits."""

    number: int
    group: int
    term: int | None
    module: str
    on: str
    columns: tuple[int, int] | None

    @property
    def prefix(self) -> str:
        return f"base_model.model.{self.module}.reft.reft_{self.number}."


def groups_of(reft: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The site groups of an object `reft`, defaults filled in."""
    top = {name: reft[name] for name in GROUP}
    groups = [{**top, **entry} for entry in reft["interventions"] or [{}]]
    return [
        {**group, "options": {**OPTIONS.get(group["intervention"], {}), **(group["options"] or {})}}
        for group in groups
    ]


def terms_of(positions: str) -> list[str]:
    """The terms that edit, their numbers written canonically; `-` excludes."""
    text, terms, depth, sign, piece = "".join(positions.split()) + "+", [], 0, "+", ""
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth == 0 and character in "+-":
            if sign == "+":
                terms.append(piece if piece.startswith("tok") else re.sub(r"-?\d+", _plain_number, piece))
            sign, piece = character, ""
        else:
            piece += character
    return terms


def _plain_number(match: re.Match[str]) -> str:
    return str(int(match[0]))


def layers_of(group: Mapping[str, Any]) -> list[int]:
    layers = group["layers_to_transform"]
    listed = range(BLOCKS) if layers is None else [layers] if isinstance(layers, int) else layers
    return sorted(layer % BLOCKS for layer in listed)


def place_of(component: str, block: int) -> tuple[str, str, tuple[int, int] | None]:
    """Module, input or output, and the slice of its last dimension."""
    at = f"{STACK}.{block}"
    if component.startswith("head_output"):
        head, size = int(component[12:-1]), HIDDEN // HEADS
        return f"{at}.self_attn.o_proj", "input", (head * size, (head + 1) * size)
    if component == "heads":
        return f"{at}.self_attn.o_proj", "input", (0, HIDDEN)
    inside = {"block_output": "", "block_input": "", "attention_output": ".self_attn", "mlp_output": ".mlp"}
    return at + inside[component], "input" if component == "block_input" else "output", None


def units_of(reft: Mapping[str, Any]) -> list[Unit]:
    found, first = [], 0
    for number, group in enumerate(groups_of(reft)):
        count = 1 if group["share_weights"] else len(terms_of(group["positions"]))
        for layer in layers_of(group):
            module, on, columns = place_of(group["component"], layer)
            for offset in range(count):
                term = None if group["share_weights"] else offset
                found.append(Unit(first + offset, number, term, module, on, columns))
        first += count
    return found


def values_of(seed: str, reft: Mapping[str, Any]) -> dict[str, Array]:
    """Tensor name → values."""
    groups, values = groups_of(reft), {}
    for unit in units_of(reft):
        group = groups[unit.group]
        width = HIDDEN if unit.columns is None else unit.columns[1] - unit.columns[0]
        options = group["options"]
        sizes = {"r": group["r"], "h": width, "1": 1, "v": len(options.get("values", ())), "n": options.get("heads")}
        for name, shape in SHAPES[group["intervention"]].items():
            if name in BROUGHT_BY and not options[BROUGHT_BY[name]]:
                continue
            full = f"{unit.prefix}{name}"
            values[full] = numbers(f"{seed}/{full}", *(sizes[word] for word in shape))
            if name == "rotation" and reft.get("orthogonal_to"):
                taken = f"{unit.prefix}complement"
                values[taken] = (
                    rotation(numbers(f"{seed}/{taken}", TAKEN, width)).astype(np.float32).astype(np.float64)
                )
            if seed == NEARLY_EQUAL and name == "rotation":
                values[full] = nearly_equal(2**-18)(values[full])
    return values


def adapter(
    seed: str,
    *,
    dtype: str = "F32",
    envelope: Mapping[str, Any] | None = None,
    beside: Mapping[str, Packed] | None = None,
    **fields: Any,
) -> Adapter:
    """An adapter with tensors drawn from the seed, and `beside` the tensors that lie beside the edits."""
    reft = {**FIELDS, **fields}
    reft["kinds"] = {group["intervention"]: 1 for group in groups_of(reft)}
    tensors = {name: pack(values, dtype) for name, values in values_of(seed, reft).items()}
    return Adapter(
        config={**ENVELOPE, **(envelope or {}), "reft": reft},
        manifest={
            "spec_version": reft["spec_version"],
            "required_features": [],
            "producer": {"name": "golden vectors", "version": "1"},
            "base_model": dict(IDENTITY),
            "members": [{"kind": "reft", "config": "adapter_config.json", "weights": "adapter_model.safetensors"}],
            "annotations": {},
        },
        tensors=dict(sorted({**tensors, **(beside or {})}.items())),
    )


def expected_adapter(made: Adapter, folder: str) -> dict[str, Any]:
    """What a reader finds in an adapter: its groups with defaults filled in, and the place of every tensor."""
    reft = made.config["reft"]
    units = [
        {
            "module": unit.module,
            "on": unit.on,
            "columns": None if unit.columns is None else list(unit.columns),
            "unit": unit.number,
            "group": unit.group,
            "term": unit.term,
            "tensors": sorted(name[len(unit.prefix) :] for name in made.tensors if name.startswith(unit.prefix)),
        }
        for unit in units_of(reft)
    ]
    owned = {f"base_model.model.{u['module']}.reft.reft_{u['unit']}.{name}" for u in units for name in u["tensors"]}
    return {
        "kind": "reft",
        "folder": folder,
        "groups": [
            {**group, "layers_to_transform": layers_of(group), "terms": terms_of(group["positions"])}
            for group in groups_of(reft)
        ],
        "units": units,
        "beside": sorted(set(made.tensors) - owned),
        "tensors": made.table(),
    }


def case(
    seed: str,
    reft: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    subspaces: Sequence[str] | None = None,
    hidden_of: str | None = None,
    completes: bool = True,
) -> dict[str, Any]:
    """Hidden states at every place that is edited, the tokens that each term claims, and the hidden states after.

    `hidden_of` is the seed of the hidden states, where it is not the adapter's; `completes`: whether the task has a
    completion, or labels say nothing.
    """
    groups, units, values = groups_of(reft), units_of(reft), values_of(seed, reft)
    mask = batch["attention_mask"]
    count, length = len(mask), len(mask[0])
    hidden = numbers(f"{hidden_of or seed}/hidden", count, length, HIDDEN)
    heeded = batch if completes else {key: rows for key, rows in batch.items() if key != "labels"}
    claimed = [[sorted(map(list, term)) for term in _claimed(group, reft, heeded)] for group in groups]
    sequences = _sequences(batch)
    edited: dict[str, Array] = {}
    rows = None if subspaces is None else sorted(r for name in subspaces for r in range(*reft["subspaces"][name]))
    for unit in units:
        name = f"{unit.module} {unit.on}"
        edited.setdefault(name, hidden.copy())
        terms = claimed[unit.group]
        tokens = sorted(
            map(tuple, [token for term in terms for token in term] if unit.term is None else terms[unit.term])
        )
        if not tokens:
            continue
        at = slice(None) if unit.columns is None else slice(*unit.columns)
        held = {key[len(unit.prefix) :]: value for key, value in values.items() if key.startswith(unit.prefix)}
        before = np.array([hidden[row, column, at] for row, column in tokens])
        delta = edit(groups[unit.group], held, before, [sequences[token] for token in tokens], rows)
        for (row, column), change in zip(tokens, delta, strict=True):
            edited[name][row, column, at] += change
    return {
        "batch": dict(batch),
        "subspaces": None if subspaces is None else list(subspaces),
        "claimed": claimed,
        "hidden": hidden.tolist(),
        "edited": {
            name: [[[round(v, 6) + 0.0 for v in token] for token in row] for row in value.tolist()]
            for name, value in sorted(edited.items())
        },
    }


def case_of_all(seed: str, edits: Mapping[str, Mapping[str, Any]], batch: Mapping[str, Any]) -> dict[str, Any]:
    """All ReFTs of a bundle at once (name → object `reft`): their edits are added."""
    cases = {name: case(f"{seed}/{name}", reft, batch, hidden_of=seed) for name, reft in edits.items()}
    hidden = numbers(f"{seed}/hidden", len(batch["attention_mask"]), len(batch["attention_mask"][0]), HIDDEN)
    places = sorted({place for one in cases.values() for place in one["edited"]})
    edited = {
        place: hidden
        + sum(np.array(one["edited"][place]) - hidden for one in cases.values() if place in one["edited"])
        for place in places
    }
    return {
        "batch": dict(batch),
        "subspaces": None,
        "claimed": {name: one["claimed"] for name, one in cases.items()},
        "hidden": hidden.tolist(),
        "edited": {place: (np.round(value, 6) + 0.0).tolist() for place, value in edited.items()},
    }


def _sequences(batch: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for row, real in enumerate(batch["attention_mask"]):
        ids = batch["position_ids"][row] if "position_ids" in batch else None
        for sequence in split_row(real, position_ids=ids):
            number = len(set(found.values()))
            found |= {(row, column): number for column in sequence}
    return found


def _claimed(
    group: Mapping[str, Any], reft: Mapping[str, Any], batch: Mapping[str, Any]
) -> list[set[tuple[int, int]]]:
    ids = list((reft["special_tokens"] or {"ids": {}})["ids"].values())
    special = [[token in ids for token in row] for row in batch["input_ids"]]
    return edited_tokens(
        group["positions"],
        batch["attention_mask"],
        labels=batch.get("labels"),
        mask=batch.get("prompt_mask"),
        position_ids=batch.get("position_ids"),
        packed="position_ids" in batch,
        special=special,
        turns=group["turns"],
    )
