"""The YAML block at the head of a model card."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]  # huggingface_hub's own dependency; it ships no annotations

_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class CardError(ValueError):
    """The block is not YAML, or no mapping."""


def card_data(text: str) -> dict[str, Any] | None:
    """The card's metadata; None where it has no block."""
    match = _FRONT_MATTER.search(text)
    if match is None:
        return None
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        raise CardError(f"bad YAML in the card's metadata: {error}") from error
    if data is None:
        return None
    if not isinstance(data, dict):
        raise CardError(f"the card's metadata must be a mapping, not {type(data).__name__}")
    return data
