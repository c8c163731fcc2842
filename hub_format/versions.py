"""The version of the format: which ones are read, and which are written."""

from __future__ import annotations

import re

from .errors import UnsupportedVersionError

__all__ = ["SPEC_VERSION", "WRITTEN_VERSIONS", "Version", "check_same_version", "check_version", "parse_version"]

SPEC_VERSION = "1.0"
"""What a file says that uses nothing newer, and what migrations lead to."""
WRITTEN_VERSIONS = (SPEC_VERSION, "1.1", "1.2")
"""All versions whose every addition is known here. A minor version only adds names, so none needs a migration."""
Version = tuple[int, int]
_PLAIN = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")


def parse_version(version: object, *, file: str | None = None) -> Version:
    """`"major.minor"` as numbers.

    Raises:
        UnsupportedVersionError: it is no such text.
    """
    match = _PLAIN.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise _refuse(version, file)
    return int(match[1]), int(match[2])


def check_version(version: object, *, file: str | None = None) -> None:
    """Refuse what is no version, and a higher major one. Lower versions are migrated.

    A higher minor version is read where everything in the file is known: what it added has names of its own, which a
    reader that lacks them refuses.

    Raises:
        UnsupportedVersionError: see above.
    """
    if parse_version(version, file=file)[0] > parse_version(SPEC_VERSION)[0]:
        raise _refuse(version, file)


def check_same_version(config: object, manifest: str | None) -> None:
    """Refuse a config of another version than the manifest beside it, or a higher minor one without a manifest.

    Raises:
        UnsupportedVersionError: see above.
    """
    if config != manifest:
        beside = "no manifest is read with it" if manifest is None else f"the manifest beside it says {manifest!r}"
        raise UnsupportedVersionError(
            f"reft.spec_version={str(config)[:40]!r}, and {beside}",
            code="config.version",
            value=config,
            rule="config and manifest have one version, and only a manifest says what a higher minor one requires",
            fix="update peft-reft, or load the whole folder with peft.PeftModel.from_pretrained",
        )


def _refuse(version: object, file: str | None) -> UnsupportedVersionError:
    return UnsupportedVersionError(
        f"spec_version={str(version)[:40]!r} is not a version this library reads",
        code="config.version",
        file=file,
        value=version,
        rule=f"it reads format versions {' and '.join(WRITTEN_VERSIONS)}, and higher minor versions where it knows "
        "all that they use",
        fix="update peft-reft",
    )
