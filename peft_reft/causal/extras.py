"""Packages of the extra `causal`, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["need"]


def need(name: str) -> Any:
    """A module of the extra, or an error that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name.partition('.')[0]} draws this: pip install 'peft-reft[causal]'") from error
