"""Skips what does not apply to edits, with its reason; everything else must pass."""

from __future__ import annotations

import pytest

import peft_reft  # noqa: F401  (registers the tuner)

from .not_applicable import REASONS

__all__ = ["pytest_collection_modifyitems"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that do not apply."""
    for item in items:
        name = getattr(item, "originalname", item.name)
        if reason := REASONS.get(name):
            item.add_marker(pytest.mark.skip(reason=f"does not apply: {reason}"))
