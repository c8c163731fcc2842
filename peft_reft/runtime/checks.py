"""What a call must say so that it can be told which tokens it edits: each refusal names the fix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, PromptBoundaryError
from peft_reft.hub_format.positions import All
from peft_reft.positions import Doubts, Layout, any_true, first_where

from .inputs import CallInputs
from .situation import Situation
from .views import AdapterView

__all__ = ["check_boundary", "check_lengths", "check_marks", "check_prompts", "check_terms"]


def check_boundary(call: CallInputs, adapter: AdapterView, situation: Situation) -> None:
    """Refuse calls in which it cannot be told where the prompt ends."""
    explicit = situation.explicit
    if (
        explicit.prompt_mask is not None
        or explicit.prompt_lengths is not None
        or explicit.locations_for(adapter.name, situation.role, encoder_edited=situation.encoder_edited) is not None
        or situation.role == "encoder"
        or not situation.has_completion
    ):
        return
    if adapter.needs_turns and (call.labels is None or situation.prompt_width is not None):
        raise PromptBoundaryError(
            f"adapter {adapter.name!r} edits every turn (turns='each'), and nothing says where the turns are",
            code="positions.turns",
            rule="without labels a conversation of several turns looks like one prompt",
            fix="pass prompt_mask [batch, seq]: 1 on what an answer follows, 0 on earlier answers and padding",
        )
    if situation.prompt_width is not None:
        return
    if call.labels is not None and call.past == 0:
        _check_label_shape(call, adapter)
        return
    if situation.trains_with_labels and adapter.needs_prompt_end:
        raise PromptBoundaryError(
            f"adapter {adapter.name!r} edits positions that depend on the prompt's end, and a forward in training "
            "mode got neither labels nor explicit positions",
            code="positions.no_labels",
            rule="in training the prompt ends before the first label that is not -100",
            fix="pass labels, prompt_mask or prompt_lengths (ReftDataCollator adds prompt_mask), or call model.eval() "
            "if this is a prefill",
        )
    if call.past and call.length == 1 and adapter.counts_generated:
        raise PromptBoundaryError(
            f"adapter {adapter.name!r} counts generated tokens (g[a:b]), and a token on top of a cache of {call.past} "
            "does not say how many were generated before",
            code="positions.generated_count",
            rule="a loop of one's own is seen one forward at a time, and only it knows how long the prompt was",
            fix="pass prompt_lengths [batch] (or prompt_mask over all columns so far) to every forward of the loop, "
            "or use generate",
        )
    if call.past and call.length > 1 and _prompt_only(adapter):
        raise PromptBoundaryError(
            f"{call.length} tokens continue a cache of {call.past}: they may be prompt or completion",
            code="positions.continuation",
            rule="only a single token on top of a cache is taken for a generated one",
            fix="pass prompt_lengths or a prompt_mask over the cached and the new columns, or use generate",
        )


def _check_label_shape(call: CallInputs, adapter: AdapterView) -> None:
    shape = list(call.labels.shape) if isinstance(call.labels, Tensor) else type(call.labels).__name__
    if shape != [call.batch, call.length] and adapter.needs_prompt_end:
        raise PromptBoundaryError(
            f"labels are {shape}, the tokens [{call.batch}, {call.length}]",
            code="positions.labels",
            value=shape,
            rule="the prompt ends before the first supervised label, so labels have one entry per token",
            fix="pass labels [batch, seq], or say the prompt with prompt_mask or prompt_lengths",
        )


def _prompt_only(adapter: AdapterView) -> bool:
    return any(not isinstance(term, All) for group in adapter.groups for term in group.positions.terms)


def check_prompts(layout: Layout, adapter: AdapterView, doubts: Doubts) -> None:
    """Refuse a sequence without a prompt, where positions need one; of others the layout knows it then."""
    if layout.prompt is layout.real or layout.prompted:
        return
    missing = layout.lengths() == 0
    if missing.device.type != "cpu" or any_true(missing):
        doubts.refuse_where(layout.real & missing, lambda: _no_prompt(adapter))
    layout.prompted = True


def _no_prompt(adapter: AdapterView) -> PromptBoundaryError:
    specs = ", ".join(repr(str(group.positions)) for group in adapter.groups)
    return PromptBoundaryError(
        f"positions {specs} need a prompt, and a sequence of this batch has none",
        code="positions.no_prompt",
        rule="the prompt is what stands before the first supervised label; in a packed row one token counts as none",
        fix="mask the prompt's labels with -100 (completion-only loss), use positions without 'l', 'p' and "
        "'prompt', or pass prompt_mask; a fragment of a split document has no prompt",
    )


def check_terms(locations: Any, adapter: AdapterView) -> None:
    """Refuse locations that are not `[batch, terms, k]`, with a term for each unit of the adapter."""
    if isinstance(locations, Tensor) and locations.dim() == 3 and locations.shape[1] == adapter.units:
        return
    shape = list(locations.shape) if isinstance(locations, Tensor) else type(locations).__name__
    raise LocationError(
        f"intervention_locations of adapter {adapter.name!r} is {shape}",
        value=shape,
        rule=f"it is a LongTensor [batch, terms, k], and this adapter has {adapter.units} term(s): one per tied "
        "group, one per term of the positions otherwise",
    )


def check_marks(marks: Tensor, real: Tensor, doubts: Doubts) -> None:
    """Refuse a prompt mask, bool `[batch, slots]`, that marks padding."""
    if not torch.compiler.is_compiling():
        doubts.refuse_where(marks > real, _marked_padding)


def _marked_padding() -> LocationError:
    return LocationError(
        "prompt_mask marks padding",
        rule="only real tokens are prompt",
        fix="set it to 0 wherever attention_mask is 0",
    )


def check_lengths(lengths: Tensor, real: Tensor, start: Tensor | None, doubts: Doubts) -> None:
    """Refuse prompt lengths `[batch]` that no row of real tokens has, or that speak of packed rows."""
    if torch.compiler.is_compiling():
        return
    if start is not None:
        later = real & (start[:, : real.shape[1]] != real.long().argmax(1, keepdim=True))
        doubts.refuse_where(later, _of_packed_rows)
    held = real.sum(1)
    wrong = (lengths < 0) | (lengths > held)
    doubts.refuse_where(wrong, _wrong_length, wrong, lengths, held)


def _of_packed_rows() -> LocationError:
    return LocationError(
        "prompt_lengths says one length per row, and a row holds several sequences",
        rule="each sequence of a packed row has its own prompt",
        fix="pass prompt_mask, 1 on the prompt of every sequence",
    )


def _wrong_length(wrong: Tensor, lengths: Tensor, held: Tensor) -> LocationError:
    length, (row,) = first_where(wrong, lengths)
    return LocationError(
        f"prompt_lengths[{row}] is {length}",
        value=length,
        rule=f"it counts real tokens, and the row has {first_where(wrong, held)[0]}",
        fix="count from the row's first real token, padding excluded",
    )
