"""The parts of a step → what it edits at every layer: positions by the resolver of all forwards, then slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peft_reft.generation.requests import Batch, Request
from peft_reft.runtime.situation import Situation
from peft_reft.runtime.views import AdapterView

from .op import LayerEdit
from .packed import Packed, PackedModule
from .pool import Pool, SlotKey
from .segments import Even, Segments, cut, even_width
from .tracking import Part

__all__ = ["Edited", "edited_rows", "layer_edits"]

Longs = NDArray[np.int64]

ROOM = 4
"""What a layer adds to an edited row must fit too: an edit may end so far below the largest number."""


@dataclass(frozen=True)
class Edited:
    """The rows of a step that one unit of one adapter edits, long `[n]`."""

    key: SlotKey
    rows: Longs


def edited_rows(
    parts: Iterable[tuple[Part, int]], adapters: Mapping[str, Packed], *, length: int, ids: Tensor | None
) -> list[Edited]:
    """Which rows of a packed forward each unit edits.

    Adapters whose positions read alike are resolved together, so the work does not grow with their number.

    Args:
        parts: of the requests, each with the row where its tokens start.
        adapters: key → adapter.
        length: rows of the forward.
        ids: token ids `[length]`, needed where positions name a special token.
    """
    alike: dict[object, list[tuple[Part, int]]] = {}
    for part, column in parts:
        alike.setdefault(_reading(adapters[part.adapter].view), []).append((part, column))
    found: dict[SlotKey, list[Longs]] = {}
    for members in alike.values():
        members.sort(key=lambda member: member[1])
        for unit, rows, owner in _resolved(members, adapters[members[0][0].adapter].view, length, ids):
            for place in np.unique(owner):
                key = (members[place][0].adapter, unit)
                found.setdefault(key, []).append(rows[owner == place])
    return [Edited(key, np.concatenate(rows)) for key, rows in found.items()]


def _reading(view: AdapterView) -> object:
    """What decides which tokens an adapter edits."""
    groups = tuple((str(group.positions), group.share_weights, group.turns) for group in view.groups)
    return groups, tuple(sorted(view.token_ids.items()))


def _resolved(
    members: Sequence[tuple[Part, int]], view: AdapterView, length: int, ids: Tensor | None
) -> Iterable[tuple[int, Longs, Longs]]:
    """(unit, its rows, for each the place of its request among the members)."""
    requests = tuple(Request(part.prompt, part.past, part.length, column) for part, column in members)
    known = torch.full((1, length), -1) if ids is None or not view.token_ids else ids.cpu()[None, :length]
    plan = Batch(requests, length, known, torch.device("cpu")).plan([view], Situation())
    starts = np.array([column for _, column in members])
    for (_, unit), mask in () if plan is None else plan.masks.items():
        rows = mask.mask[0].nonzero().squeeze(1).numpy()
        if len(rows):
            yield unit, rows, np.searchsorted(starts, rows, side="right") - 1


def layer_edits(
    edited: Sequence[Edited], adapters: Mapping[str, Packed], pool: Pool, *, layers: int
) -> dict[int, LayerEdit]:
    """Number of a layer → its edit; layers where the same units edit share their rows and pieces.

    Args:
        edited: of the step.
        adapters: key → adapter.
        pool: of affine units; they are brought in.
        layers: of the model.
    """
    affine = [(one.key, adapters[one.key[0]].affine[one.key[1]]) for one in edited if _is_affine(one, adapters)]
    slots = pool.slots_of(affine)
    if slots is None:
        pool, slots = pool.beside(affine)
    shared: dict[tuple[int, ...], _Rows] = {}
    found: dict[int, LayerEdit] = {}
    for layer in range(layers):
        here = tuple(
            place for place, one in enumerate(edited) if layer in adapters[one.key[0]].layers.get(one.key[1], ())
        )
        if not here:
            continue
        if here not in shared:
            shared[here] = _rows_of([edited[place] for place in here], slots, pool.device)
        rows = shared[here]
        modules = [(adapters[key[0]].modules[key[1]][layer], places) for key, places in rows.others]
        found[layer] = _Edit(rows.rows, rows.pieces, pool, layer, modules)
    return found


def _is_affine(one: Edited, adapters: Mapping[str, Packed]) -> bool:
    return one.key[1] in adapters[one.key[0]].affine


@dataclass(frozen=True)
class _Rows:
    """Rows of the layers where the same units edit, and the places among them of each unit's."""

    rows: Tensor
    pieces: Even | Segments | None
    others: tuple[tuple[SlotKey, Tensor], ...]


