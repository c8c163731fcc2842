"""`orthogonal_to`: what a new adapter's R is to keep out of, at every site; taken once, when the adapter is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peft_reft.config import ReftConfig
from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import Intervention, orthonormal_rows
from peft_reft.interventions.complement import COMPLEMENT, directions
from peft_reft.layer import CHILD, UNIT, Place, ReftLayer, UnitSpec
from peft_reft.runtime.state import ModelState

__all__ = ["NOTHING", "Former", "former_units"]


@dataclass(frozen=True)
class Former:
    """What a new adapter keeps out of.

    Attributes:
        units: a site's path → (adapter, unit) → intervention, of the adapters that `orthogonal_to` names.
        twin: a site's path → unit → directions, of an adapter that the new one is a copy of.
        recorded: the tensors of the file that the adapter is made for; None for one that is new.
    """

    units: Mapping[str, Mapping[Place, Intervention]] = field(default_factory=dict)
    twin: Mapping[str, Mapping[int, Tensor | None]] | None = None
    recorded: Mapping[str, Any] | None = None

    def at(self, layer: ReftLayer, specs: Sequence[UnitSpec]) -> dict[int, Tensor]:
        """Unit → directions `[k, hidden]`; none for units without an R, or where nothing is taken.

        Raises:
            ConfigError: together with what is taken, the ranks are more than the hidden size.
        """
        found = {}
        for spec in specs:
            taken = self._taken(layer, spec) if spec.group.orthogonal else None
            if taken is None:
                continue
            rows = spec.group.r if spec.group.signature.has_rank else 1
            if (left := spec.hidden_size - len(taken)) < rows:
                raise ConfigError(
                    f"orthogonal_to leaves {left} dimensions at {layer.path!r}, and R has {rows} rows",
                    value=rows,
                    rule="the ranks at a site add up to its hidden size at most",
                    fix="choose a lower r, or name fewer adapters",
                )
            found[spec.number] = taken
        return found

    def _taken(self, layer: ReftLayer, spec: UnitSpec) -> Tensor | None:
        if self.recorded is not None:  # room for what the file holds
            name = f"{MODEL_PREFIX}{layer.path}.{CHILD}.{UNIT}{spec.number}.{COMPLEMENT}"
            entry = self.recorded.get(name)
            return None if entry is None else torch.zeros(*entry["shape"])
        if self.twin is not None:
            return self.twin.get(layer.path, {}).get(spec.number)
        rotations = []
        for place, unit in self.units.get(layer.path, {}).items():
            if unit.orthonormal and layer.taps[place] == spec.tap:
                with torch.no_grad():
                    rows = orthonormal_rows(unit.raw_rotation().detach(), padded=unit.capacity is not None)
                rotations.append(rows[: unit.rank] if unit.ranked else rows)
        return directions(rotations) if rotations else None


NOTHING = Former()


def former_units(config: ReftConfig, adapter_name: str, configs: Mapping[str, Any], state: ModelState) -> Former:
    """What an adapter that is added now keeps out of.

    Raises:
        ConfigError: a name is unknown, the adapter's own, or of another method; or no named adapter has an R.
    """
    if config.orthogonal_to is None:
        return NOTHING
    if config.recorded_tensors is not None:
        return Former(recorded=config.recorded_tensors)
    twin = next((name for name, held in configs.items() if held is config and name != adapter_name), None)
    if twin is not None:  # a trainer's reference is made of the policy's very config
        return Former(twin={path: _directions_of(layer, twin) for path, layer in state.layers.items()})
    _check_names(config, adapter_name, configs)
    units = {
        path: {
            (name, number): layer.unit((name, number))
            for name in config.orthogonal_to
            for number in layer.units.get(name, ())
        }
        for path, layer in state.layers.items()
    }
    if not any(unit.orthonormal for members in units.values() for unit in members.values()):
        raise ConfigError(
            f"orthogonal_to={config.orthogonal_to!r}: none of them has an R",
            value=config.orthogonal_to,
            rule="an R keeps out of the rows of other R",
            fix="leave orthogonal_to out, or name adapters of a kind with an R, e.g. loreft",
        )
    return Former(units=units)


def _directions_of(layer: ReftLayer, name: str) -> dict[int, Tensor | None]:
    return {number: layer.unit((name, number)).taken for number in layer.units.get(name, ())}


def _check_names(config: ReftConfig, adapter_name: str, configs: Mapping[str, Any]) -> None:
    known = [name for name, held in configs.items() if isinstance(held, ReftConfig) and name != adapter_name]
    for name in config.orthogonal_to or ():
        if name not in known:
            raise ConfigError(
                f"orthogonal_to names {name!r}, and the model has no such ReFT adapter beside {adapter_name!r}",
                value=name,
                rule=f"an adapter keeps out of what others have taken; there are: {', '.join(known) or 'none'}",
                fix="add or load that adapter first",
            )
