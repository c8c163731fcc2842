"""Adapters of one structure, stacked: one gather for all layers of a call, one batched product per layer.

What is stacked is a copy, kept on the model beside the adapters and renewed slot by slot where a parameter has changed
since. An edit then costs the same for one adapter as for one per row.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from peft_reft.interventions import Intervention, orthonormal_rows
from peft_reft.positions import is_transformed
from peft_reft.runtime.state import ModelState

__all__ = ["AdapterStack", "StackStore", "StackedUnit", "Stacks", "Structure", "stacks_of"]

Place = tuple[str, int]
"""A site's path, and the number of a unit there."""
ROTATION = "orthonormal"


@dataclass(frozen=True)
class StackedUnit:
    """One unit of a site for a batch in which every row has its own parameters."""

    unit: Any
    batch: int
    rotation: Tensor | None
    scale: Tensor | None

    def __call__(self, rows: Tensor, rotation: Tensor | None = None) -> Tensor:
        """The delta of gathered hidden states `[batch · k, hidden]`, k of each row of the batch."""
        hidden = rows.view(self.batch, -1, rows.shape[-1])
        given = () if self.rotation is None else (self.rotation.to(rows.dtype),)
        delta: Tensor = self.unit.edit_delta(hidden, *given)
        return (delta if self.scale is None else delta * self.scale).reshape(rows.shape)


@dataclass
class AdapterStack:
    """The stacked parameters of the adapters that a call names, row by row.

    Attributes:
        store: all that has been stacked of this structure.
        slots: of each row's adapter in the store; 0 for rows without one, which nothing edits.
        scales: site → the factor of each row's adapter; None where all are 1.
        gathered: size of a batch → its parameters, gathered once for a whole call.
    """

    store: StackStore
    slots: tuple[int, ...]
    scales: Mapping[str, list[float]] | None
    gathered: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def unit(self, path: str, number: int, batch: int) -> StackedUnit:
        """A site's unit for a batch, whose rows may repeat those of `adapter_names`."""
        repeats = batch // len(self.slots)
        device = next(iter(self.store.tensors.values())).device
        if batch not in self.gathered:
            slots = torch.tensor(self.slots, device=device).repeat_interleave(repeats)
            self.gathered[batch] = {name: whole.index_select(0, slots) for name, whole in self.store.tensors.items()}
        place = self.store.places[path, number]
        tensors = {name: whole[:, place] for name, whole in self.gathered[batch].items()}
        rotation = tensors.pop(ROTATION, None)
        scale = None
        if self.scales is not None:
            scale = torch.tensor(self.scales[path], device=device).repeat_interleave(repeats)[:, None, None]
        return StackedUnit(_with_tensors(self.store.template, tensors), batch, rotation, scale)


@dataclass
class StackStore:
    """Every adapter of one structure that a call has named so far.

    Attributes:
        places: (site, unit) → its place in the second dimension.
        template: a unit of theirs.
        slots: adapter → its place in the first dimension.
        free: places there that deleted adapters have left.
        taken: adapter → its units and their tensors, as they were when they were stacked.
        tensors: name → `[adapters, places, …]`; a vector per unit stands as one row, so that it adds to tokens.
    """

    places: dict[Place, int]
    template: Intervention
    slots: dict[str, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    taken: dict[str, tuple[list[Intervention], Taken]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, units: list[Intervention]) -> None:
        """Stack an adapter that is new here, or has changed."""
        held = self.taken.get(name)
        if held is not None and all(map(is_, held[0], units)) and held[1].still_holds():
            return
        self._write(name, units)
        self.taken[name] = (units, Taken.of(units))

    def drop(self, name: str) -> None:
        """Leave an adapter's place to the next one."""
        self.taken.pop(name, None)
        if name in self.slots:
            self.free.append(self.slots.pop(name))

    def _write(self, name: str, units: Sequence[Intervention]) -> None:
        fresh = {
            key: torch.stack([unit.named_tensors()[key].detach() for unit in units])
            for key in self.template.named_tensors()
        }
        for key in self.template.orthonormal:
            fresh[ROTATION] = orthonormal_rows(fresh.pop(key), padded=True)
        if name not in self.slots:
            self.slots[name] = self.free.pop() if self.free else len(self.slots)
        slot = self.slots[name]
        for key, values in fresh.items():
            values = values if values.dim() > 2 else values[:, None]  # a vector of each place: one row
            held = self.tensors.get(key)
            if held is None or held.shape[0] <= slot or held.device != values.device:
                grown = values.new_zeros((max(8, 2 * slot), *values.shape))
                if held is not None:
                    grown[: held.shape[0]] = held.to(values.device)
                self.tensors[key] = held = grown
            held[slot] = values


@dataclass(frozen=True)
class Taken:
    """The tensors of an adapter as they were when they were stacked.

    Attributes:
        owners: what modules keep their parameters and buffers in.
        tensors: that stood there.
        versions: of them, and the first one's address: what changes when a tensor is written to, or moved.
    """

    owners: Sequence[Mapping[str, Tensor | None]]
    tensors: list[Any]
    versions: list[int]

    @classmethod
    def of(cls, units: Sequence[Intervention]) -> Taken:
        """Of an adapter's units."""
        owners = [owner for unit in units for owner in (unit._parameters, unit._buffers) if owner]
        tensors = _in(owners)
        return cls(owners, tensors, _versions(tensors))

    def still_holds(self) -> bool:
        """Whether none was written to since, moved, or replaced: `functional_call` puts others in their place."""
        present = _in(self.owners)
        return all(map(is_, self.tensors, present)) and _versions(self.tensors) == self.versions


def _in(owners: Sequence[Mapping[str, Tensor | None]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, owners)))  # type: ignore[arg-type]  # they are dicts


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors] + [tensors[0].data_ptr()]


