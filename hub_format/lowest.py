"""The lowest version of the format that has what a config uses, and the refusal of what is newer than its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .activations import check_stored_activations, version_of_activations
from .groups import ALL_HEADS, ALL_HEADS_SINCE, refuse
from .versions import SPEC_VERSION, Version, parse_version

__all__ = ["check_not_newer", "lowest_version"]


def lowest_version(values: Mapping[str, Any]) -> str:
    """That of behaviour fields, which were checked."""
    heads = ALL_HEADS_SINCE if ALL_HEADS in _components(values) else SPEC_VERSION
    return max(version_of_activations(values), heads, key=parse_version)


def check_not_newer(values: Mapping[str, Any], version: Version) -> None:
    """Refuse in a file's fields, which were checked, what a later version than the file's brought.

    Raises:
        ConfigError: see above, or an activation by another name than its canonical one.
    """
    check_stored_activations(values, version)
    if ALL_HEADS in _components(values) and parse_version(ALL_HEADS_SINCE) > version:
        written = ".".join(map(str, version))
        rule = f"format version {ALL_HEADS_SINCE} brought it, and the file says {written}"
        raise refuse("component", ALL_HEADS, rule, "save the adapter again")


def _components(values: Mapping[str, Any]) -> Iterator[str]:
    yield values["component"]
    yield from (entry["component"] for entry in values["interventions"] or () if "component" in entry)
