"""Adding one adapter to hundreds: PEFT walks over every module for every adapter that is added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from peft_reft.runtime.state import ModelState

__all__ = ["others_hidden"]


@contextmanager
def others_hidden(state: ModelState, adapter_name: str) -> Iterator[None]:
    """Take the units of all other adapters out of the module tree for a while.

    PEFT's injection walks the whole tree several times (peft/tuners/tuners_utils.py, `inject_adapter`), to find the
    sites and to leave the other adapters' parameters as they are. So they are, out of sight, and adding an adapter
    costs the same whether it is the second or the thousandth.
    """
    hidden: list[tuple[Any, dict[str, nn.Module | None]]] = []
    held = state.changes_held
    state.changes_held = True
    try:
        for layer in state.layers.values():
            for units in layer.children():  # a dict of modules each
                hidden.append((units, units._modules))
                own = units._modules.get(adapter_name)
                units._modules = {} if own is None else {adapter_name: own}
        yield
    finally:
        for units, modules in hidden:
            units._modules = {**modules, **units._modules}
        state.changes_held = held
        state.changed()
