"""Names of adapters: known ones, free ones, and those that PEFT could not tell from parts of a parameter's name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from peft_reft.hub_format.errors import ConfigError, shown
from peft_reft.hub_format.kinds import kind_signature, known_kinds
from peft_reft.runtime.row_choice import BASE

__all__ = ["check_free", "check_known", "check_names_apart"]

_OURS = re.compile(r"reft_\d+|\d+|base_model|model|modules_to_save|original_module")


def check_names_apart(names: Iterable[str], sites: Collection[str]) -> None:
    """Refuse an adapter's name that stands elsewhere in the names of its parameters.

    PEFT takes the name out of `….layers.0.reft.reft_0.<adapter>.bias` when it saves (peft/utils/save_and_load.py,
    `get_peft_model_state_dict`): of an adapter named `bias` it would take out the wrong part.

    Args:
        names: of all adapters of the model.
        sites: dotted names of the modules that one of them edits.

    Raises:
        ConfigError: names the adapter.
    """
    tensors = {tensor for kind in known_kinds() for tensor in kind_signature(kind).tensors}
    parts = {part: site for site in sites for part in site.split(".")}
    taken = tensors | set(parts)
    for name in names:
        if name == BASE:
            raise ConfigError(
                f"the adapter name {name!r} is taken",
                code="name",
                value=name,
                rule="in adapter_names it is a row without an adapter, so an adapter of that name would edit no row",
                fix="choose another name, e.g. 'base_edit'",
            )
        if name in taken or _OURS.fullmatch(name):
            raise ConfigError(
                f"the adapter name {name!r} is part of the names of the model's own parameters",
                code="name",
                value=name,
                rule=f"a name is none of the parts of {parts.get(name, next(iter(sites)))!r}, no number, and no "
                "tensor of an intervention",
                fix=f"choose another name, e.g. {name + '_edit'!r}",
            )


def check_known(names: Iterable[object], known: Collection[str]) -> None:
    """Refuse a name that no adapter of a model has."""
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ConfigError(
                f"there is no adapter {name!r}",
                value=name,
                rule=f"known are: {', '.join(known) or 'none'}",
                fix="add it with add_adapter or load_adapter",
            )


def check_free(name: str, known: Collection[str]) -> None:
    """Refuse a name that an adapter of a model has, or that is none."""
    if not isinstance(name, str):
        raise ConfigError(f"the adapter name is {shown(name)}", code="name", value=name, rule="a name is a str")
    if name in known:
        raise ConfigError(f"there is an adapter {name!r} already", value=name, fix="choose another name")
