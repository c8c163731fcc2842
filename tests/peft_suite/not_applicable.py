"""PEFT's tests that do not apply to ReFT: name → reason."""

from __future__ import annotations

__all__ = ["REASONS"]

REASONS: dict[str, str] = {}
