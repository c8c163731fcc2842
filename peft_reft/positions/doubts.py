"""Values that no call may have: refused at once, or, where an accelerator would have to be waited for, later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from .reading import any_of, any_true, is_transformed

__all__ = ["AT_ONCE", "Doubts", "LaterDoubts"]

Refusal = Callable[..., Exception]
"""Makes the error of the tensors whose values it names."""


class Doubts:
    """Looks at values where they are asked for. On the meta device there are none."""

    def refuse_where(self, condition: Tensor, refusal: Refusal, *named: Tensor) -> None:
        """Raise the refusal of some tensors if a bool tensor is true anywhere."""
        if not condition.is_meta and any_true(condition):
            raise refusal(*named)


AT_ONCE: Doubts = Doubts()


class LaterDoubts(Doubts):
    """Those of one model's calls: on CUDA an answer is copied while the forward goes on, and read at a later one."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Any, Refusal, list[Tensor]]] = deque()
        self.lock: Lock = Lock()

    def __reduce__(self) -> tuple[type[LaterDoubts], tuple[()]]:
        """A copy of a model doubts nothing."""
        return LaterDoubts, ()

    def refuse_where(self, condition: Tensor, refusal: Refusal, *named: Tensor) -> None:
        """As above; on CUDA later. While a CUDA graph is recorded nothing can be read."""
        if not _must_be_waited_for(condition):
            super().refuse_where(condition, refusal, *named)
        elif not torch.cuda.is_current_stream_capturing():
            held = [tensor.clone() for tensor in named]  # the caller may write the next batch into them
            self.waiting.append((_Answer(any_of(condition)), refusal, held))

    def settle(self) -> None:
        """Raise the first refusal of an earlier call, of those whose answers are there."""
        if torch.cuda.is_current_stream_capturing():
            return
        with self.lock:
            while self.waiting and self.waiting[0][0].is_there():
                answer, refusal, named = self.waiting.popleft()
                if answer.held:
                    self.waiting.clear()
                    break
            else:
                return
        error = refusal(*named)
        error.add_note("This is of an earlier forward: values on an accelerator are read when they have come.")
        raise error


def _must_be_waited_for(condition: Tensor) -> bool:
    """Whether it is on CUDA, and no transform's own: that is gone when the transform has run."""
    return condition.is_cuda and not is_transformed()


class _Answer:
    """A bool `[]` on CUDA, on its way to the CPU."""

    def __init__(self, found: Tensor) -> None:
        self.held: Tensor = torch.empty((), dtype=torch.bool, pin_memory=True)
        self.held.copy_(found, non_blocking=True)
        self.event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.event.record(torch.cuda.current_stream(found.device))

    def is_there(self) -> bool:
        """Whether it has arrived."""
        return bool(self.event.query())
