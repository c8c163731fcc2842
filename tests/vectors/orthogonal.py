"""R that keeps out of directions, which format version 1.2 brought: read, and refused where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import numbers
from .changes import CONFIG, SITE, WEIGHTS, Bad, before
from .folder import Adapter, pack
from .good import MIXED, PREFILL, Good, single

__all__ = ["BAD_ORTHOGONAL", "GOOD_ORTHOGONAL"]

MINOR: dict[str, Any] = {"spec_version": "1.2", "orthogonal_to": ["first", "second-2"]}
KINDS = ("loreft", "direft_orthogonal", "consreft", "lobireft", "gated", "rotated_interchange")
MORE: dict[str, Any] = {"rotated_interchange": {"options": {"values": [False, True]}}}


GOOD_ORTHOGONAL: dict[str, Good] = {
    "orthogonal": single("R keeps out of three directions, in both blocks", MIXED, r=2, positions="f2+l2", **MINOR),
    "orthogonal_kinds": single(
        "every kind with a rotation and act, a group without R beside them",
        PREFILL,
        r=2,
        interventions=[
            *(
                {"intervention": kind, "positions": f"p[{n}:{n + 1}]", **MORE.get(kind, {})}
                for n, kind in enumerate(KINDS)
            ),
            {"intervention": "direft"},
        ],
        **MINOR,
    ),
    "orthogonal_subspaces": single(
        "subspaces of an R that keeps out",
        PREFILL,
        r=3,
        subspaces={"one": [0, 1], "two": [1, 3]},
        on=("one", "two"),
        **MINOR,
    ),
    "orthogonal_head": single(
        "in a head, whose width is four", PREFILL, r=1, component="head_output[1]", positions="prompt", **MINOR
    ),
}


def _shape(rows: int, width: int) -> Callable[[str], dict[str, bytes]]:
    def change(made: Adapter) -> None:
        made.tensors[f"{SITE}complement"] = pack(np.eye(max(rows, width))[:rows, :width], "F32")

    return before(change, **MINOR)


def _inside(made: Adapter) -> None:
    """A rotation of which a row lies in what is taken."""
    taken = np.eye(8)[:3]
    raw = numbers("inside", 2, 8)
    raw[0, 3:] = 0
    made.tensors[f"{SITE}complement"] = pack(taken, "F32")
    made.tensors[f"{SITE}rotation"] = pack(raw, "F32")


def _skewed(made: Adapter) -> None:
    rows = np.eye(8)[:3]
    rows[1, 0] = 0.5
    made.tensors[f"{SITE}complement"] = pack(rows, "F32")


def _without_field(made: Adapter) -> None:
    made.tensors[f"{SITE}complement"] = pack(np.eye(8)[:2], "F32")


def _value(about: str, value: Any, **fields: Any) -> Bad:
    return Bad(about, before(lambda made: None, **{**MINOR, "orthogonal_to": value, **fields}), "config.value", CONFIG)


BAD_ORTHOGONAL: dict[str, Bad] = {
    "orthogonal_of_later_version": Bad(
        "the field in a file of version 1.1",
        before(lambda made: None, **{**MINOR, "spec_version": "1.1"}),
        "config.unknown",
        CONFIG,
    ),
    "orthogonal_empty": _value("no names", []),
    "orthogonal_text": _value("a text in place of a list", "first"),
    "orthogonal_twice": _value("a name twice", ["first", "first"]),
    "orthogonal_name": _value("a name that no adapter has", ["model.layers"]),
    "orthogonal_without_rotation": _value("a kind without a rotation", ["first"], intervention="direft"),
    "orthogonal_tensor_alone": Bad(
        "directions where the config says nothing of them", before(_without_field), "tensors.unfit", WEIGHTS
    ),
    "orthogonal_too_many": Bad("directions that leave no room for R", _shape(7, 8), "tensors.unfit", WEIGHTS),
    "orthogonal_narrow": Bad("directions of another width", _shape(2, 7), "tensors.unfit", WEIGHTS),
    "orthogonal_skewed": Bad(
        "directions that are not orthonormal", before(_skewed, **MINOR), "load.rank", WEIGHTS, "base"
    ),
    "orthogonal_inside": Bad(
        "a rotation inside of what is taken", before(_inside, **MINOR), "load.rank", WEIGHTS, "base"
    ),
}
