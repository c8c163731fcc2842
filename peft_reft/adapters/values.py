"""The value of a variable that an adapter sets (`rotated_interchange`), chosen at run time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.kinds import kind_signature
from peft_reft.interventions.rotated_interchange import RotatedInterchange
from peft_reft.lookup import layers_of, unknown_adapter

__all__ = ["set_value"]


def set_value(model: nn.Module, adapter: str, variable: str, value: Any) -> None:
    """Set a variable of an adapter of kind `rotated_interchange` to another value, in every forward from now on.

    It needs no reload and touches no parameter. The config says the same from then on, so an adapter is saved with the
    value that it has. Other adapters keep theirs, also where they were loaded from the same folder.

    Args:
        model: a model with the adapter, wrapped by PEFT or not.
        adapter: its name.
        variable: as its option `variable` says.
        value: one of its option `values`, or None: the edit is off, and h keeps its bits.

    Raises:
        ConfigError: an adapter, a variable or a value that is not known.

    Example: `set_value(model, "default", "S1", 7)`, then `model.generate(...)`.
    """
    layers = layers_of(model, adapter)
    config = getattr(model, "peft_config", {}).get(adapter)
    if not isinstance(config, ReftConfig):
        raise unknown_adapter(model, adapter)
    units = [layer.unit((adapter, number)) for layer in layers for number in layer.units[adapter]]
    found = [unit for unit in units if isinstance(unit, RotatedInterchange)]
    chosen = [unit for unit in found if unit.options["variable"] == variable]
    if not chosen:
        names = dict.fromkeys(str(unit.options["variable"]) for unit in found)
        raise ConfigError(
            f"adapter {adapter!r} sets no variable {variable!r}",
            value=variable,
            rule=f"it sets: {', '.join(names) or 'none; it has no intervention rotated_interchange'}",
        )
    stored = [_stored(unit, value) for unit in chosen]  # before any is changed
    for unit, given in zip(chosen, stored, strict=True):
        unit.value = given
    _note(config, variable, stored[0])
    for state in {id(layer.state): layer.state for layer in layers}.values():
        state.views[adapter] = replace(state.views[adapter], groups=config.groups())
        state.changed()


def _stored(unit: RotatedInterchange, value: Any) -> Any:
    """The value as the options list it."""
    values = list(unit.options["values"])
    if value is None:
        return None
    if isinstance(value, (str, bool, int, float)) and value in values:
        return values[values.index(value)]
    raise ConfigError(
        f"{unit.options['variable']}={value!r}",
        value=value,
        rule=f"its values are: {', '.join(map(repr, values[:12]))}{', …' if len(values) > 12 else ''}",
        fix="pass None to set none",
    )


def _note(config: ReftConfig, variable: str, value: Any) -> None:
    """Write the value where the config says the variable: in its own options, or in those of a group."""

    def noted(kind: str, options: Any) -> Any:
        if kind != RotatedInterchange.kind:
            return options
        every = kind_signature(kind).with_defaults(options or {})
        return {**(options or {}), "value": value} if every["variable"] == variable else options

    if config.interventions is None:
        config.options = noted(config.intervention, config.options)
        return
    config.interventions = [
        {
            **entry,
            "options": noted(entry.get("intervention", config.intervention), entry.get("options", config.options)),
        }
        for entry in config.interventions
    ]
