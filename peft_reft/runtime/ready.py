"""Which sites of a frame have one affine edit of the whole output, which then is made in one step."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_reft.positions import is_transformed
from peft_reft.sites import Tap

from .frames import Frame, Prepared, Products, Ready
from .situation import UnitKey
from .state import ModelState

__all__ = ["ready_edits"]

_WHOLE = Tap()
"""The output as it is, all of it."""


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
    planned: dict[tuple[str, UnitKey], tuple[Tensor, Tensor | None]] = {}
    for path, units in frame.units.items():
        one, layer = units[0], state.layers[path]
        stack, tap = layer.stack, one.tap
        plan = frame.plans.get(stack)
        products = prepared.get((path, one.key))
        if len(units) > 1 or plan is None or not isinstance(products, Products):
            continue
        if tap == _WHOLE and layer.scaling[one.name] == 1.0:
            if (stack, one.key) not in planned:
                chosen = plan.rows((one.key,))
                member = chosen.members[0]
                planned[stack, one.key] = chosen.rows, None if member is None else member[:, None]
            found[path] = Ready(plan.shape, dtype, *planned[stack, one.key], products)
    return found
