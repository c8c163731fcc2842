"""The one family of refusals. Every error names the value, the rule it breaks and what to do instead.

All of them are `ValueError`s, so that code written for PEFT catches them as it catches PEFT's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path

__all__ = [
    "AdapterLoadError",
    "BaseMismatchError",
    "CausalModelError",
    "ConfigError",
    "FileFormatError",
    "HubError",
    "IntegrityError",
    "LocationError",
    "ManifestError",
    "MergeError",
    "PositionError",
    "PositionSyntaxError",
    "PromptBoundaryError",
    "ReftError",
    "SiteError",
    "UnsupportedVersionError",
    "as_path",
    "in_file",
    "shown",
]


def shown(value: object) -> str:
    """A value as an error shows it: its `repr`, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "…"


class ReftError(ValueError):
    """Base of every refusal of this library.

    Args:
        message: what is wrong, in one sentence.
        code: a stable machine-readable name, e.g. `"manifest.missing"`.
        file: the file concerned, if one is.
        value: the offending value, shortened.
        rule: the rule that the value breaks.
        fix: what to do instead.
    """

    default_code = "reft"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        file: str | None = None,
        value: object = None,
        rule: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.code: str = code or self.default_code
        self.file = file
        self.value = value
        self.rule = rule
        self.fix = fix
        parts = [message if file is None else f"{file}: {message}"]
        if rule:
            parts.append(f"Rule: {rule}")
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__(" ".join(part if part.endswith((".", "!", "?")) else part + "." for part in parts))


@contextmanager
def in_file(name: str) -> Iterator[None]:
    """Refusals from inside name this file, unless they name one themselves."""
    try:
        yield
    except ReftError as error:
        if error.file is None:
            error.file = name
            error.args = (f"{name}: {error.args[0]}",)
        raise


class ConfigError(ReftError):
    """A config value that the format does not allow."""

    default_code = "config.value"


class UnsupportedVersionError(ConfigError):
    """A spec version, kind or kind version that this reader does not know."""

    default_code = "config.version"


class PositionError(ReftError):
    """Anything wrong with positions."""

    default_code = "positions"


class PositionSyntaxError(PositionError):
    """A position spec that the grammar does not allow."""

    default_code = "positions.syntax"


class PromptBoundaryError(PositionError):
    """The end of the prompt is needed and cannot be inferred from what the model was called with."""

    default_code = "positions.boundary"


class LocationError(PositionError):
    """Explicit positions of the wrong shape, out of range, or on padding."""

    default_code = "positions.location"


class SiteError(ReftError):
    """A layer, component or stack that the model does not have."""

    default_code = "site"


class FileFormatError(ReftError):
    """A file that cannot be what its name says."""

    default_code = "file.format"


class ManifestError(ReftError):
    """A manifest that is missing, malformed or disagrees with its folder."""

    default_code = "manifest"


class IntegrityError(ReftError):
    """Bytes that are not the bytes which were saved."""

    default_code = "integrity"


class HubError(ReftError):
    """A repository that is missing, gated, out of reach, or changed by someone else during a push."""

    default_code = "hub"


class BaseMismatchError(ReftError):
    """An adapter made for another base model."""

    default_code = "base.mismatch"


class AdapterLoadError(ReftError):
    """Tensors that do not fit the adapter they are loaded into."""

    default_code = "load"


class MergeError(ReftError):
    """A request to merge edits into weights."""

    default_code = "merge"


class CausalModelError(ReftError):
    """A causal model that is no acyclic graph of functions, or an alignment between one and a network."""

    default_code = "causal"


def as_path(value: object, name: str) -> Path:
    """An argument that names a file or folder.

    Raises:
        ConfigError: it is no path, or one that no file system takes.
    """
    path = fspath(value) if isinstance(value, (str, PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{name} is {shown(value)}", value=value, rule="it is a path, a str or an os.PathLike")
    if any(len(part.encode(errors="surrogatepass")) > 255 for part in Path(path).parts):
        raise ConfigError(
            f"{name} is {shown(value)}",
            value=value,
            rule="no name in a path is longer than 255 bytes",
            fix="choose a shorter one",
        )
    return Path(path)
