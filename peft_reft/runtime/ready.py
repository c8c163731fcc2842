"""Which sites of a frame have one affine edit of the whole output, which then is made in one step."""

from __future__ import annotations

import torch
from torch import Tensor

from peft_reft.positions import is_transformed
from peft_reft.sites import Tap

from .frames import Frame, Prepared, Products, Ready
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
    used: dict[int, Tensor] = {}
    for path, units in frame.units.items():
        one, layer = units[0], state.layers[path]
        plan, tap = frame.plans.get(layer.stack), one.tap
        products = prepared.get((path, one.key))
        if len(units) > 1 or plan is None or not isinstance(products, Products):
            continue
        if tap == _WHOLE and layer.scaling[one.name] == 1.0:
            chosen = plan.rows((one.key,))
            member = chosen.members[0]
            if member is not None and id(chosen) not in used:
                used[id(chosen)] = member[:, None]
            found[path] = Ready(plan.shape, dtype, chosen.rows, used.get(id(chosen)), products)
    return found
