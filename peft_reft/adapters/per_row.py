"""`adapter_names`: which adapters edit which row of a batch, for the time of one call."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

if TYPE_CHECKING:
    from peft_reft.runtime.activity import Activity
    from peft_reft.runtime.hooks import Runtime

    from .stacking import AdapterStack

__all__ = ["BASE", "RowAdapters", "adapters_per_row", "row_adapters", "split_rows"]

BASE = "__base__"
"""PEFT's word for a row without an adapter."""
RULE = f"it is a list with one adapter name per row of the batch, {BASE!r} for none, or a tuple of names that add"


@dataclass
class RowAdapters:
    """What each row of a batch is edited by.

    Attributes:
        rows: for each row the names of its adapters.
        stack: of their parameters, where they are of one structure; the first name then stands for all of them.
        activity: what edits the model in this call, once that has been asked for.
    """

    rows: tuple[tuple[str, ...], ...]
    stack: AdapterStack | None = None
    activity: Activity | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters to be resolved: all that are named, or the one that stands for them."""
        named = tuple(dict.fromkeys(name for row in self.rows for name in row))
        return named if self.stack is None else named[:1]

    def selects(self, name: str, batch: int, device: torch.device) -> Tensor:
        """The rows that an adapter edits, bool `[batch, 1]`; beams and returned sequences repeat each row."""
        chosen = [bool(row) if self.stack is not None else name in row for row in self.rows]
        return torch.tensor(chosen, device=device).repeat_interleave(self.repeats(batch))[:, None]

    def repeats(self, batch: int) -> int:
        """How many rows of a batch stand for each of ours; a batch that is no multiple is refused."""
        repeats, rest = divmod(batch, len(self.rows))
        if rest or not repeats:
            raise ConfigError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self.rows)} "
                f"and {batch} respectively",
                value=len(self.rows),
                rule=RULE,
            )
        return repeats


class _Chosen(threading.local):
    def __init__(self) -> None:
        self.stack: list[tuple[Runtime, RowAdapters]] = []


_CHOSEN = _Chosen()


def row_adapters(runtime: Runtime) -> RowAdapters | None:
    """What the running call of a model says for its rows, or None: then the active adapters edit all of them."""
    return next((rows for owner, rows in reversed(_CHOSEN.stack) if owner is runtime), None)


@contextmanager
def adapters_per_row(runtime: Runtime, rows: RowAdapters) -> Iterator[None]:
    """Run a call of a model with adapters chosen row by row."""
    entry = (runtime, rows)
    _CHOSEN.stack.append(entry)
    try:
        yield
    finally:
        while _CHOSEN.stack and _CHOSEN.stack.pop() is not entry:
            pass


def split_rows(adapter_names: Any, known: Collection[str], *, training: bool) -> tuple[tuple[str, ...], ...]:
    """The keyword `adapter_names` → the names of every row's adapters.

    Raises:
        ConfigError: not a list of names, a name that no adapter has, or a model in training mode.
    """
    if training:
        raise ConfigError(
            "Cannot pass `adapter_names` when the model is in training mode",
            rule="rows are given their adapters for inference",
            fix="call model.eval(), or train one set of adapters with set_adapter",
        )
    if not isinstance(adapter_names, (list, tuple)) or not adapter_names:
        raise ConfigError(f"adapter_names is {_shown(adapter_names)}", value=adapter_names, rule=RULE)
    rows = tuple(_names_of(entry) for entry in adapter_names)
    if unknown := sorted({name for row in rows for name in row} - set(known)):
        raise ConfigError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}",
            value=unknown,
            rule=f"the model has the adapters {', '.join(sorted(known)) or 'none'}; {BASE!r} is a row without one",
        )
    return rows


def _names_of(entry: Any) -> tuple[str, ...]:
    names = (entry,) if isinstance(entry, str) else entry
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"adapter_names has the entry {_shown(entry)}", value=entry, rule=RULE)
    return tuple(dict.fromkeys(name for name in names if name != BASE))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else shown[:60] + "…"
