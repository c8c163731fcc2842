"""Whether a module's output may be written into: only where nobody else can see the tensor, before or after.

Python counts who holds an object, torch who holds a tensor and its memory. What a hook finds of a tensor that has just
been made is counted once, on a module made for it, since it differs between versions of Python; anything else than
that very count is somebody who holds it: a hook before ours, a list of hidden states, a view, numpy, a compiler that
watches. Then the rows are written into a copy.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _disable_current_modes

from peft_reft.sites import hidden_of

__all__ = ["is_seen_here_only"]

Count = tuple[int, int, int, int]


def is_seen_here_only(hidden: Tensor, output: Any) -> bool:
    """Whether nobody but the hook of a module that has just run can see a tensor, so that it may be written into.

    Called by that hook, as by the one below, which counts references to a tensor that nobody else holds.

    Args:
        hidden: the hidden states in `output`.
        output: of the module.
    """
    if torch.is_grad_enabled() or type(hidden) is not Tensor or not hidden.is_contiguous():
        return False
    if hidden.is_inference() and not torch.is_inference_mode_enabled():
        return False
    if type(output) not in (Tensor, tuple) or not hidden.untyped_storage().resizable():  # memory of numpy, of a file
        return False
    return _holders(hidden, output) == _holders_of_new(type(output) is tuple)


def _holders(hidden: Tensor, output: Any) -> Count:
    """How many hold the output and the tensor in Python, hold the tensor in C++, and share its memory."""
    storage = hidden.untyped_storage()
    in_cpp: int = hidden._use_count()  # type: ignore[attr-defined]  # a name that torch's stubs leave out
    return sys.getrefcount(output), sys.getrefcount(hidden), in_cpp, torch._C._storage_Use_Count(storage._cdata)


_counted_of_new: dict[bool, Count] = {}


def _holders_of_new(in_tuple: bool) -> Count | None:
    """The same of a tensor that a module has just made.

    None while hooks on all modules may keep what the module gives; a mode does not see it.
    """
    if in_tuple not in _counted_of_new and not _has_any_global_hook():  # type: ignore[no-untyped-call]
        with DisableTorchFunction(), _disable_current_modes():
            _counted_of_new[in_tuple] = _count(in_tuple)
    return _counted_of_new.get(in_tuple)


def _count(in_tuple: bool) -> Count:
    counted = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        counted.append(_counted(hidden, output))

    made = nn.Module()
    made.forward = lambda: (torch.zeros(1).add(1),) if in_tuple else torch.zeros(1).add(1)
    made.register_forward_hook(hook)
    made()
    return counted[0]


def _counted(hidden: Tensor, output: Any) -> Count:
    """Stands for `is_seen_here_only`."""
    return _holders(hidden, output)
