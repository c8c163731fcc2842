"""Every intervention said a second time, in numpy and float64, and numbers that are the same everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["edit", "nearly_equal", "numbers", "rotation"]

Array = NDArray[np.float64]


def numbers(seed: str, *shape: int) -> Array:
    """Multiples of 1/64 from −1 to 1, which every dtype holds exactly, from a digest of the seed."""
    flat = []
    for index in range(math.prod(shape)):
        digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
        flat.append((int.from_bytes(digest[:4], "big") % 129 - 64) / 64)
    return np.array(flat).reshape(shape)


def rotation(raw: Array) -> Array:
    """Rows made orthonormal one after the other (Gram-Schmidt), each keeping its direction."""
    rows: list[Array] = []
    for row in raw:
        for done in rows:
            row = row - (row @ done) * done
        rows.append(row / math.sqrt(row @ row))
    return np.array(rows)


def nearly_equal(step: float) -> Callable[[Array], Array]:
    """Two rows [1, 0, …] and [1, step, 0, …] in place of two others: the condition is about 2 / step."""

    def rows(values: Array) -> Array:
        made = np.zeros_like(values)
        made[:, 0], made[1, 1] = 1.0, step
        return made

    return rows


def _each(function: Callable[[float], float]) -> Callable[[Array], Array]:
    return lambda values: np.array([function(float(value)) for value in values.reshape(-1)]).reshape(values.shape)


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


ACTIVATIONS: Mapping[str | None, Callable[[Array], Array]] = {
    None: lambda values: values,
    "gelu": _each(lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2),
    "gelu_tanh": _each(lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2),
    "leaky_relu": _each(lambda z: z if z > 0 else 0.01 * z),
    "mish": _each(lambda z: z * math.tanh(math.log1p(math.exp(z)))),
    "relu": _each(lambda z: max(z, 0.0)),
    "relu6": _each(lambda z: min(max(z, 0.0), 6.0)),
    "sigmoid": _each(_sigmoid),
    "silu": _each(lambda z: z * _sigmoid(z)),
    "tanh": _each(math.tanh),
    "gelu_10": _each(lambda z: min(z * (1 + math.erf(z / math.sqrt(2))) / 2, 10.0)),
    "hardswish": _each(lambda z: 0.0 if z < -3 else z if z > 3 else z * (z + 3) / 6),
    "laplace": _each(lambda z: (1 + math.erf((z - 0.707107) / (0.282095 * math.sqrt(2)))) / 2),
    "quick_gelu": _each(lambda z: z * _sigmoid(1.702 * z)),
    "relu2": _each(lambda z: z**2 if z > 0 else 0.0),
    "sqrtsoftplus": _each(lambda z: math.sqrt(math.log1p(math.exp(z)))),
}


def edit(
    group: Mapping[str, Any],
    tensors: Mapping[str, Array],
    hidden: Array,
    sequences: Sequence[int],
    rows: Sequence[int] | None = None,
) -> Array:
    """h′ − h of some tokens.

    Args:
        group: kind, options and activation.
        tensors: of the unit, as stored.
        hidden: h `[tokens, hidden]`.
        sequences: of each token the number of its sequence.
        rows: of R, W, b that are on; None for all.
    """
    kind, act = group["intervention"], ACTIVATIONS[group["act_fn"]]
    whole = ("points", "gate_weight", "gate_bias") if rows is not None else tensors
    taken = tensors.get("complement", np.zeros((0, hidden.shape[1])))
    tensors = {name: values for name, values in tensors.items() if name != "complement"}
    t = {name: values if name in whole else values[list(rows or ())] for name, values in tensors.items()}
    if rows is not None and "rotation" in tensors:
        t["rotation"] = rotation(np.vstack([taken, tensors["rotation"]]))[len(taken) :][list(rows)]
    elif "rotation" in t:
        t["rotation"] = rotation(np.vstack([taken, t["rotation"]]))[len(taken) :]
    source = act(hidden @ t["weight"].T + t["bias"]) if "weight" in t else None
    if kind == "bias":
        return np.tile(t["shift"], (len(hidden), 1))
    if kind == "red":
        return t["scale"] * hidden + t["shift"] - hidden
    if kind == "consreft":
        return (t["bias"] - hidden @ t["rotation"].T) @ t["rotation"]
    if kind == "lobireft":
        return np.tile(t["bias"] @ t["rotation"], (len(hidden), 1))
    if kind == "reft_r1":
        return _concept(hidden, t["rotation"][0], sequences, group["options"]["topk"])
    if kind == "rotated_interchange":
        point = tensors["points"][group["options"]["values"].index(group["options"]["value"])]
        return (point[slice(None) if rows is None else list(rows)] - hidden @ t["rotation"].T) @ t["rotation"]
    if kind == "sae":
        return _features(hidden, t)
    if kind == "clamp":
        along = hidden @ t["rotation"][0]
        bounded = np.minimum(np.maximum(along, t["low"][0]), t["high"][0])
        return t["strength"][0] * (bounded - along)[:, None] * t["rotation"][0]
    if kind == "prosv":
        return np.tile(t["factor"][0] * t["direction"], (len(hidden), 1))
    if kind == "adapter":
        return act(hidden @ t["down"].T) @ t["up"]
    if kind == "heads":
        return _by_head(hidden, t, group["options"]["heads"])
    assert source is not None
    if kind == "direft":
        return source @ t["projection"]
    if kind == "direft_orthogonal":
        return source @ t["rotation"]
    if kind == "noreft":
        inner = source - hidden @ t["projection"].T
        return (inner - t.get("projection_bias", 0.0)) @ t["projection"]
    delta = (source - hidden @ t["rotation"].T) @ t["rotation"]
    if kind == "gated":
        opening = _each(_sigmoid)(hidden @ t["gate_weight"][0] + t["gate_bias"][0])
        return opening[:, None] * delta
    assert kind in ("loreft", "distribution")
    return delta


def _concept(hidden: Array, direction: Array, sequences: Sequence[int], top: int) -> Array:
    shown = np.maximum(hidden @ direction, 0)
    means = []
    for sequence in sequences:
        of_sequence = sorted((shown[n] for n, other in enumerate(sequences) if other == sequence), reverse=True)
        kept = of_sequence[:top]
        means.append(sum(kept) / len(kept))
    return np.array(means)[:, None] * direction


def _features(hidden: Array, t: Mapping[str, Array]) -> Array:
    raw = hidden @ t["encoder"].T + t["encoder_bias"]
    features = raw * (raw > np.maximum(t["threshold"], 0))
    return (t["scale"] * features + t["shift"] - features) @ t["decoder"]


def _by_head(hidden: Array, t: Mapping[str, Array], heads: int) -> Array:
    size = hidden.shape[1] // heads
    gates = {
        name: [min(max(1.2 * _sigmoid(float(value)) - 0.1, 0.0), 1.0) for value in t[name]]
        if name in t
        else [1.0] * heads
        for name in ("scale_gate", "shift_gate")
    }
    columns = []
    for column in range(hidden.shape[1]):
        head = column // size
        scale = gates["scale_gate"][head] * t["scale"][column]
        columns.append(scale * hidden[:, column] + gates["shift_gate"][head] * t["shift"][column])
    return np.stack(columns, axis=1)
