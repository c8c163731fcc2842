"""The frame of one forward: its positions and rotations, made at the root and gone when the forward ends.

Frames stand on a stack of the running thread. Nothing of a call outlives it: two forwards may precede one backward,
and threads may share a model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peft_reft.positions import RowPlan, plan_rows

from .resolve import UnitMask

if TYPE_CHECKING:
    from .hooks import Runtime

__all__ = ["Frame", "StackPlan", "UnitKey", "current_frame", "frame_stack"]

UnitKey = tuple[str, int]


@dataclass
class StackPlan:
    """What one stack edits in this forward."""

    batch: int
    length: int
    masks: Mapping[UnitKey, UnitMask]
    plans: dict[tuple[UnitKey, ...], RowPlan] = field(default_factory=dict)

    def rows(self, keys: Sequence[UnitKey]) -> RowPlan:
        """The rows for the units of a site; made once for all sites with the same units."""
        wanted = tuple(keys)
        if wanted not in self.plans:
            chosen = [self.masks[key] for key in wanted]
            widths = [entry.width for entry in chosen]
            total = None if None in widths else sum(width for width in widths if width is not None)
            masks = [entry.mask for entry in chosen]
            self.plans[wanted] = plan_rows(masks, total, exact=_may_read_values(masks[0].device, total))
        return self.plans[wanted]


@dataclass
class Frame:
    """One running forward.

    Attributes:
        owner: the runtime of the model that is running.
        plans: stack path → its plan; None where nothing is edited in this call.
        rotations: (site, unit) → R, computed for all sites in one call when the first is needed.
    """

    owner: Runtime
    plans: dict[str, StackPlan | None]
    rotations: dict[tuple[str, UnitKey], Tensor] | None = None


class _Frames(threading.local):
    def __init__(self) -> None:
        self.stack: list[Frame] = []


_FRAMES = _Frames()


def frame_stack() -> list[Frame]:
    """The frames of this thread, innermost last."""
    return _FRAMES.stack


def current_frame(owner: Runtime) -> Frame | None:
    """The innermost frame of a model's forward in this thread, or None outside of one."""
    for frame in reversed(_FRAMES.stack):
        if frame.owner is owner:
            return frame
    return None


def _may_read_values(device: torch.device, width: int | None) -> bool:
    """Whether exact rows are worth a look at values: on the CPU it costs nothing, elsewhere it synchronises."""
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or width is None
