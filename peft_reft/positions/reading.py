"""Looking at a tensor's values, where `torch.func.vmap` may run over it: then a look is at all samples at once.

A vmapped tensor stands for one sample, has no `item`, `nonzero` or truth, and holds the values of all samples inside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["any_of", "any_true", "first_where", "is_transformed", "is_vmapped"]


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation runs.

    What is computed belongs to it, and must not be kept for later.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_vmapped(tensor: Tensor) -> bool:
    """Whether a vmap runs over a tensor, so that its values differ from sample to sample."""
    functorch = torch._C._functorch  # no public name; torch's own optimizers and hooks ask the same
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def any_true(condition: Tensor) -> bool:
    """Whether a bool tensor is true anywhere, in any sample."""
    return bool(any_of(condition))


def any_of(condition: Tensor) -> Tensor:
    """The same as a bool tensor `[]`."""
    return _values(condition).any()


def first_where(condition: Tensor, values: Tensor) -> tuple[int, tuple[int, ...]]:
    """The first value where a condition holds, and its place in its sample.

    Args:
        condition: bool, true somewhere; it was made from `values`.
        values: integers, of the same shape.
    """
    place = _values(condition).nonzero()[0].tolist()
    found = _values(torch.where(condition, values, 0))[tuple(place)]
    return int(found), tuple(place[len(place) - condition.dim() :])


def _values(tensor: Tensor) -> Tensor:
    """The plain tensor behind a transformed one `[...]`: `[samples, ...]` for each vmap that runs over it."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        axis = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        tensor = tensor if axis < 0 else tensor.movedim(axis, 0)
    return tensor
