"""Name → class of every intervention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.kinds import COMPLEMENT, KindSignature, kind_signature, register_kind

if TYPE_CHECKING:
    from .base import Intervention

__all__ = ["intervention_class", "register_intervention"]

_CLASSES: dict[str, type[Intervention]] = {}


def register_intervention(name: str, *, version: int = 1) -> Callable[[type[Intervention]], type[Intervention]]:
    """Class decorator: make a subclass of `Intervention` known under a name, here and to the file format.

    Args:
        name: the value of `ReftConfig.intervention`.
        version: raised whenever the meaning of saved tensors changes; a file of another version is refused.

    Returns:
        The decorator; it gives the class back.

    Raises:
        ConfigError: the name stands for another kind already; a name, version or class that is none.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 64:
        raise ConfigError(
            f"name={str(name)[:60]!r}", value=name, rule="a kind's name has 1 to 64 printable characters"
        )
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"version={version!r} of {name!r}", value=version, rule="it is an int, 1 or more")

    def register(cls: type[Intervention]) -> type[Intervention]:
        if COMPLEMENT in getattr(cls, "tensors", {}):
            raise ConfigError(
                f"kind {name!r} has a tensor {COMPLEMENT!r}",
                value=COMPLEMENT,
                rule="that is what an R keeps out of (orthogonal_to), of whatever kind",
                fix="give it another name",
            )
        if not isinstance(cls, type) or not hasattr(cls, "option_table"):
            raise ConfigError(
                f"{str(cls)[:60]!r} is registered as {name!r}", value=cls, rule="a kind is a subclass of Intervention"
            )
        signature = KindSignature(
            name,
            version,
            tensors=dict(cls.tensors),
            orthonormal=cls.orthonormal,
            options=dict(cls.option_table),
            optional=dict(cls.optional),
            conflict=cls.options_conflict,
            activates=cls.activates,
            across_tokens=cls.across_tokens,
            module=cls.__module__,
        )
        register_kind(signature)
        cls.kind = name
        _CLASSES[name] = cls
        return cls

    return register


def intervention_class(name: str) -> type[Intervention]:
    """The class of a kind.

    Args:
        name: as in `ReftConfig.intervention`.

    Returns:
        The class.

    Raises:
        ConfigError: an unknown name; the error lists the known ones.
    """
    kind_signature(name)
    return _CLASSES[name]
