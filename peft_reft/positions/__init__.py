"""Which tokens are edited: pure functions from tensors to masks. Nothing here knows a model or an adapter."""

from .doubts import AT_ONCE, Doubts, LaterDoubts
from .explicit import location_masks
from .layout import (
    Layout,
    layout_of,
    prompt_before,
    prompt_from_lengths,
    prompt_from_mask,
    prompt_runs,
    sequence_starts,
    shifted_right,
    without_filler,
)
from .reading import any_true, first_where, is_transformed, is_vmapped
from .rows import RowPlan, plan_rows
from .terms import needs_prompt, term_masks, term_width

__all__ = [
    "AT_ONCE",
    "Doubts",
    "LaterDoubts",
    "Layout",
    "RowPlan",
    "any_true",
    "first_where",
    "is_transformed",
    "is_vmapped",
    "layout_of",
    "location_masks",
    "needs_prompt",
    "plan_rows",
    "prompt_before",
    "prompt_from_lengths",
    "prompt_from_mask",
    "prompt_runs",
    "sequence_starts",
    "shifted_right",
    "term_masks",
    "term_width",
    "without_filler",
]
