"""A model's shadow, to run a forward of which the model itself sees nothing: its own modules, other tensors.

Each module of a ghost has the attributes of the model's own and none of its hooks. What a forward keeps on a module
stays on the ghost, whatever else it changes there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ghost_of", "on_meta"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def on_meta(tensor: Tensor) -> Tensor:
    """The whole tensor's shape and dtype, also of one that is a process's share of it."""
    shape = getattr(tensor, "ds_shape", tensor.shape)  # DeepSpeed leaves an empty tensor in place
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def ghost_of(model: nn.Module, place: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A ghost in evaluation mode.

    Args:
        model: left as it is.
        place: a tensor of the model → the ghost's; without it the same one. With it, packed linear maps are plain.
    """
    ghosts: dict[int, nn.Module] = {}
    tensors: dict[int, Tensor] = {}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or place is None:
            return value
        if id(value) not in tensors:
            made = place(value)
            tensors[id(value)] = nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made
        return tensors[id(value)]

    def copied(module: nn.Module) -> nn.Module:
        if id(module) in ghosts:
            return ghosts[id(module)]
        if place is not None and (sizes := _packed(module)) is not None:
            ghosts[id(module)] = nn.Linear(*sizes, device="meta", dtype=_dtype_around(model))
            return ghosts[id(module)]
        ghost = ghosts[id(module)] = object.__new__(type(module))
        own = {
            name: placed(value)
            for name, value in module.__dict__.items()
            if not (name.startswith("_reft") or name in ("forward", "generate"))  # what others put there
        }
        for name in _HOOKS:
            own[name] = type(own[name])() if name in own else {}
        for name in ("_parameters", "_buffers"):
            own[name] = {key: placed(value) for key, value in own[name].items()}
        own["training"] = False
        ghost.__dict__ = own
        own["_modules"] = {
            name: None if child is None else copied(child) for name, child in module.__dict__["_modules"].items()
        }
        return ghost

    return copied(model)


def _packed(module: nn.Module) -> tuple[int, int] | None:
    """Sizes of a linear map whose weight is not the plain matrix: quantised by whatever library."""
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(size, int) for size in sizes) or any(True for _ in module.children()):
        return None
    weight = module.__dict__["_parameters"].get("weight")
    plain = type(weight) in (nn.Parameter, Tensor) and weight.dim() == 2 and weight.is_floating_point()
    return None if plain else (int(sizes[0]), int(sizes[1]))  # type: ignore[arg-type]  # ints, as was asked


def _dtype_around(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
