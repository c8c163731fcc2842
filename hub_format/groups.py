"""One site group of an adapter: the fields that a group may set for itself, and the check of their values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from .activations import ACTIVATIONS, canonical_activation
from .errors import ConfigError, shown
from .kinds import KindSignature, kind_signature
from .positions import All, Positions, Special, parse_positions

__all__ = [
    "ACTIVATIONS",
    "ALL_HEADS",
    "ALL_HEADS_SINCE",
    "COMPONENTS",
    "GROUP_FIELDS",
    "MAX_GROUPS",
    "MAX_LAYERS",
    "MAX_NAME",
    "MAX_RANK",
    "TURNS",
    "SiteGroup",
    "check_defaults",
    "is_int",
    "refuse",
    "site_group",
]

COMPONENTS = ("block_output", "block_input", "attention_output", "mlp_output")
ALL_HEADS = "heads"
ALL_HEADS_SINCE = "1.2"
HEAD = re.compile(r"head_output\[(0|[1-9]\d{0,3})\]")
TURNS = ("first", "each")
MAX_RANK = 65_536
MAX_LAYERS = 4_096
MAX_GROUPS = 64
MAX_NAME = 200

GROUP_FIELDS: dict[str, Any] = {
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
"""Field → default, for the fields that a site group may set for itself."""


@dataclass(frozen=True)
class SiteGroup:
    """One set of sites that share a kind, a rank and positions; terms claim tokens within one group."""

    r: int
    intervention: str
    options: Mapping[str, Any] | None
    layers_to_transform: tuple[int, ...] | None
    component: str
    positions: Positions
    turns: str
    share_weights: bool
    dropout: float
    act_fn: str | None
    layers_pattern: str | tuple[str, ...] | None
    orthogonal: bool = False
    """Whether its R keeps out of what other adapters have taken; of the whole config, no field of a group."""

    @property
    def signature(self) -> KindSignature:
        """Tensors and version of the group's kind."""
        return kind_signature(self.intervention)

    @property
    def units(self) -> int:
        """Interventions per site: one if tied, else one per term."""
        return 1 if self.share_weights else len(self.positions.terms)

    def shapes(self, *, hidden: int) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape of one intervention of the group."""
        return self.signature.shapes(rank=self.r, hidden=hidden, options=self.options)

    @property
    def needs_prompt_end(self) -> bool:
        """Whether the tokens edited depend on where a prompt ends."""
        return self.positions.needs_prompt_end or self.needs_turns

    @property
    def needs_turns(self) -> bool:
        """Whether the tokens edited depend on where every turn's prompt starts and ends."""
        terms = (*self.positions.terms, *self.positions.exclusions)
        return self.turns == "each" and any(not isinstance(term, (All, Special)) for term in terms)

    @property
    def full_width(self) -> bool:
        """Whether its component is as wide as the hidden state; what heads give may differ."""
        return self.component in COMPONENTS


def site_group(values: Mapping[str, Any]) -> SiteGroup:
    """The group that fields, all of them, describe.

    Raises:
        ConfigError, PositionSyntaxError, UnsupportedVersionError: a value that the format does not allow.
    """
    rank, options, layers = values["r"], values["options"], values["layers_to_transform"]
    if not is_int(rank) or not 1 <= rank <= MAX_RANK:
        raise refuse("r", rank, f"the rank is an integer from 1 to {MAX_RANK}, and at most the hidden size")
    signature = kind_signature(values["intervention"])
    if options is not None and not isinstance(options, Mapping):
        raise refuse("options", options, "it is None or a dict of the kind's own parameters")
    signature.check_options(options or {})
    component = values["component"]
    known = isinstance(component, str) and (component in (*COMPONENTS, ALL_HEADS) or HEAD.fullmatch(component))
    if not known:
        raise refuse("component", component, f"it is one of {', '.join(COMPONENTS)}, heads, or head_output[<n>]")
    if not isinstance(values["turns"], str) or values["turns"] not in TURNS:
        raise refuse("turns", values["turns"], f"it is one of {', '.join(map(repr, TURNS))}")
    if not isinstance(values["share_weights"], bool):
        raise refuse("share_weights", values["share_weights"], "it is True or False")
    dropout = values["dropout"]
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise refuse("dropout", dropout, "it is a number from 0 up to, but not including, 1")
    act_fn = canonical_activation(values["act_fn"])
    if act_fn is not None and not signature.activates:
        rule = f"intervention {signature.name!r} has no learned source to activate"
        raise refuse("act_fn", values["act_fn"], rule, "leave it None")
    pattern = values["layers_pattern"]
    _check_pattern(pattern)
    positions = parse_positions(values["positions"])
    return SiteGroup(
        **{
            **{field.name: values[field.name] for field in fields(SiteGroup) if field.name in GROUP_FIELDS},
            "layers_to_transform": _layers(layers),
            "positions": positions,
            "dropout": float(dropout),
            "act_fn": act_fn,
            "layers_pattern": pattern if pattern is None or isinstance(pattern, str) else tuple(pattern),
        }
    )


def check_defaults(values: Mapping[str, Any]) -> None:
    """Refuse a top-level field that no value of a group could be, also where every group says its own."""
    options = values["options"]  # its place, and the activation's, is with the kind of a group
    if options is not None and not isinstance(options, Mapping):
        raise refuse("options", options, "it is None or a dict of the kind's own parameters")
    canonical_activation(values["act_fn"])
    site_group({**values, "options": None, "act_fn": None})


def _layers(layers: object) -> tuple[int, ...] | None:
    if layers is None:
        return None
    if is_int(layers):
        return (layers,)
    if not isinstance(layers, (list, tuple)) or not all(is_int(item) for item in layers):
        raise refuse("layers_to_transform", layers, "it is None (all), an integer or a list of integers")
    if not layers:
        raise refuse("layers_to_transform", layers, "an empty list edits nothing", "leave it None for all layers")
    if len(layers) > MAX_LAYERS or len(set(layers)) != len(layers):
        raise refuse("layers_to_transform", layers, f"each layer stands once, at most {MAX_LAYERS} of them")
    return tuple(layers)


def _check_pattern(pattern: object) -> None:
    if pattern is None:
        return
    names = pattern if isinstance(pattern, (list, tuple)) else [pattern]
    if not 0 < len(names) <= MAX_GROUPS or not all(map(_is_stack_name, names)):
        rule = f"it is the dotted name of a ModuleList of blocks, or a list of 1 to {MAX_GROUPS} such"
        raise refuse("layers_pattern", pattern, rule)


def _is_stack_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_NAME and re.fullmatch(r"\w+(\.\w+)*", name) is not None


def is_int(value: object) -> TypeGuard[int]:
    """Whether it is an integer, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def refuse(name: str, value: object, rule: str, fix: str | None = None) -> ConfigError:
    """The error of a field's value."""
    return ConfigError(f"{name}={shown(value)} is not allowed", value=value, rule=rule, fix=fix)
