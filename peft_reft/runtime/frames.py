"""The frame of one forward: its positions and rotations, made at the root and gone when the forward ends.

Frames stand on a stack of the running thread. Nothing of a call outlives it: two forwards may precede one backward,
and threads may share a model.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import PositionError
from peft_reft.positions import RowPlan, plan_rows

from .resolve import UnitMask

if TYPE_CHECKING:
    from .hooks import Runtime

__all__ = [
    "Frame",
    "StackPlan",
    "UnitKey",
    "close_frame",
    "current_frame",
    "frame_in_use",
    "frame_stack",
    "open_frame",
]

UnitKey = tuple[int, int]
"""An adapter's place among those that edit the stack, and the number of a unit of it."""


@dataclass
class StackPlan:
    """What one stack edits in this forward.

    Attributes:
        batch, length: of the tokens computed.
        masks: the tokens that each unit edits.
        past: cached slots before them.
        row_by_row: whether rows have adapters of their own, so that the units of two adapters never share a row.
        whole: whether rows are planned with the same number of slots for every row of the batch.
    """

    batch: int
    length: int
    masks: Mapping[UnitKey, UnitMask]
    past: int = 0
    row_by_row: bool = False
    whole: bool = False
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
            exact = not self.whole and _may_read_values(masks[0].device, total)
            self.plans[wanted] = plan_rows(masks, total, exact=exact)
        return self.plans[wanted]

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
        start = self.masks[keys[0]].start
        rows = self.rows(keys).rows
        length = start.shape[1]
        return rows // length * length + start.reshape(-1)[rows]


@dataclass
class Frame:
    """One running forward.

    Attributes:
        owner: the runtime of the model that is running.
        plans: stack path → its plan; None where nothing is edited in this call.
        counts_from_end: whether an edit depends on where the prompt of this call ends.
        rotations: (site, unit) → R, computed for all sites in one call when the first is needed.
    """

    owner: Runtime
    plans: dict[str, StackPlan | None]
    counts_from_end: bool = False
    rotations: dict[tuple[str, UnitKey], Tensor] | None = None


@dataclass(frozen=True)
class _Open:
    """A frame in use: the module whose forward runs, and Python's own frame of that call."""

    frame: Frame
    module: nn.Module
    call: FrameType | None


class _Frames(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Open] = []


_FRAMES = _Frames()


def frame_stack() -> list[Frame]:
    """The frames of this thread, innermost last."""
    return [entry.frame for entry in _FRAMES.stack]


def current_frame(owner: Runtime) -> Frame | None:
    """The innermost frame of a model's forward in this thread, or None outside of one."""
    _drop_interrupted()
    return next((entry.frame for entry in reversed(_FRAMES.stack) if entry.frame.owner is owner), None)


def open_frame(frame: Frame, module: nn.Module) -> None:
    """Called by a pre-hook of `module`: the frame holds until the module's forward ends."""
    call = None if torch.compiler.is_compiling() else sys._getframe(2)  # the hook's caller
    _FRAMES.stack.append(_Open(frame, module, call))


def close_frame(owner: Runtime, module: nn.Module) -> Frame | None:
    """Called by a hook of `module` after its forward, whether it raised or not; the frame that held."""
    stack = _FRAMES.stack
    if stack and stack[-1].module is module and stack[-1].frame.owner is owner:
        return stack.pop().frame
    return None


@contextmanager
def frame_in_use(frame: Frame) -> Iterator[None]:
    """Run something inside a frame, e.g. the recomputation of a block in the backward pass."""
    entry = _Open(frame, frame.owner.model, None)
    _FRAMES.stack.append(entry)
    try:
        yield
    finally:
        while _FRAMES.stack and _FRAMES.stack.pop() is not entry:
            pass


def _drop_interrupted() -> None:
    """Drop frames of forwards that are over.

    torch runs no hook after an exception that is no `Exception`, such as the `KeyboardInterrupt` of a notebook
    (torch/nn/modules/module.py, `_call_impl`). A call that is not on Python's stack has ended that way.
    """
    stack = _FRAMES.stack
    if torch.compiler.is_compiling():
        return
    while stack and stack[-1].call is not None and not _runs(stack[-1].call):
        stack.pop()


def _runs(call: FrameType) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is call


def _may_read_values(device: torch.device, width: int | None) -> bool:
    """Whether exact rows are worth a look at values: on the CPU it costs nothing, elsewhere it synchronises."""
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or width is None
