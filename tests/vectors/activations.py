"""The activations that format version 1.1 brought: read, and refused in an older file or by another name."""

from __future__ import annotations

from typing import Any

from .changes import CONFIG, Bad, before
from .good import PREFILL, Good, single

__all__ = ["BAD_ACTIVATIONS", "GOOD_ACTIVATIONS"]

BROUGHT = ("gelu_10", "hardswish", "laplace", "quick_gelu", "relu2", "sqrtsoftplus")
MINOR = {"spec_version": "1.1"}

GOOD_ACTIVATIONS: dict[str, Good] = {
    "activations_1_1": single(
        "every activation that version 1.1 brought, one group each",
        PREFILL,
        r=1,
        intervention="direft",
        interventions=[
            {"act_fn": act, "positions": f"p[{n % 3}:{n % 3 + 1}]", "layers_to_transform": n // 3}
            for n, act in enumerate(BROUGHT)
        ],
        **MINOR,
    ),
    "activations_1_1_of_top_level": single(
        "the top level's activation is of version 1.1, a group's of 1.0",
        PREFILL,
        r=2,
        positions="f2",
        act_fn="relu2",
        interventions=[{"layers_to_transform": 0}, {"layers_to_transform": 1, "act_fn": "gelu_tanh"}],
        **MINOR,
    ),
    "minor_without_need": single(
        "version 1.1 in a file that uses nothing newer than 1.0", PREFILL, r=2, layers_to_transform=[0], **MINOR
    ),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "of_later_version": ("an activation of version 1.1 in a file of 1.0", {"act_fn": "relu2"}),
    "of_later_version_in_group": (
        "the same in a group",
        {"interventions": [{"act_fn": "relu"}, {"act_fn": "quick_gelu"}]},
    ),
    "of_later_version_unused": (
        "the same at the top level, where each group says its own",
        {"act_fn": "hardswish", "interventions": [{"act_fn": None}]},
    ),
    "alias": ("another name of gelu_tanh", {"act_fn": "gelu_new", **MINOR}),
    "alias_in_group": ("another name of silu, in a group", {"interventions": [{"act_fn": "swish"}]}),
    "identity_by_name": ("the identity by a name", {"act_fn": "linear", **MINOR}),
    "trained": ("an activation with a trained parameter", {"act_fn": "prelu", **MINOR}),
}


BAD_ACTIVATIONS: dict[str, Bad] = {
    f"value_act_fn_{name}": Bad(about, before(lambda made: None, **fields), "config.value", CONFIG)
    for name, (about, fields) in REFUSED.items()
}
