"""What a module's forward takes, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache

from torch import nn

__all__ = ["arguments_of", "of_method"]


def arguments_of(module: nn.Module) -> frozenset[str]:
    """Names of what a module's forward takes, also where the module has one of its own."""
    if "forward" in module.__dict__:
        return frozenset(inspect.signature(module.forward).parameters)
    return of_method(type(module).forward)


@cache
def of_method(forward: Callable[..., object]) -> frozenset[str]:
    """Names of what a class's method takes; asked once a method."""
    return frozenset(inspect.signature(forward).parameters)
