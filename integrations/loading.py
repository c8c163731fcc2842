"""A folder or a repository, put on a base model: a ReFT, one of several, or a bundle with its LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import nn

from peft_reft import MixedReftModel, list_adapters
from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.errors import ConfigError

__all__ = ["load_adapters"]


def load_adapters(model: nn.Module, source: str, *, adapter: str | None = None, revision: str | None = None) -> Any:
    """A base model with the adapters of a folder or Hub repository.

    Args:
        model: the base; it is changed in place.
        source: folder or repository.
        adapter: names to be active, joined by `+`; None for all of a bundle, or for the only one.
        revision: of the repository.

    Raises:
        ConfigError: a name that is not there, or several adapters, none of them chosen.
        ReftError: see `PeftModel.from_pretrained` and `MixedReftModel.from_pretrained`.
    """
    members = {member.name: member for member in list_adapters(source, revision=revision)}
    chosen = None if adapter is None else adapter.split("+")
    if chosen is not None and (unknown := [name for name in chosen if name not in members]):
        raise ConfigError(
            f"{source} has no adapter {unknown[0]!r}",
            value=unknown[0],
            rule=f"it has {', '.join(members)}",
            fix="name one of these, or several joined by '+'",
        )
    if any(member.kind != "reft" for member in members.values()):
        mixed = MixedReftModel.from_pretrained(model, source, revision=revision)
        if chosen is not None:
            mixed.set_adapter(chosen)
        return mixed
    if chosen is None and len(members) > 1:
        raise ConfigError(
            f"{source} has {len(members)} ReFT adapters: {', '.join(members)}",
            value=source,
            rule="which of them is meant is yours to say",
            fix="name it with adapter (on the command line --adapter), or several joined by '+', e.g. "
            f"adapter={next(iter(members))}",
        )
    return _edits(model, source, [members[name] for name in chosen or members], revision)


def _edits(model: nn.Module, source: str, members: Sequence[Member], revision: str | None) -> PeftModel:
    """A base with some ReFTs of a folder, all of them active."""
    first, *others = members
    found = PeftModel.from_pretrained(model, source, adapter_name=first.name, **_place(first), revision=revision)
    for member in others:
        found.load_adapter(source, adapter_name=member.name, **_place(member), revision=revision)
    if others:
        found.base_model.set_adapter([member.name for member in members])
    return found


def _place(member: Member) -> dict[str, str]:
    return {} if member.folder == "." else {"subfolder": member.folder}