def _rows_of(edited: Sequence[Edited], slots: Mapping[SlotKey, int], device: torch.device) -> _Rows:
    return _even_rows(edited, slots, device) or _any_rows(edited, slots, device)


def _even_rows(edited: Sequence[Edited], slots: Mapping[SlotKey, int], device: torch.device) -> _Rows | None:
    """The rows in the order of their units, where each is of one affine unit and all units have about as many."""
    if not all(one.key in slots for one in edited):
        return None
    rows, lengths = np.concatenate([one.rows for one in edited]), np.array([len(one.rows) for one in edited])
    width = even_width(lengths)
    if not width or len(np.unique(rows)) < len(rows):
        return None
    numbers = np.repeat(np.array([slots[one.key] for one in edited]), lengths // width)
    return _Rows(torch.from_numpy(rows).to(device), Even(torch.from_numpy(numbers).to(device), width), ())


def _any_rows(edited: Sequence[Edited], slots: Mapping[SlotKey, int], device: torch.device) -> _Rows:
    rows = np.unique(np.concatenate([one.rows for one in edited]))
    places = [np.searchsorted(rows, one.rows) for one in edited]
    affine = [(place, slots[one.key]) for one, place in zip(edited, places, strict=True) if one.key in slots]
    pieces = None
    if affine:
        numbers = np.concatenate([np.full(len(place), slot, dtype=np.int64) for place, slot in affine])
        pieces = cut(np.concatenate([place for place, _ in affine]), numbers, device)
    others = tuple(
        (one.key, torch.from_numpy(place).to(device))
        for one, place in zip(edited, places, strict=True)
        if one.key not in slots
    )
    return _Rows(torch.from_numpy(rows).to(device), pieces, others)


@dataclass(frozen=True)
class _Edit:
    """The edit of one layer in one step; all units see the same h, and their deltas are added.

    On the CPU products are computed in float64 and rounded once, as the tuner does: a row then has the bits of the
    same row alone. Elsewhere they are computed in float32.

    A row whose edit leaves the range of numbers stays as it is, and is counted: what is no number would stand in a
    block of keys and values, which attention multiplies by zero for others that use it later, and that is none either.
    """

    rows: Tensor
    pieces: Even | Segments | None
    pool: Pool
    layer: int
    modules: Sequence[tuple[PackedModule, Tensor]]

    def edited(self, hidden: Tensor) -> Tensor:
        """h′ `[n, hidden]` for h `[n, hidden]` at `rows`."""
        states = hidden.to(torch.float64 if hidden.device.type == "cpu" else torch.float32)
        pieces, total = self.pieces, states
        if isinstance(pieces, Even):
            total = self._products(states.view(-1, pieces.width, states.shape[1]), pieces.slots, add=True).flatten(
                0, 1
            )
        elif pieces is not None:
            picked = states.index_select(0, pieces.places.reshape(-1)).view(*pieces.places.shape, -1)
            delta = self._products(picked, pieces.slots, add=False).flatten(0, 1)
            total = total.index_add(0, pieces.targets, delta.index_select(0, pieces.filled))
        for module, places in self.modules:
            total = total.index_add(0, places, module.delta(states.index_select(0, places)))
        return self._sound(total.to(hidden.dtype), hidden)

    def _products(self, picked: Tensor, slots: Tensor, *, add: bool) -> Tensor:
        """The deltas `[pieces, width, hidden]` of h of the same shape, or h′: one gather, two batched products."""
        held = self.pool.packed[self.layer].index_select(0, slots).to(picked.dtype)
        source, projection, bias = self.pool.parts(held)
        inner = torch.baddbmm(bias[:, None], picked, source.mT)
        return torch.baddbmm(picked, inner, projection) if add else torch.bmm(inner, projection)

    def _sound(self, made: Tensor, hidden: Tensor) -> Tensor:
        """h′ where it is a number with room above, else h."""
        largest = torch.finfo(made.dtype).max / ROOM
        if made.device.type == "cpu":  # which has not to be waited for
            low, high = torch.aminmax(made)
            if -largest <= float(low) and float(high) <= largest:
                return made
        sound = made.abs().amax(1, keepdim=True) <= largest  # no number is not either
        self.pool.unsound += (~sound).sum()
        return torch.where(sound, made, hidden)
