"""Which rows of a stack's hidden states are edited in one forward, and by which units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import PositionError
from peft_reft.positions import RowPlan, is_vmapped, plan_rows

from .situation import UnitKey, UnitMask

__all__ = ["StackPlan"]


@dataclass
class StackPlan:
    """What one stack edits in this forward.

    Attributes:
        batch, length: of the tokens computed.
        masks: the tokens that each unit edits.
        past: cached slots before them.
        row_by_row: whether rows have adapters of their own, so that the units of two adapters never share a row.
        whole: whether rows are planned with the same number of slots for every row of the batch.
        outlives: whether it serves later calls too, so that nothing in it may be a tensor of inference mode.
    """

    batch: int
    length: int
    masks: Mapping[UnitKey, UnitMask]
    past: int = 0
    row_by_row: bool = False
    whole: bool = False
    outlives: bool = False
    plans: dict[tuple[UnitKey, ...], RowPlan] = field(default_factory=dict)

    @property
    def shape(self) -> torch.Size:
        """`[batch, seq]`, read off a mask: a compiler takes the numbers for constants."""
        return next(iter(self.masks.values())).mask.shape

    def rows(self, keys: Sequence[UnitKey]) -> RowPlan:
        """The rows for the units of a site; made once for all sites with the same units."""
        wanted = tuple(keys)
        if wanted not in self.plans:
            chosen = [self.masks[key] for key in wanted]
            total = self._width(wanted)
            masks = [entry.mask for entry in chosen]
            exact = not self.whole and _may_read_values(masks)
            with torch.inference_mode(False) if self.outlives else nullcontext():
                self.plans[wanted] = plan_rows(masks, total, exact=exact)
        return self.plans[wanted]

    def make_rows(self, sites: Iterable[Sequence[Any]]) -> None:
        """Make the rows for the units at work at some sites now, and not where the first of them is edited."""
        for units in sites:
            for tap in dict.fromkeys(one.tap for one in units):
                self.rows([one.key for one in units if one.tap == tap])

    def _width(self, keys: Sequence[UnitKey]) -> int | None:
        """How many tokens of a row the units can edit together at most; None if only the values say."""
        by_adapter: dict[int, int] = {}
        for adapter, unit in keys:
            width = self.masks[adapter, unit].width
            if width is None:
                return None
            by_adapter[adapter] = by_adapter.get(adapter, 0) + width
        return max(by_adapter.values()) if self.row_by_row else sum(by_adapter.values())

    def sequences(self, keys: Sequence[UnitKey]) -> Tensor:
        """Which sequence each row of `rows(keys)` belongs to, long `[n]`.

        Raises:
            PositionError: part of the sequence is in the cache, so what depends on all of it cannot be computed.
        """
        if self.past:
            raise PositionError(
                "an edit that depends on its whole sequence runs on top of a cache",
                code="positions.across_tokens",
                rule="kinds such as 'reft_r1' need all edited tokens of a sequence in one forward",
                fix="use positions of the prompt only, prefill in one piece, or generate with use_cache=False",
            )
        found = self.masks[keys[0]]
        rows, length = self.rows(keys).rows, found.mask.shape[1]
        row = rows // length * length
        return row if found.start is None else row + found.start.reshape(-1)[rows]


def _may_read_values(masks: Sequence[Tensor]) -> bool:
    """Whether rows may be exact, for which values are looked at: an accelerator would have to be waited for."""
    return not torch.compiler.is_compiling() and masks[0].device.type == "cpu" and not any(map(is_vmapped, masks))
