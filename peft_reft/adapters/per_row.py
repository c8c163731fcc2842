"""The keyword `adapter_names` → the adapters of every row of a batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.row_choice import BASE, ROWS_RULE

__all__ = ["split_rows"]


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
        raise ConfigError(f"adapter_names is {_shown(adapter_names)}", value=adapter_names, rule=ROWS_RULE)
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
        raise ConfigError(f"adapter_names has the entry {_shown(entry)}", value=entry, rule=ROWS_RULE)
    return tuple(dict.fromkeys(name for name in names if name != BASE))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else shown[:60] + "…"
