"""The table of every kind: its options, its start, and its formula written a second time, one row of h at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peft_reft import Intervention
from peft_reft.interventions import intervention_class

HIDDEN, RANK = 8, 3
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """One row.

    Attributes:
        edit: (h `[seq, hidden]`, tensors with R for `rotation`, act) → h′ `[seq, hidden]`.
        identity: whether some start is the identity.
        activates: whether `act_fn` is allowed.
        act_identity: whether `act_fn="gelu"` leaves an identity start.
        samples: whether training draws; the formula is that of evaluation.
    """

    name: str
    edit: Callable[[Tensor, Tensors, Callable[[Tensor], Tensor]], Tensor]
    identity: bool = True
    activates: bool = False
    act_identity: bool = False
    samples: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *self.options])

    def make(self, **changes: Any) -> Intervention:
        """One unit in evaluation; parameters are random from a local seed."""
        given = {"options": self.options, "init_weights": False, **changes}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unit = intervention_class(self.name)(given.pop("hidden", HIDDEN), given.pop("rank", RANK), **given)
        return unit.eval()


def _rows(edit_row: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda h, p, act: torch.stack([edit_row(row, p, act) for row in h])


def _source(h: Tensor, p: Tensors) -> Tensor:
    return torch.stack([w @ h for w in p["weight"]]) + p["bias"]


def _toward(h: Tensor, basis: Tensor, target: Tensor) -> Tensor:
    """h with its coordinates along the basis replaced: subtract each component, add the target's."""
    for row, value in zip(basis, target - basis @ h, strict=True):
        h = h + value * row
    return h


def _loreft(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    return _toward(h, p["rotation"], act(_source(h, p)))


def _noreft(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    basis = p["projection"]
    return h + basis.T @ (act(_source(h, p)) - basis @ h - p.get("projection_bias", torch.zeros(())))


def _gated(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    opening = 1 / (1 + torch.exp(-(p["gate_weight"][0] @ h) - p["gate_bias"][0]))
    return (1 - opening) * h + opening * _loreft(h, p, act)


def _reft_r1(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    seen = sorted((max(0.0, float(row @ p["rotation"][0])) for row in h), reverse=True)[:2]
    return h + sum(seen) / len(seen) * p["rotation"][0]


def _sae(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    raw = p["encoder"] @ h + p["encoder_bias"]
    seen = torch.where(raw > p["threshold"].clamp(min=0), raw, 0.0)
    error = h - p["decoder"].T @ seen
    return p["decoder"].T @ (seen * p["scale"] + p["shift"]) + error


def _clamp(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    """What lies along the direction is taken off, and put back bounded."""
    direction = p["rotation"][0]
    along = sum(a * b for a, b in zip(h, direction, strict=True))
    bounded = max(along, p["low"][0])
    bounded = min(bounded, p["high"][0])
    target = h - along * direction + bounded * direction
    return (1 - p["strength"][0]) * h + p["strength"][0] * target


def _adapter(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    inner = act(torch.stack([row @ h for row in p["down"]]))
    return h + sum(value * column for value, column in zip(inner, p["up"], strict=True))


def _heads(h: Tensor, p: Tensors, act: Callable[[Tensor], Tensor]) -> Tensor:
    """One head after the other; a gate is 1.2 σ(log α) − 0.1, cut off at 0 and 1."""
    edited, size = [], len(h) // 2
    for head in range(2):
        part = slice(head * size, (head + 1) * size)
        gates = [
            torch.clip(1.2 / (1 + torch.exp(-p[name][head])) - 0.1, 0, 1) if name in p else 1.0
            for name in ("scale_gate", "shift_gate")
        ]
        edited.append((1 + gates[0] * p["scale"][part]) * h[part] + gates[1] * p["shift"][part])
    return torch.cat(edited)


KINDS = (
    Kind("loreft", _rows(_loreft), activates=True),
    Kind("noreft", _rows(_noreft), activates=True),
    Kind("noreft", _rows(_noreft), activates=True, options={"add_bias": True}),
    Kind(
        "direft",
        _rows(lambda h, p, act: h + p["projection"].T @ act(_source(h, p))),
        activates=True,
        act_identity=True,
    ),
    Kind(
        "direft_orthogonal",
        _rows(lambda h, p, act: h + p["rotation"].T @ act(_source(h, p))),
        activates=True,
        act_identity=True,
    ),
    Kind("consreft", _rows(lambda h, p, act: _toward(h, p["rotation"], p["bias"])), identity=False),
    Kind(
        "rotated_interchange",
        _rows(lambda h, p, act: _toward(h, p["rotation"], p["points"][2])),
        identity=False,
        options={"variable": "S1", "values": ["red", 0, 2.5, True], "value": 2.5},
    ),
    Kind("lobireft", _rows(lambda h, p, act: h + p["rotation"].T @ p["bias"])),
    Kind("bias", _rows(lambda h, p, act: h + p["shift"])),
    Kind("red", _rows(lambda h, p, act: p["scale"] * h + p["shift"])),
    Kind("gated", _rows(_gated), activates=True),
    Kind("reft_r1", _reft_r1, identity=False, options={"topk": 2}),
    Kind("sae", _rows(_sae)),
    Kind("clamp", _rows(_clamp)),
    Kind("prosv", _rows(lambda h, p, act: h + p["factor"][0] * p["direction"]), identity=False),
    Kind("adapter", _rows(_adapter), activates=True, act_identity=True),
    Kind("distribution", _rows(_loreft), activates=True, samples=True),
    Kind("heads", _rows(_heads), options={"heads": 2}),
    Kind("heads", _rows(_heads), samples=True, options={"heads": 2, "gates": True}),
)
