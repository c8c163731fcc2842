"""Chooses the tests that concern us; those that do not apply must end in the error that says why."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import peft_reft  # noqa: F401  (registers the tuner)

from .configs import CHOSEN
from .fetch import PACKAGE
from .not_applicable import NOT_APPLICABLE

__all__ = ["pytest_collection_modifyitems", "pytest_configure"]

OURS = "ReftConfig"


class _Seen(dict[str, int]):
    """PEFT's tests go online for a model they have not seen, and offline for one they have."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 0


def pytest_configure(config: pytest.Config) -> None:
    """Let every model count as seen: no test goes online."""
    import_module(f"{PACKAGE}.testing_utils")._HUB_MODEL_ACCESSES = _Seen()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of our configs, and mark those that do not apply."""
    kept, left = [], []
    for item in items:
        name = getattr(item, "originalname", item.name)
        starts = (
            entry for entry in CHOSEN.get(Path(item.path).stem, ()) if entry in (name, item.name) or "[" in entry
        )
        chosen = OURS in item.name or any(item.name.startswith(entry) for entry in starts)
        (kept if chosen else left).append(item)
        reason = NOT_APPLICABLE.get(name)
        if (
            chosen
            and reason is not None
            and reason.holds_for(item.callspec.params if hasattr(item, "callspec") else {})
        ):
            item.add_marker(pytest.mark.xfail(reason=reason.text, raises=reason.raises, strict=True))
    config.hook.pytest_deselected(items=left)
    items[:] = kept
