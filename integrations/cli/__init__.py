"""The command `peft-reft`."""

from .main import main

__all__ = ["main"]
