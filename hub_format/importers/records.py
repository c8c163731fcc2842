"""What an importer returns and an exporter takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from peft_reft.hub_format.errors import FileFormatError, ReftError

__all__ = ["Imported", "Record", "Watch", "act2fn_name", "cannot_hold", "malformed"]

Watch = Callable[[Collection[Any]], Iterable[Any]]
"""Goes over what a reader or writer works off, for the sake of whoever waits: `iter`, or something with a bar."""


@dataclass(frozen=True)
class Record:
    """One intervention.

    Attributes:
        layer: index of its block.
        component: where in the block, in our names.
        term: 0 for tied weights and for the first term of the positions, 1 for the second.
        tensors: in our names and shapes; `rotation` holds R itself, its rows orthonormal.
        stack: dotted name of the list of blocks, where the source says it.
    """

    layer: int
    component: str
    term: int
    tensors: Mapping[str, Tensor]
    stack: str | None = None


@dataclass(frozen=True)
class Imported:
    """One adapter.

    Attributes:
        kind: in our names; one for the whole adapter.
        rank: r.
        records: all interventions.
        positions, share_weights, act_fn, dropout: None where the source does not store them.
        options: the kind's own.
        stored: names among the four above that the source does store.
        head: the task's head as the base names its tensors, where the source has it.
    """

    kind: str
    rank: int
    records: tuple[Record, ...]
    positions: str | None = None
    share_weights: bool | None = None
    act_fn: str | None = None
    dropout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    head: Mapping[str, Tensor] | None = None


def act2fn_name(act_fn: str | None) -> str | None:
    """The name of an activation in transformers' `ACT2FN`, of several one that every version of it has."""
    return "gelu_new" if act_fn == "gelu_tanh" else act_fn


def malformed(file: str, why: str, fix: str | None = None) -> FileFormatError:
    """A source that is not what its library writes."""
    return FileFormatError(why, code="import.malformed", file=file, fix=fix)


def cannot_hold(target: str, what: str, rule: str, fix: str | None = None) -> ReftError:
    """A target that has no place for a part of the adapter."""
    return ReftError(f"{target} cannot hold {what}", code="export.cannot_hold", value=what, rule=rule, fix=fix)
