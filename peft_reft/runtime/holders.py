"""Whether a module's output may be written into: only where nobody else can see the tensor, before or after.

Python counts who holds an object, torch who holds a tensor and its memory. What a hook finds of a tensor that has just
been made is counted once, on a module made for it, since it differs between versions of Python; anything else than
that very count is somebody who holds it: a hook before ours, a list of hidden states, a view, numpy, a compiler that
watches, a step of the backward pass that was made before and has saved the tensor or its memory. Then the rows are
written into a copy.
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

Count = tuple[int, int, int, int, int]
"""How many hold the output, the tensor and its storage in Python, hold the tensor in C++, and share its memory."""

_holders = sys.getrefcount
_sharers = torch._C._storage_Use_Count


def is_seen_here_only(hidden: Tensor, output: Any) -> bool:
    """Whether nobody but the hook of a module that has just run can see a tensor, so that it may be written into.

    Called by that hook, as `_counted` is by the one below, with as many names for the same things.

    Args:
        hidden: the hidden states in `output`.
        output: of the module.
    """
    learns = hidden.requires_grad
    if type(hidden) is not Tensor or not hidden.is_contiguous():
        return False
    if learns and (hidden.is_leaf or not torch.is_grad_enabled()):
        return False
    if hidden.is_inference() and not torch.is_inference_mode_enabled():
        return False
    storage, in_cpp = hidden.untyped_storage(), hidden._use_count()  # type: ignore[attr-defined]  # stubs leave it out
    count = (_holders(output), _holders(hidden), _holders(storage), in_cpp, _sharers(storage._cdata))
    known = _counts_of_new.get((type(output), learns)) or _count_of_new(type(output), learns)
    return count == known and storage.resizable()  # memory of numpy, or of a file, is not resizable


def _counted(hidden: Tensor, output: Any) -> Count:
    """Stands for `is_seen_here_only`."""
    storage, in_cpp = hidden.untyped_storage(), hidden._use_count()  # type: ignore[attr-defined]
    return _holders(output), _holders(hidden), _holders(storage), in_cpp, _sharers(storage._cdata)


_counts_of_new: dict[tuple[type, bool], Count] = {}


def _count_of_new(kind: type, learns: bool) -> Count | None:
    """The count of what a module has just made: a tensor, or a tuple with it, with gradients or without.

    None for other outputs, and while hooks on all modules may keep what the module gives; a mode does not see it.
    """
    if kind not in (Tensor, tuple) or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    with DisableTorchFunction(), _disable_current_modes(), torch.set_grad_enabled(learns):
        known = _counts_of_new[kind, learns] = _count(in_tuple=kind is tuple, learns=learns)
    return known


def _count(*, in_tuple: bool, learns: bool) -> Count:
    counted = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        alone = _counted(hidden, output)
        counted.append(alone)

    made = nn.Module()
    given = torch.zeros(1, requires_grad=learns)
    made.forward = lambda: (given.add(1),) if in_tuple else given.add(1)
    made.register_forward_hook(hook)
    made()
    return counted[0]
