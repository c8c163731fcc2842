"""Which sites of a frame have one affine edit of the whole output, which then is made in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peft_reft.positions import is_transformed
from peft_reft.sites import Tap

from .frames import Frame, Prepared, Products, Ready
from .operands import Operands
from .plan import StackPlan
from .scales import Scales
from .window import Room, window_of

__all__ = ["ReadyEdits"]

_WHOLE = Tap()
"""The output as it is, all of it."""


class _Kept(NamedTuple):
    """What the edits of a frame were made of; where all of it is the same again, so are they.

    Attributes:
        units, plans: of the frame.
        prepared: for it.
        dtype: of the hidden states.
        factors: the factors of a site, an adapter, and the one that it has there.
        found: the edits.
    """

    units: Mapping[str, Any]
    plans: Mapping[str, StackPlan | None]
    prepared: Prepared
    dtype: torch.dtype
    factors: list[tuple[Scales, str, float]]
    found: dict[str, Ready]

    def holds(self, frame: Frame, prepared: Prepared, dtype: torch.dtype) -> bool:
        """Whether a frame's edits are these."""
        return (
            self.prepared is prepared
            and self.units is frame.units
            and self.dtype is dtype
            and self.plans.keys() == frame.plans.keys()
            and all(frame.plans[path] is plan for path, plan in self.plans.items())
            and all(factors.get(name) == factor for factors, name, factor in self.factors)
        )


class ReadyEdits:
    """Puts edits together where a frame needs them: once, when its first edit does.

    Args:
        operands: of the model.
    """

    def __init__(self, operands: Operands) -> None:
        self.operands = operands
        self.kept: _Kept | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model keeps nothing."""
        return {"operands": self.operands, "kept": None}

    def of(self, frame: Frame, hidden: Tensor) -> dict[str, Ready]:
        """Path of a site → its edit, for those that have it.

        Args:
            frame: of the forward that runs.
            hidden: what is edited first.
        """
        prepared, dtype = self.operands.of(frame, hidden), hidden.dtype
        if torch.compiler.is_compiling() or is_transformed() or frame.rows is not None:
            return {}
        kept = self.kept
        if kept is not None and kept.holds(frame, prepared, dtype):
            return kept.found
        found: dict[str, Ready] = {}
        factors: list[tuple[Scales, str, float]] = []
        planned: dict[Any, tuple[torch.Size, Tensor, Tensor | None, Room | None]] = {}
        for path, units in frame.units.items():
            one, layer = units[0], self.operands.state.layers[path]
            stack, tap = layer.stack, one.tap
            plan = frame.plans.get(stack)
            products = prepared.get((path, one.key))
            if len(units) > 1 or plan is None or not isinstance(products, Products) or tap != _WHOLE:
                continue
            factor = layer.scaling[one.name]
            factors.append((layer.scaling, one.name, factor))
            if factor != 1.0:
                continue
            hidden_size, rank = products.down.shape
            alike = stack, one.key, products.down.shape, products.down.dtype
            if alike not in planned:
                chosen = plan.rows((one.key,))
                member = chosen.members[0]
                used = None if member is None else member[:, None]
                # looked at once for all calls of this shape, not for a plan of one call
                seen = plan.outlives and used is None and chosen.rows.device.type == "cpu"
                window = window_of(chosen.rows, hidden_size) if seen else None
                room = None if window is None else Room(window, rank, products.down.dtype)
                planned[alike] = torch.Size((*plan.shape, hidden_size)), chosen.rows, used, room
            trained = products.source is not None or products.bias.requires_grad or products.up.requires_grad
            found[path] = Ready(dtype, *planned[alike], products, trained)
        if self.operands.keeps(prepared) and all(plan is None or plan.outlives for plan in frame.plans.values()):
            self.kept = _Kept(frame.units, frame.plans, prepared, dtype, factors, found)
        return found
