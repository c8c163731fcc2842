"""What surrounds the forward of a module that is compiled by itself: run beside its graph, not as one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["beside_graphs", "python_only"]

Hook = TypeVar("Hook", bound=Callable[..., Any])


def beside_graphs(hook: Hook) -> Hook:
    """Let Python run a function, and all that it calls, where it is not inside a graph already.

    `torch.compile(module)` leaves what surrounds the forward of that very module outside of its graph
    (torch/_dynamo/eval_frame.py, `OptimizedModule`), and would compile it as functions of their own, once more for
    every kind of batch. What they compute then enters the graph like any other input. Inside a larger graph they are
    traced like the rest.
    """
    return _skipped(hook, inside=True)


def python_only(function: Hook) -> Hook:
    """As `beside_graphs`, but what the function calls is compiled as it would be without it."""
    return _skipped(function, inside=False)


def _skipped(function: Hook, *, inside: bool) -> Hook:
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # no public name for it: without it there are more graphs, and the same results
        return function
    called = _FrameAction.SKIP if inside else _FrameAction.DEFAULT
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, called))
    return function
