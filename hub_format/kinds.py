"""What the format knows of an intervention kind: its version, its tensors, its own options.

The mathematics lives in `peft_reft.interventions`; a reader needs only this table to check names and shapes before it
allocates anything.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, UnsupportedVersionError, shown

__all__ = [
    "KindSignature",
    "Option",
    "count",
    "flag",
    "kind_signature",
    "known_kinds",
    "label",
    "labels",
    "number",
    "optional_label",
    "register_kind",
]

Options = Mapping[str, Any]
Shape = tuple[str, ...]
MAX_COUNT = 2**31 - 1
MAX_NUMBER = 1e6
MAX_LABELS = 65_536
MAX_TEXT = 200


@dataclass(frozen=True)
class Option:
    """One of a kind's own parameters: its default, and a check that returns an error text or None."""

    default: Any
    check: Callable[[Any], str | None] = field(compare=False)


def flag(default: bool) -> Option:
    """An option that is True or False."""
    return Option(default, lambda value: None if isinstance(value, bool) else "it is True or False")


def count(default: int) -> Option:
    """An option that is a positive integer."""

    def check(value: Any) -> str | None:
        return None if type(value) is int and 1 <= value <= MAX_COUNT else "it is an integer, 1 or more"

    return Option(default, check)


def number(default: float, low: float = 0.0, high: float = MAX_NUMBER) -> Option:
    """An option that is a number from `low` to `high`."""

    def check(value: Any) -> str | None:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return None if good else f"it is a number from {low:g} to {high:g}"

    return Option(default, check)


def label(default: str) -> Option:
    """An option that is a short text."""

    def check(value: Any) -> str | None:
        good = isinstance(value, str) and 0 < len(value) <= MAX_TEXT
        return None if good else f"it is a text of 1 to {MAX_TEXT} characters"

    return Option(default, check)


def optional_label(default: str | float | None) -> Option:
    """An option that is None, a short text, a finite number or a boolean."""
    return Option(default, lambda value: None if value is None or _is_label(value) else f"it is None or {_LABEL}")


def labels(default: tuple[str | float, ...]) -> Option:
    """An option that lists short texts, finite numbers or booleans, none twice (1, 1.0 and True are equal)."""

    def check(value: Any) -> str | None:
        listed = isinstance(value, (list, tuple)) and 0 < len(value) <= MAX_LABELS
        if not listed or not all(map(_is_label, value)):
            return f"it is a list of 1 to {MAX_LABELS} values, each {_LABEL}"
        return None if len(set(value)) == len(value) else "it lists a value twice; 1, 1.0 and True are equal"

    return Option(default, check)


_LABEL = f"a text of at most {MAX_TEXT} characters, a finite number or a boolean"


