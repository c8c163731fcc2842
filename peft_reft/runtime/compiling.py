"""The hooks of a module that is compiled by itself: run beside its graph, not as graphs of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["beside_graphs"]

Hook = TypeVar("Hook", bound=Callable[..., Any])


def beside_graphs(hook: Hook) -> Hook:
    """Let Python run a hook where it is not inside a graph already.

    `torch.compile(module)` leaves the hooks of that very module outside of its graph (torch/_dynamo/eval_frame.py,
    `OptimizedModule`), and would compile each as a function of its own, once more for every kind of batch. What they
    compute then enters the graph like any other input. Inside a larger graph they are traced like the rest.
    """
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # no public name for it: without it there are more graphs, and the same results
        return hook
    set_code_exec_strategy(hook.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    return hook
