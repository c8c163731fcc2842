"""Which sites of a frame have one affine edit of the whole output, which then is made in one step."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _disable_current_modes

from peft_reft.positions import is_transformed
from peft_reft.sites import PLAIN, Tap, hidden_of

from .frames import Frame, Prepared, Products, Ready
from .state import ModelState

__all__ = ["is_seen_here_only", "ready_edits"]


def ready_edits(state: ModelState, frame: Frame, prepared: Prepared, dtype: torch.dtype) -> dict[str, Ready]:
    """Path of a site → its edit, for those that have it.

    Args:
        state: of the model.
        frame: of the forward that runs.
        prepared: for its edits.
        dtype: of the hidden states, for which they were prepared.
    """
    if torch.compiler.is_compiling() or is_transformed() or frame.rows is not None:
        return {}
    found: dict[str, Ready] = {}
    used: dict[int, Tensor] = {}
    for path, units in frame.units.items():
        one, layer = units[0], state.layers[path]
        plan, tap = frame.plans.get(layer.stack), one.tap
        products = prepared.get((path, one.key))
        if len(units) > 1 or plan is None or not isinstance(products, Products):
            continue
        if _is_whole(tap) and layer.scaling[one.name] == 1.0:
            chosen = plan.rows((one.key,))
            member = chosen.members[0]
            if member is not None and id(chosen) not in used:
                used[id(chosen)] = member[:, None]
            found[path] = Ready(plan.shape, dtype, chosen.rows, used.get(id(chosen)), products)
    return found


def _is_whole(tap: Tap) -> bool:
    """Whether the output is edited as it is, all of it."""
    plain = tap.form is PLAIN or tap.form == PLAIN  # a copied model has a copy of it
    return plain and not tap.on_input and tap.start is None and tap.factor == 1.0


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


def _holders(hidden: Tensor, output: Any) -> tuple[int, int, int, int]:
    """How many hold the output and the tensor in Python, hold the tensor in C++, and share its memory."""
    storage = hidden.untyped_storage()
    in_cpp: int = hidden._use_count()  # type: ignore[attr-defined]  # a name that torch's stubs leave out
    return sys.getrefcount(output), sys.getrefcount(hidden), in_cpp, torch._C._storage_Use_Count(storage._cdata)


_counted_of_new: dict[bool, tuple[int, int, int, int]] = {}


def _holders_of_new(in_tuple: bool) -> tuple[int, int, int, int] | None:
    """The same of a tensor that a module has just made, counted here: it differs between versions of Python.

    None while hooks on all modules may keep what the module gives; a mode does not see it.
    """
    if in_tuple not in _counted_of_new and not _has_any_global_hook():  # type: ignore[no-untyped-call]
        with DisableTorchFunction(), _disable_current_modes():
            _counted_of_new[in_tuple] = _count(in_tuple)
    return _counted_of_new.get(in_tuple)


def _count(in_tuple: bool) -> tuple[int, int, int, int]:
    counted = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        counted.append(_counted(hidden, output))

    made = nn.Module()
    made.forward = lambda: (torch.zeros(1).add(1),) if in_tuple else torch.zeros(1).add(1)
    made.register_forward_hook(hook)
    made()
    return counted[0]


def _counted(hidden: Tensor, output: Any) -> tuple[int, int, int, int]:
    """Stands for `is_seen_here_only`."""
    return _holders(hidden, output)