def _is_label(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return isinstance(value, (bool, int, float)) and -(2**63) <= value < 2**63


@dataclass(frozen=True)
class KindSignature:
    """Name, version and tensors of one kind.

    Attributes:
        name: the value of `intervention` in a config.
        version: a positive integer; a reader refuses a version it does not know.
        tensors: tensor name → shape as words: `"rank"`, `"hidden"`, `"one"`, or the name of an option: as many as it
            lists, or says.
        orthonormal: names of raw tensors whose rows are orthonormalised in forward; they need full rank.
        options: option name → its default and check.
        optional: tensor name → the option that brings it; other tensors are always there.
        conflict: all options → what is wrong with them together, or None.
        activates: whether `act_fn` has a place in its formula.
        across_tokens: whether an edit depends on the other edited tokens of its sequence.
        module: what to import to have the kind; shown in errors, never imported by a reader.
    """

    name: str
    version: int
    tensors: Mapping[str, Shape]
    orthonormal: frozenset[str] = frozenset()
    options: Mapping[str, Option] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    conflict: Callable[[Options], str | None] | None = field(default=None, compare=False)
    activates: bool = True
    across_tokens: bool = False
    module: str = ""

    @property
    def has_rank(self) -> bool:
        """Whether its tensors have rows that can be named as subspaces."""
        return any("rank" in shape for shape in self.tensors.values())

    def shapes(self, *, rank: int, hidden: int, options: Options | None = None) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape for a rank, a hidden size and options; tensors of options that are off are left out."""
        sizes = {"rank": rank, "hidden": hidden, "one": 1}
        chosen = self.with_defaults(options or {})
        return {
            name: tuple(sizes[word] if word in sizes else _size(chosen[word]) for word in shape)
            for name, shape in self.tensors.items()
            if name not in self.optional or chosen[self.optional[name]]
        }

    def with_defaults(self, options: Options) -> dict[str, Any]:
        """Every option of the kind with its value."""
        return {**{name: option.default for name, option in self.options.items()}, **options}

    def check_options(self, options: Options) -> None:
        """Refuse options that the kind does not have or whose value it does not allow."""
        for name, value in options.items():
            if name not in self.options:
                valid = ", ".join(sorted(self.options)) or "none"
                raise ConfigError(
                    f"options={{{name!r}: …}}: intervention {self.name!r} has no such option",
                    value=name,
                    rule=f"its options are: {valid}",
                )
            if (problem := self.options[name].check(value)) is not None:
                raise ConfigError(f"options={{{name!r}: {shown(value)}}} is not allowed", value=value, rule=problem)
        if self.conflict is not None and (problem := self.conflict(self.with_defaults(options))) is not None:
            raise ConfigError(f"options={shown(options)} is not allowed", value=options, rule=problem)


def _size(value: Any) -> int:
    """How many an option says, or lists."""
    return value if isinstance(value, int) else len(value)


COMPLEMENT = "complement"
"""The tensor `[k, hidden]` of what an R keeps out of, where a config says `orthogonal_to`; no kind's own."""
_KINDS: dict[str, KindSignature] = {}


def register_kind(signature: KindSignature) -> None:
    """Make a kind known to readers and writers; registering an equal signature again changes nothing."""
    existing = _KINDS.get(signature.name)
    if existing is not None and existing != signature:
        raise ConfigError(
            f"intervention {signature.name!r} is registered already",
            value=signature.name,
            rule="a name stands for one kind",
            fix="choose another name",
        )
    _KINDS[signature.name] = signature


def _meant(name: object) -> str | None:
    """The kind that a misspelt name, or a class of pyreft or adapters, stands for."""
    text = str(name).lower()
    here = _ELSEWHERE.get(text, re.sub("(intervention|config)$", "", text))
    return next(iter(difflib.get_close_matches(here, known_kinds(), n=1, cutoff=0.75)), None)


_ELSEWHERE = {"nodireftintervention": "direft", "direftintervention": "direft_orthogonal"}
"""pyreft's classes whose names would be taken for another kind of ours."""


def kind_signature(name: str, *, version: int | None = None, module: str | None = None) -> KindSignature:
    """The signature of a kind.

    Args:
        name: of the kind.
        version: the one a file was written with.
        module: where the writer had the kind from, for the error's advice.

    Raises:
        UnsupportedVersionError: the kind, or this version of it, is not registered.
    """
    signature = _KINDS.get(name) if isinstance(name, str) else None
    if signature is None:
        fix = "import the module that registers it, or check the spelling"
        if module:
            fix = f"import {module}, which registered it where the adapter was saved"
        elif meant := _meant(name):
            fix = f"use {meant!r}; or import the module that registers {shown(name)}"
        raise UnsupportedVersionError(
            f"intervention={shown(name)} is not a registered intervention",
            code="kind.unknown",
            value=name,
            rule=f"known are: {', '.join(known_kinds())}",
            fix=fix,
        )
    if version is not None and version != signature.version:
        raise UnsupportedVersionError(
            f"intervention {name!r} has version {version}, this library reads version {signature.version}",
            code="kind.version",
            value=version,
            fix="install the version of the library that wrote it",
        )
    return signature


def known_kinds() -> tuple[str, ...]:
    """Names of all registered kinds, sorted."""
    return tuple(sorted(_KINDS))
