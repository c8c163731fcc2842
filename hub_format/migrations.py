"""Files of lower versions → a version that is read: pure functions, dict → dict, one step a version.

Version 1.0 is the first, and 1.1 and 1.2 only add names to it, so the table is empty. A step is added with the version
that makes it necessary; it gets a copy, never reads another file, and says in the new version's words what the old one
meant by its silence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError, UnsupportedVersionError
from .versions import SPEC_VERSION, check_version, parse_version

__all__ = ["MIGRATIONS", "Migration", "Part", "migrate"]

Part = Literal["reft", "manifest", "index"]
Change = Callable[[dict[str, Any]], dict[str, Any]]


def _unchanged(stored: dict[str, Any]) -> dict[str, Any]:
    return stored


@dataclass(frozen=True)
class Migration:
    """One step.

    Attributes:
        to: the version that it leads to; the step writes it, a function need not.
        reft: change of a config's object `reft`.
        manifest: change of a manifest.
        index: change of a bundle's index.
    """

    to: str
    reft: Change = _unchanged
    manifest: Change = _unchanged
    index: Change = _unchanged


MIGRATIONS: dict[str, Migration] = {}
"""Version → the step that leads on from it."""


def migrate(
    stored: Mapping[str, Any],
    part: Part,
    *,
    file: str | None = None,
    table: Mapping[str, Migration] | None = None,
) -> dict[str, Any]:
    """An object as this version writes it: itself, or the result of all steps from its version to this one.

    Args:
        stored: an object with a `spec_version`; left as it is.
        part: what it is.
        file: it stands in, for errors.
        table: version → step; `MIGRATIONS` if not given.

    Raises:
        UnsupportedVersionError: a version that is not read, or a lower one from which no step leads on.
        ConfigError: a step that failed, because the object is not what its version says.
    """
    steps = MIGRATIONS if table is None else table
    check_version(stored.get("spec_version"), file=file)
    current = dict(stored)
    while parse_version(version := current["spec_version"]) < parse_version(SPEC_VERSION):
        if (step := steps.get(version)) is None:
            raise UnsupportedVersionError(
                f"spec_version={version!r} is lower than {SPEC_VERSION}, and no migration leads on from it",
                code="migration.missing",
                file=file,
                value=version,
                rule=f"migrations are known from: {', '.join(sorted(steps)) or 'no version'}",
                fix="load it with the library that wrote it, and save it again with a newer one",
            )
        current = _step(step, current, part, file)
    return current


def _step(step: Migration, current: dict[str, Any], part: Part, file: str | None) -> dict[str, Any]:
    version = current["spec_version"]
    function: Change = getattr(step, part)
    try:
        changed: object = function(copy.deepcopy(current))
    except Exception as error:  # it reads what nothing has checked yet
        raise _failed(version, step, f"{type(error).__name__}: {str(error)[:120]}", file) from error
    if not isinstance(changed, dict) or parse_version(step.to) <= parse_version(version):
        raise _failed(version, step, "it gave no object of a higher version", file)
    return {**changed, "spec_version": step.to}


def _failed(version: str, step: Migration, why: str, file: str | None) -> ConfigError:
    return ConfigError(
        f"the migration from format version {version} to {step.to} failed: {why}",
        code="migration.failed",
        file=file,
        value=version,
        rule="a migration applies to an object that its version allows",
        fix="check the object against the specification of its version",
    )
