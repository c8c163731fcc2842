"""What the format knows of an intervention kind: its version, its tensors, its own options.

The mathematics lives in `peft_reft.interventions`; a reader needs only this table to check names and shapes before it
allocates anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, UnsupportedVersionError

__all__ = ["KindSignature", "known_kinds", "kind_signature", "register_kind"]

Options = Mapping[str, Any]
Shape = tuple[str, ...]


@dataclass(frozen=True)
class KindSignature:
    """Name, version and tensors of one kind.

    Attributes:
        name: the value of `intervention` in a config.
        version: a positive integer; a reader refuses a version it does not know.
        tensors: tensor name → shape as words, `"rank"` and `"hidden"`.
        orthonormal: names of raw tensors whose rows are orthonormalised in forward; they need full rank.
        options: option name → check that returns an error text or None.
    """

    name: str
    version: int
    tensors: Mapping[str, Shape]
    orthonormal: frozenset[str] = frozenset()
    options: Mapping[str, Callable[[Any], str | None]] = field(default_factory=dict)

    def shapes(self, *, rank: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape for a rank and a hidden size."""
        sizes = {"rank": rank, "hidden": hidden}
        return {name: tuple(sizes[word] for word in shape) for name, shape in self.tensors.items()}

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
            if (problem := self.options[name](value)) is not None:
                raise ConfigError(f"options={{{name!r}: {value!r}}}: {problem}", value=value)


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


def kind_signature(name: str, *, version: int | None = None) -> KindSignature:
    """The signature of a kind.

    Raises:
        UnsupportedVersionError: the kind, or this version of it, is not registered.
    """
    signature = _KINDS.get(name) if isinstance(name, str) else None
    if signature is None:
        raise UnsupportedVersionError(
            f"intervention={name!r} is not a registered intervention",
            code="kind.unknown",
            value=name,
            rule=f"known are: {', '.join(known_kinds())}",
            fix="import the module that registers it, or check the spelling",
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
