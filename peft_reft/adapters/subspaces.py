"""Named subspaces: disjoint row ranges of one R, each trained on its own task, on alone or together at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.lookup import layers_of, unknown_adapter

__all__ = ["set_subspaces"]


def set_subspaces(model: nn.Module, adapter: str, names: Sequence[str] | None) -> None:
    """Switch an adapter to some of its named subspaces (`ReftConfig.subspaces`); what is off neither edits nor trains.

    The edit of the chosen rows is that of the whole R restricted to them, so the edits of disjoint subspaces add. Rows
    of R are orthonormalised from the first on: training a later subspace leaves the earlier ones as they are, so train
    tasks in the order of their rows (pyreft's `subspaces`; CS-ReFT, arXiv 2503.10617).

    Args:
        model: a model with the adapter, wrapped by PEFT or not.
        adapter: its name.
        names: the subspaces that are on; None for all of R.

    Raises:
        ConfigError: the adapter or a subspace is not known.

    Example: `set_subspaces(model, "default", ["style"])` before training on the task of that name, and
    `set_subspaces(model, "default", None)` to use all of them.
    """
    layers = layers_of(model, adapter)
    config = getattr(model, "peft_config", {}).get(adapter)
    if config is None:
        raise unknown_adapter(model, adapter)
    table = config.subspaces or {}
    rows: list[int] | None = None
    if names is not None:
        listed = isinstance(names, Iterable) and not isinstance(names, (str, bytes, Mapping))
        given = list(names) if listed else []
        unknown = [name for name in given if not isinstance(name, str) or name not in table]
        if not given or unknown:
            shown = unknown or names
            raise ConfigError(
                f"subspaces={shown!r} of adapter {adapter!r}",
                value=shown,
                rule=f"a list of one or more of: {', '.join(table) or 'none; ReftConfig.subspaces names them'}",
                fix="pass None for all of them; disable the adapter to switch all of them off",
            )
        rows = sorted({row for name in given for row in range(*table[name])})
    for layer in layers:
        for number in layer.units[adapter]:
            layer.unit((adapter, number)).rows = rows
