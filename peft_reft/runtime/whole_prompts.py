"""Forwards in which every row is one prompt and nothing else: their plans are functions of the batch's shape alone.

That is a prefill without padding. Its plan is worked out once for a shape and kept with what is active; it holds
nothing of a call. On an accelerator nobody looks at the values of a mask, so there only a call without one is known
to have no padding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from peft_reft.positions import is_transformed

from .activity import StackActivity
from .checks import check_boundary
from .inputs import CallInputs
from .plan import StackPlan
from .resolve import columns_of, slot_masks
from .situation import Situation

__all__ = ["whole_prompt_plan"]

KEPT = 8
"""Shapes whose plans are kept for a stack."""


def whole_prompt_plan(call: CallInputs, active: StackActivity, situation: Situation) -> StackPlan | None:
    """The plan of a stack whose rows are whole prompts; None for any other call.

    Args:
        call: of the stack.
        active: what edits it.
        situation: of the call, of which nobody else knows anything.

    Raises:
        PromptBoundaryError: it cannot be told where the prompt ends.
    """
    if active.needs_ids or not _is_whole(call, situation):
        return None
    for view in active.views:
        check_boundary(call, view, situation)
    shape = (call.batch, call.length, call.device)
    kept = active.whole_prompts.get(shape)
    if kept is not None:
        return kept
    bare = replace(call, attention_mask=None)
    with torch.inference_mode(False):
        masks = slot_masks(bare, active.views, situation)
    plan = StackPlan(call.batch, call.length, columns_of(masks, bare), outlives=True)
    if all(type(found.mask) is Tensor for found in masks.values()):  # none of a mode that fakes tensors
        if len(active.whole_prompts) >= KEPT:
            active.whole_prompts.clear()
        active.whole_prompts[shape] = plan
    return plan


def _is_whole(call: CallInputs, situation: Situation) -> bool:
    return (
        call.past == 0
        and call.position_ids is None
        and call.cu_seq_lens is None
        and (call.labels is None or not situation.has_completion or situation.role == "encoder")
        and situation.prompt_width is None
        and situation.prompt_real is None
        and not situation.explicit
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not is_transformed()
        and _has_no_padding(call)
    )


def _has_no_padding(call: CallInputs) -> bool:
    mask = call.attention_mask
    if mask is None:
        return True
    return (
        type(mask) is Tensor
        and mask.device.type == "cpu"
        and mask.shape == (call.batch, call.length)
        and bool(mask.all())
    )
