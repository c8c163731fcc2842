"""What the edits of all sites need beside h, prepared in a few calls for all of them: thin products, or R."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from peft_reft.interventions import has_penalty, orthonormal_rows
from peft_reft.positions import is_transformed

from .activity import LiveUnit
from .alike import Group, apart, is_wide, names_of, stacked
from .frames import Frame, Prepared, Products
from .shards import is_distributed, is_gathered_alone, is_placeholder
from .situation import UnitKey
from .state import ModelState

__all__ = ["Operands"]

_hooks_of = attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Operands:
    """Prepares what edits need, once for a frame: when its first edit does, or before, for a forward that is a graph.

    Args:
        state: of the model.
    """

    def __init__(self, state: ModelState) -> None:
        self.state = state
        self.kept: dict[Any, tuple[list[Tensor], Any]] = {}
        self.grouped: tuple[Any, list[Group]] = (None, [])
        self.last: tuple[list[tuple[Group, list[Products]]], Prepared] = ([], {})

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model keeps nothing."""
        return {"state": self.state, "kept": {}, "grouped": (None, []), "last": ([], {})}

    def of(self, frame: Frame, hidden: Tensor) -> Prepared:
        """By (path of a site, unit): `Products` where the edit is affine, or else R for kinds that have one.

        A generation runs many frames, some of one stack only: there it is made once, for all stacks. Sharded
        parameters are left out: the unit computes with them itself, where the shards are gathered.

        Args:
            frame: of the forward that runs.
            hidden: what is edited first; it says whether the model computes in float64.
        """
        return self._put(frame, hidden.dtype) if frame.prepared is None else frame.prepared

    def ahead(self, frame: Frame) -> None:
        """Prepare a frame whose forward is a graph, where all that it needs hangs on parameters alone.

        The graph is then given thin products in place of making R anew at every call.

        Args:
            frame: of the forward that starts, without gradients.
        """
        if torch.compiler.is_compiling() or is_transformed() or frame.rows is not None or frame.prepared is not None:
            return
        if any(frame.plans.values()):
            groups = self._groups(frame.units)
            whole = sum(len(group.units) for group in groups) == sum(map(len, frame.units.values()))
            if whole and all(map(is_wide, groups)):
                self._put(frame, torch.float32)

    def keeps(self, prepared: Prepared) -> bool:
        """Whether later frames are given the same again, while no parameter changes."""
        return self.last[1] is prepared

    def _put(self, frame: Frame, dtype: torch.dtype) -> Prepared:
        prepared = frame.prepared = self._prepared(frame, dtype)
        if frame.keeper is not None:
            frame.keeper.prepared = prepared
        return prepared

    def _prepared(self, frame: Frame, dtype: torch.dtype) -> Prepared:
        if frame.rows is not None and frame.rows.stack is not None:
            return {}
        if torch.compiler.is_compiling() or is_transformed():
            return self._rotations(frame, {})
        made = [
            (group, self._affine(group, dtype))
            for group in self._groups(frame.units)
            if (frame.keeper is not None or any(map(frame.plans.get, group.stacks))) and self._may_fold(group)
        ]
        known, prepared = self.last
        if 0 < len(made) == len(known) and all(
            group is before and products is same for (group, products), (before, same) in zip(made, known, strict=True)
        ):
            return prepared
        found: Prepared = {}
        for group, products in made:
            found.update(zip(group.places, products, strict=True))
        if len(found) < sum(map(len, frame.units.values())):
            return found | self._rotations(frame, found)
        if all(any(products is kept for _, kept in list(self.kept.values())) for _, products in made):
            self.last = (made, found)
        return found

    def _groups(self, units: Mapping[str, Sequence[LiveUnit]]) -> list[Group]:
        """The units whose kind can be affine; worked out anew when others become active."""
        known, groups = self.grouped
        if known is not units:
            made: dict[Any, Group] = {}
            for path, members in units.items():
                layer = self.state.layers[path]
                for one in members:
                    unit = one.module
                    if "affine" not in type(unit).__dict__ or unit.act_fn is not None or unit._buffers:
                        continue
                    if unit.samples or has_penalty(unit):
                        continue  # its training looks at the rows that are edited
                    shapes = [(name, held.shape, held.dtype, held.device) for name, held in unit._parameters.items()]
                    alike = (type(unit), repr(unit.options), unit.capacity, *shapes)
                    if alike not in made:
                        made[alike] = Group(alike, set(), [], [], [], names_of(unit))
                    group = made[alike]
                    group.stacks.add(layer.stack)
                    group.places.append((path, one.key))
                    group.layers.append(layer)
                    group.units.append(unit)
            groups = list(made.values())
            self.grouped = (units, groups)
        return groups

    def _may_fold(self, group: Group) -> bool:
        """Whether nothing at the units changes what their formula says, and all their parameters are at hand."""
        training = group.layers[0].training
        for layer, unit in zip(group.layers, group.units, strict=True):
            if (
                layer.training is not training
                or unit.rows is not None
                or any(_hooks_of(unit))
                or (unit.training and unit.drops)
                or any(map(is_placeholder, unit._parameters.values()))
            ):
                return False
        return not is_distributed() or not any(
            is_gathered_alone(self.state.model, layer.path, held)
            for layer, unit in zip(group.layers, group.units, strict=True)
            for held in unit._parameters.values()
        )

    def _affine(self, group: Group, model_dtype: torch.dtype) -> list[Products]:
        """The thin products of each unit."""
        like, held = group.units[0], [unit._parameters for unit in group.units]
        dtype = torch.float64 if is_wide(group) or model_dtype == torch.float64 else torch.float32
        if torch.is_grad_enabled() and any(one.requires_grad for tensors in held for one in tensors.values()):
            names = list(like._parameters)
            parts = stacked([[tensors[name] for tensors in held] for name in names])
            return _folded(like, dict(zip(names, parts, strict=True)), dtype)
        joined = [torch.stack([tensors[name] for name in names for tensors in held]) for names in group.names]
        made: list[Products] = self._made(
            (group.places[0], group.alike, dtype),
            joined,
            lambda stacks: _folded(like, apart(group.names, stacks), dtype),
        )
        return made

    def _made(self, key: Any, raw: list[Tensor], make: Callable[[list[Tensor]], Any]) -> Any:
        """What is made of stacked parameters.

        Without gradients it is that of the forward before, where the parameters are the same. Their values say so,
        not their versions: TRL writes into a reference through `.data`, which counts no version. To look at values
        costs nothing on a CPU; an accelerator would have to be waited for.
        """
        if raw[0].device.type != "cpu" or any(held.requires_grad for held in raw):
            return make(raw)
        known = self.kept.get(key)
        if known is None or not all(map(_same, known[0], raw)):
            with torch.inference_mode(False):
                raw = [held.clone() if held.is_inference() else held for held in raw]
                known = self.kept[key] = (raw, make(raw))
        return known[1]

    def _rotations(self, frame: Frame, others: Prepared) -> Prepared:
        """R of the units that have no thin products."""
        groups: dict[Any, list[tuple[tuple[str, UnitKey], Tensor]]] = {}
        for path, layer in self.state.layers.items():
            if frame.keeper is None and frame.plans.get(layer.stack) is None:
                continue
            for one in frame.units.get(path, ()):
                if (path, one.key) in others:
                    continue
                unit = one.module if torch.compiler.is_compiling() else layer.unit((one.name, one.key[1]))
                for name in unit.orthonormal:
                    raw = getattr(unit, name)
                    if not is_gathered_alone(self.state.model, path, raw):
                        alike = (raw.shape, raw.dtype, raw.device, unit.taken is not None, unit.capacity is not None)
                        groups.setdefault(alike, []).append(((path, one.key), unit.raw_rotation()))
        found: Prepared = {}
        for alike, members in groups.items():
            rows = self._rows(alike, torch.stack([raw for _, raw in members]))
            found.update(zip((where for where, _ in members), rows.unbind(0), strict=True))
        return found

    def _rows(self, alike: Any, raw: Tensor) -> Tensor:
        """R of stacked raw parameters `[sites, rank, hidden]`."""
        padded = alike[-1]
        if torch.compiler.is_compiling() or is_transformed():
            return orthonormal_rows(raw, padded=padded)
        rows: Tensor = self._made(alike, [raw], lambda held: orthonormal_rows(held[0], padded=padded))
        return rows


def _same(known: Tensor, raw: Tensor) -> bool:
    return known.dtype == raw.dtype and known.shape == raw.shape and torch.equal(known, raw)


def _folded(like: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> list[Products]:
    """The thin products of units that are alike, of their stacked tensors `[units, …]` by name."""
    rotation = [orthonormal_rows(tensors.pop(name), padded=like.capacity is not None) for name in like.orthonormal]
    cast = {name: held.to(dtype) for name, held in tensors.items()}
    source, bias, projection = like.affine(cast, *(rows.to(dtype) for rows in rotation))
    if source.requires_grad:
        down, trained = source.detach().mT, source.unbind(0)
    else:
        down, trained = source.mT, [None] * len(source)
    columns = (down.unbind(0), bias.unbind(0), projection.unbind(0), trained)
    return [Products(*parts) for parts in zip(*columns, strict=True)]
