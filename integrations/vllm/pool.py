"""Parameters of affine edits on the device, a slot for each: as many as fit, the least recently used makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError

from .packed import PackedUnit

__all__ = ["Pool", "SlotKey"]

SlotKey = tuple[str, int]
"""An adapter's key, and the number of a unit of it."""


class Pool:
    """`slots` places for units of rank up to `rank`, of every layer, made once: nothing is allocated while serving.

    A unit's edit is Pᵀ(Mh + c); lower ranks have rows of zeros, which add nothing. What falls out stays in host memory
    and is copied again when it is needed.

    Args:
        layers: of the model.
        slots: how many units fit.
        rank: the largest that fits.
        hidden_size: of the model.
        device: of the model.

    Attributes:
        packed: what a slot holds, of every layer in one piece, `[layers, slots, numbers]`; see `parts`.
        unsound: how many rows were left as they are since their edit is no number, long `[]`.
    """

    def __init__(self, *, layers: int, slots: int, rank: int, hidden_size: int, device: torch.device) -> None:
        self.rank: int = rank
        self.slots: int = slots
        self.device: torch.device = device
        size = 2 * rank * hidden_size + rank
        self.packed: Tensor = torch.zeros(layers, slots, size, dtype=torch.float32, device=device)
        parts = self.parts(self.packed)
        self.source: Tensor = parts[0]
        self.projection: Tensor = parts[1]
        self.bias: Tensor = parts[2]
        self.held: OrderedDict[SlotKey, int] = OrderedDict()
        self.free: list[int] = list(range(slots))[::-1]
        self.copies: int = 0
        self.unsound: Tensor = torch.zeros((), dtype=torch.long, device=device)

    @property
    def bytes(self) -> int:
        """Memory that the slots take on the device."""
        return self.packed.numel() * self.packed.element_size()

    def parts(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """M `[..., rank, hidden]`, P `[..., rank, hidden]` and c `[..., rank]` of slots as they lie, views of them."""
        matrix = (packed.shape[-1] - self.rank) // 2
        shape = (*packed.shape[:-1], self.rank, matrix // self.rank)
        source, projection = packed[..., :matrix], packed[..., matrix : 2 * matrix]
        return source.view(shape), projection.view(shape), packed[..., 2 * matrix :]

    def slots_of(self, units: Sequence[tuple[SlotKey, PackedUnit]]) -> dict[SlotKey, int] | None:
        """The slot of each unit, brought in where it is not there; None where they do not fit together."""
        if len(units) > self.slots:
            return None
        wanted = {key for key, _ in units}
        for key, unit in units:
            if key in self.held:
                self.held.move_to_end(key)
            else:
                self._bring(key, unit, wanted)
        return {key: self.held[key] for key in wanted}

    def drop(self, keys: Iterable[SlotKey]) -> None:
        """Free the slots of units that are gone."""
        for key in keys:
            if (slot := self.held.pop(key, None)) is not None:
                self.free.append(slot)

    def beside(self, units: Sequence[tuple[SlotKey, PackedUnit]]) -> tuple[Pool, dict[SlotKey, int]]:
        """A pool for one step that needs more units at once than there are slots."""
        layers, _, _, hidden = self.source.shape
        wider = Pool(layers=layers, slots=len(units), rank=self.rank, hidden_size=hidden, device=self.device)
        wider.unsound = self.unsound
        found = wider.slots_of(units)
        if found is None:  # pragma: no cover  # it was made as large as that
            raise ConfigError("a step's own slots do not hold its units")
        return wider, found

    def _bring(self, key: SlotKey, unit: PackedUnit, wanted: set[SlotKey]) -> None:
        if not self.free:
            oldest = next(name for name in self.held if name not in wanted)
            self.free.append(self.held.pop(oldest))
        slot = self.free.pop()
        layers, rank = torch.tensor(unit.layers, device=self.device), unit.source.shape[1]
        for target, given in ((self.source, unit.source), (self.projection, unit.projection), (self.bias, unit.bias)):
            target[:, slot, rank:] = 0
            target[layers, slot, :rank] = given.to(self.device)
        self.held[key] = slot
        self.copies += 1
