"""What data must not be for positions to be right: rows cut anywhere, stated positions that preparation loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.positions import Positions
from peft_reft.runtime import ModelState, state_of
from peft_reft.runtime.inputs import EXPLICIT

__all__ = ["active_specs", "has_reft", "refuse_lost_columns"]


def has_reft(model: Any) -> bool:
    """Whether a model has ReFT adapters, active or not."""
    return bool(_states(model))


def active_specs(model: Any, config: Any) -> list[tuple[str, Positions]]:
    """(adapter, positions) of everything that will edit: of the adapter to be made, and of a model's active ones.

    Args:
        model: as given to a trainer: a name, a plain model or one with adapters.
        config: the trainer's `peft_config`, or None.
    """
    specs = []
    if isinstance(config, ReftConfig):
        specs += [("default", group.positions) for group in config.groups()]
    for state in _states(model):
        names = dict.fromkeys(name for layer in state.layers.values() for name, _ in layer.active_keys())
        specs += [(name, group.positions) for name in names for group in state.views[name].groups]
    return specs


def refuse_lost_columns(dataset: Any, args: Any, *, packing: bool) -> None:
    """Refuse to prepare a data set that states positions in a way that loses or moves them.

    Args:
        dataset: rows.
        args: the trainer's configuration.
        packing: whether it is packed, which keeps `input_ids` and `labels` only.

    Raises:
        ConfigError: the data set states positions, and they would not survive.
    """
    cuts_heads = args.max_length is not None and getattr(args, "truncation_mode", None) == "keep_end"
    if not packing and not cuts_heads:
        return
    row: Mapping[str, Any] = next(iter(dataset), {})
    for name in EXPLICIT:
        if name in row:
            raise ConfigError(
                f"the data set has the column {name!r}, and {'packing is on' if packing else 'keep_end cuts rows'}",
                code="positions.packing" if packing else "positions.truncation",
                value=name,
                rule="packing keeps input_ids and labels only, so stated positions would be lost"
                if packing
                else "positions count from a row's first token, which is cut off",
                fix="set packing=False (padding_free=True keeps the columns), or mask the prompt's labels with -100 "
                "instead of stating it"
                if packing
                else "cut the rows and their positions yourself, and set max_length=None",
            )


def _states(model: Any) -> list[ModelState]:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    found = (state_of(module) for module in modules)
    return [state for state in found if state is not None]