def stacks_of(state: ModelState) -> Stacks:
    """What has been stacked on a model; nothing, where nobody has asked before."""
    if "stacks" not in state.kept:
        state.kept["stacks"] = Stacks(state)
    found: Stacks = state.kept["stacks"]
    return found


class Stacks:
    """What has been stacked on one model.

    Args:
        state: of the model.
    """

    def __init__(self, state: ModelState) -> None:
        self.state = state
        self.stores: dict[Structure, StackStore] = {}
        self.structures: dict[str, tuple[Any, Structure | None]] = {}

    def for_rows(self, rows: Sequence[Sequence[str]]) -> AdapterStack | None:
        """The stack for rows that name at most one adapter each, all of one structure; None where they are not.

        None also inside a transform of `torch.func`: it differentiates by the adapters' own parameters, of which a
        stack holds copies, and what it computes must not be kept.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        if len(names) < 2 or any(len(row) > 1 for row in rows) or is_transformed():
            return None
        structure = self._structure(names[0])
        if structure is None or any(self._structure(name) != structure for name in names):
            return None
        layers = self.state.layers
        places = structure.places
        units = {name: [layers[path].unit((name, number)) for path, number, _ in places] for name in names}
        if not all(unit.stackable for chosen in units.values() for unit in chosen):
            return None
        if structure not in self.stores:
            order = {(path, number): place for place, (path, number, _) in enumerate(places)}
            self.stores[structure] = StackStore(order, copy.copy(units[names[0]][0]))  # what is set later stays there
        store = self.stores[structure]
        with torch.inference_mode(False), torch.no_grad():  # what is kept must take writes after an inference call
            for name in names:
                store.take(name, units[name])
        scales = {path: [layers[path].scaling[row[0]] if row else 1.0 for row in rows] for path, _, _ in places}
        plain = all(scale == 1.0 for of_site in scales.values() for scale in of_site)
        slots = tuple(store.slots[row[0]] if row else 0 for row in rows)
        return AdapterStack(store, slots, None if plain else scales)

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        self.structures.pop(name, None)
        for structure, store in list(self.stores.items()):
            store.drop(name)
            if not store.slots:
                del self.stores[structure]

    def _structure(self, name: str) -> Structure | None:
        view = self.state.views[name]
        known = self.structures.get(name)
        if known is None or known[0] is not view:
            known = self.structures[name] = (view, _structure_of(self.state, name))
        return known[1]


@dataclass(frozen=True)
class Structure:
    """What adapters share whose parameters can be stacked: positions, sites, kind and shapes."""

    groups: tuple[Any, ...]
    token_ids: tuple[tuple[str, int], ...]
    has_completion: bool
    places: tuple[tuple[str, int, Any], ...]
    kind: tuple[Any, ...]


def _structure_of(state: ModelState, name: str) -> Structure | None:
    """The structure of an adapter; None where its units differ among themselves or cannot be stacked."""
    view = state.views[name]
    groups = tuple((str(group.positions), group.turns, group.share_weights) for group in view.groups)
    places, kinds = [], set()
    for path, layer in state.layers.items():
        for number in layer.units.get(name, ()):
            unit = layer.unit((name, number))
            broadcasts = type(unit).__dict__.get("broadcasts", False)  # not inherited: a subclass has another formula
            if unit.taken is not None or not broadcasts:
                return None
            tensors = unit.named_tensors()
            shapes = tuple((key, tuple(tensor.shape)) for key, tensor in tensors.items())
            devices = tuple(str(tensor.device) for tensor in tensors.values())
            kinds.add((type(unit), unit.act_fn, repr(sorted(unit.options.items())), shapes, devices))
            places.append((path, number, layer.taps[name, number]))
    if len(kinds) != 1:
        return None
    ids = tuple(sorted(view.token_ids.items()))
    return Structure(groups, ids, state.has_completion[name], tuple(places), kinds.pop())


def _with_tensors(unit: Intervention, tensors: Mapping[str, Tensor]) -> Any:
    """A copy of a unit that computes with other tensors; the unit itself, which threads share, is left alone."""
    twin = copy.copy(unit)
    object.__setattr__(twin, "_parameters", {})
    object.__setattr__(twin, "_buffers", {})
    for name, tensor in tensors.items():
        object.__setattr__(twin, name, tensor)
    return twin
