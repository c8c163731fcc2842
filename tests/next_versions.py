"""A pytest plugin: what the next versions of other libraries take away is an error where this package still uses it.

`make test-next` runs the suite with it. A warning of the kinds FutureWarning and DeprecationWarning belongs to whoever
calls the library that gives it: the first frame on the stack outside of that library, torch's way of calling a module
left out. If that is a file of this package, an exception is raised there. If it is a test, which tries a feature as
long as it lasts, the warning is listed at the end; between two other libraries it is their matter.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
OURS = tuple(str(ROOT / name) for name in ("peft_reft", "hub_format", "integrations"))
KINDS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
LIBRARIES = (
    "transformers",
    "trl",
    "peft",
    "torch",
    "accelerate",
    "huggingface_hub",
    "datasets",
    "safetensors",
    "numpy",
)
BETWEEN = (
    "contextlib.py",
    "functools.py",
    "warnings.py",
    "torch/nn/modules/module.py",
    "torch/utils/_contextlib.py",
    "peft_reft/runtime/way_in.py",
)
"""Files that only pass a call on."""

listed: set[tuple[str, str]] = set()
_warn = warnings.warn


class NextVersionError(Exception):
    """This package uses what the next version of a library takes away."""


def library_of(path: str) -> str | None:
    """The library that a file belongs to, of those that are watched."""
    parts = Path(path).parts
    for name in LIBRARIES:
        if name in parts and "site-packages" in parts:
            return name
    return None


def caller(frame: FrameType | None) -> tuple[str | None, str]:
    """The library that warns, and the file that called it."""
    warner = None if frame is None else library_of(frame.f_code.co_filename)
    while frame is not None:
        path = frame.f_code.co_filename
        passes_on = path.startswith(OURS) and frame.f_code.co_name == "__init__"  # a subclass's, what it was given
        if library_of(path) != warner and not path.endswith(BETWEEN) and not path.startswith("<") and not passes_on:
            return warner, path
        frame = frame.f_back
    return warner, ""


def watched(message: Any, category: Any = None, *args: Any, **kwargs: Any) -> None:
    """In the place of `warnings.warn`."""
    if torch.compiler.is_compiling():
        return  # as Dynamo does with `warnings.warn` itself: no graph holds one
    kind = type(message) if isinstance(message, Warning) else category
    if isinstance(kind, type) and issubclass(kind, KINDS):
        warner, path = caller(sys._getframe(1))
        if warner is not None and path.startswith(OURS):
            raise NextVersionError(f"{path}: {warner} says: {message}")
        if warner is not None and path.startswith(str(ROOT / "tests")):
            listed.add((str(Path(path).relative_to(ROOT)), f"{warner}: {str(message)[:120]}"))
    _warn(message, category, *args, **kwargs)


def pytest_configure(config: pytest.Config) -> None:
    """Watch from the first import on."""
    warnings.warn = watched  # type: ignore[assignment]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave it as it was."""
    warnings.warn = _warn


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests use as long as it lasts."""
    if listed:
        terminalreporter.section("tests of what the next versions take away")
        for path, message in sorted(listed):
            terminalreporter.line(f"{path}: {message}")
