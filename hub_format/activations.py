"""The names of activations: the one that a file holds for each function, and the others that people write for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConfigError, shown
from .versions import SPEC_VERSION, Version, parse_version

__all__ = [
    "ACTIVATIONS",
    "ALIASES",
    "REFUSED",
    "SINCE",
    "activations_named",
    "canonical_activation",
    "check_stored_activations",
    "version_of_activations",
]

SINCE: dict[str, str] = {
    "gelu": "1.0",
    "gelu_10": "1.1",
    "gelu_tanh": "1.0",
    "hardswish": "1.1",
    "laplace": "1.1",
    "leaky_relu": "1.0",
    "mish": "1.0",
    "quick_gelu": "1.1",
    "relu": "1.0",
    "relu2": "1.1",
    "relu6": "1.0",
    "sigmoid": "1.0",
    "silu": "1.0",
    "sqrtsoftplus": "1.1",
    "tanh": "1.0",
}
"""Canonical name → the format version that brought it. What each computes: SPEC.md, section 6."""

ACTIVATIONS = tuple(SINCE)

ALIASES: dict[str, str | None] = {
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "linear": None,
    "swish": "silu",
}
"""Other names of the same functions, as `transformers.activations.ACT2FN` has them → the canonical one; None is the
identity. They differ in how they are computed, by rounding alone. No file holds them."""

REFUSED: dict[str, str] = {
    "prelu": "its slope is trained",
    "rrelu": "its slope is drawn at random while training",
    "xielu": "its two slopes are trained",
}
"""Names that mean no function of one number alone → why."""


def canonical_activation(name: object) -> str | None:
    """The one name of an activation, or None for the identity.

    Raises:
        ConfigError: no activation, or one that is no function of one number alone.
    """
    if name is None:
        return None
    if isinstance(name, str):
        if name in SINCE:
            return name
        if name in ALIASES:
            return ALIASES[name]
        if name in REFUSED:
            raise _refuse(
                name,
                f"{REFUSED[name]}, and an activation here is a function without parameters and chance",
                f"take {', '.join(ACTIVATIONS)}",
            )
    others = ", ".join(ALIASES)
    raise _refuse(name, f"it is None or one of {', '.join(ACTIVATIONS)}; the same functions have the names {others}")


def activations_named(values: Mapping[str, Any]) -> Iterator[object]:
    """What stands as `act_fn` in the fields of an adapter that were checked, the top level's first."""
    yield values["act_fn"]
    for entry in values["interventions"] or ():
        if "act_fn" in entry:
            yield entry["act_fn"]


def version_of_activations(values: Mapping[str, Any]) -> str:
    """The lowest version of the format that has every activation in these fields, which were checked."""
    names = (canonical_activation(name) for name in activations_named(values))
    return max((SINCE[name] for name in names if name is not None), key=parse_version, default=SPEC_VERSION)


def check_stored_activations(values: Mapping[str, Any], version: Version) -> None:
    """Refuse in a file's fields an activation by another name than its canonical one, or newer than the file.

    Raises:
        ConfigError: see above.
    """
    for name in activations_named(values):
        if name is None:
            continue
        if not isinstance(name, str) or name not in SINCE:
            raise _refuse(name, f"a file holds null or one of {', '.join(ACTIVATIONS)}, and no other name of theirs")
        if parse_version(SINCE[name]) > version:
            written = ".".join(map(str, version))
            raise _refuse(
                name, f"format version {SINCE[name]} brought it, and the file says {written}", "save the adapter again"
            )


def _refuse(name: object, rule: str, fix: str | None = None) -> ConfigError:
    return ConfigError(f"act_fn={shown(name)} is not allowed", value=name, rule=rule, fix=fix)
