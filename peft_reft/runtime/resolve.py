"""One stack's call → which tokens each unit edits. The only place where a prompt's end is inferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, PositionError
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.special_tokens import tokens_of
from peft_reft.positions import (
    Layout,
    first_where,
    layout_of,
    location_masks,
    prompt_before,
    prompt_from_lengths,
    prompt_from_mask,
    sequence_starts,
    term_masks,
    term_width,
    without_filler,
)

from .checks import check_boundary, check_lengths, check_marks, check_prompts, check_terms
from .inputs import NOTHING, CallInputs
from .masks import real_slots
from .situation import Situation, UnitMask
from .views import AdapterView

__all__ = ["call_layout", "columns_of", "slot_masks", "unit_masks"]


def unit_masks(
    call: CallInputs, adapters: Sequence[AdapterView], situation: Situation
) -> dict[tuple[int, int], UnitMask]:
    """(place of the adapter, unit) → the tokens it edits among the columns of this forward.

    Raises:
        PromptBoundaryError: a prompt's end is needed and cannot be told.
        LocationError: explicit positions that do not fit the batch.
    """
    return columns_of(slot_masks(call, adapters, situation), call)


def columns_of(masks: Mapping[tuple[int, int], UnitMask], call: CallInputs) -> dict[tuple[int, int], UnitMask]:
    """Of masks over all slots, the columns that this forward computes."""
    first, stop = call.past, call.past + call.length  # no slice object: a compiler takes its bounds for constants
    if not first and all(of.mask.shape[1] == stop for of in masks.values()):
        return dict(masks)
    return {
        key: UnitMask(of.mask[:, first:stop], of.width, None if of.start is None else of.start[:, first:stop])
        for key, of in masks.items()
    }


def slot_masks(
    call: CallInputs, adapters: Sequence[AdapterView], situation: Situation
) -> dict[tuple[int, int], UnitMask]:
    """(place of the adapter, unit) → the tokens it edits among all slots: cached, this call's, the prompt's rest."""
    check = not torch.compiler.is_compiling()
    explicit = situation.explicit
    for adapter in adapters:
        check_boundary(call, adapter, situation)
    layout = call_layout(call, situation)
    found: dict[tuple[int, int], UnitMask] = {}
    for place, adapter in enumerate(adapters):
        locations = explicit.locations_for(adapter.name, situation.role, encoder_edited=situation.encoder_edited)
        if locations is not None:
            check_terms(locations, adapter)
        elif check and adapter.needs_prompt:
            check_prompts(layout, adapter, situation.doubts)
        for number, group in enumerate(adapter.groups):
            first = adapter.first_unit(number)
            if locations is None:
                masks, widths = _inferred(group, call, layout, adapter)
            else:
                part = locations[:, first : first + group.units]
                real = layout.real if situation.prompt_width is None else layout.real[:, : situation.prompt_width]
                doubts = situation.doubts if check else None
                named = location_masks(part, real, terms=group.units, doubts=doubts)
                masks = [_pad(mask, layout.real.shape[1]) for mask in named]
                widths = [int(part.shape[2])] * group.units
            for unit, (mask, width) in enumerate(zip(masks, widths, strict=True), start=first):
                found[place, unit] = UnitMask(mask, width, layout.start)
    return found


def _inferred(
    group: SiteGroup, call: CallInputs, layout: Layout, adapter: AdapterView
) -> tuple[list[Tensor], list[int | None]]:
    """Masks of a group's units, and their bounds per row, from its positions."""
    counted = layout.by_turns() if group.turns == "each" else layout
    ids = _padded_ids(call, layout, adapter) if tokens_of([group]) else None
    tied = group.share_weights
    masks = term_masks(group.positions, counted, input_ids=ids, token_ids=adapter.token_ids, tied=tied)
    widths = [_width(term_width(term), counted.sequences) for term in group.positions.terms]
    return masks, [_total(widths)] if tied else widths


def call_layout(call: CallInputs, situation: Situation) -> Layout:
    """The layout over absolute slots: what the cache holds, this forward's columns, and the prompt's rest."""
    slots = call.slots(situation.prompt_width)
    takes_bare = situation.role in ("only", "encoder") or not situation.encoder_edited
    said = situation.explicit if takes_bare else NOTHING
    stated = not (said.prompt_mask is None and said.prompt_lengths is None)
    supervised = None if stated and situation.role != "decoder" else _supervised(call, situation)
    real = real_slots(call, situation, supervised)
    fresh = call.past == 0 and situation.prompt_width is None
    position_ids = call.position_ids if fresh and _is_2d(call.position_ids) else None
    cu_seq_lens = call.cu_seq_lens if fresh and call.batch == 1 else None
    one = position_ids is None and cu_seq_lens is None
    start = None if one else sequence_starts(real, position_ids, cu_seq_lens)
    packed = cu_seq_lens is not None or (position_ids is not None and call.attention_mask is None)
    sequences = _sequences_per_row(position_ids, cu_seq_lens)
    if said.prompt_mask is not None:
        marks = _explicit_mask(said.prompt_mask, call, situation)
        real = without_filler(real, start, marks) if packed else real
        check_marks(marks, real, situation.doubts)
        marks = marks & real  # a graph has not looked
        return Layout(real, start, prompt_from_mask(real, start, marks), packed, sequences, marks)
    if said.prompt_lengths is not None:
        lengths = _explicit_lengths(said.prompt_lengths, call)
        check_lengths(lengths, real[:, : situation.prompt_width], start, situation.doubts)
        return Layout(real, start, prompt_from_lengths(real, start, lengths), packed, sequences)
    if situation.prompt_width is not None:
        prompt = real if slots == situation.prompt_width else real & _columns_below(situation.prompt_width, real)
    elif situation.role == "encoder" or not situation.has_completion:
        prompt = real
    elif supervised is not None:
        prompt = prompt_before(supervised, real, start, shifted=situation.role == "decoder")
    else:
        prompt = real & _columns_below(call.past, real) if call.past else real
    layout = layout_of(real, start, prompt, packed=packed, supervised=supervised, sequences=sequences)
    if situation.role != "decoder" and situation.prompt_width is None:
        layout.supervised = supervised
    return layout


def _columns_below(count: int, real: Tensor) -> Tensor:
    return torch.arange(real.shape[1], device=real.device) < count


def _sequences_per_row(position_ids: Tensor | None, cu_seq_lens: Tensor | None) -> int | None:
    """How many sequences a row holds at most; None where only the values of `position_ids` say."""
    if cu_seq_lens is not None:
        return cu_seq_lens.numel() - 1
    return 1 if position_ids is None else None


def _supervised(call: CallInputs, situation: Situation) -> Tensor | None:
    """Where labels supervise, bool `[batch, slots]`; None where labels say nothing of a prompt."""
    labels = call.labels
    if labels is None or not situation.has_completion or situation.role == "encoder":
        return None
    if not isinstance(labels, Tensor) or labels.shape != (call.batch, call.length):
        return None
    return _pad(labels != -100, call.slots(situation.prompt_width), left=True)


def _explicit_mask(mask: Tensor, call: CallInputs, situation: Situation) -> Tensor:
    slots = call.slots(situation.prompt_width)
    if isinstance(mask, Tensor) and (mask.is_floating_point() or mask.is_complex()):
        raise LocationError(f"prompt_mask is a {mask.dtype}", value=mask.dtype, rule="it is a LongTensor of 0 and 1")
    widths = {slots} if situation.prompt_width is None else {situation.prompt_width, slots}
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != call.batch or mask.shape[1] not in widths:
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise LocationError(
            f"prompt_mask is {shape}",
            value=shape,
            rule=f"it is a LongTensor [batch, seq] = [{call.batch}, {min(widths)}], 1 on the prompt",
        )
    marks = mask.to(torch.bool)
    if not torch.compiler.is_compiling() and mask.dtype != torch.bool:
        other = mask != marks
        situation.doubts.refuse_where(other, _no_mark, other, mask)
    return _pad(marks.to(call.device), slots)


def _no_mark(other: Tensor, mask: Tensor) -> LocationError:
    wrong, _ = first_where(other, mask)
    return LocationError(
        f"prompt_mask holds {wrong}",
        value=wrong,
        rule="it is 1 on the prompt and 0 elsewhere",
        fix="pass labels as labels; of them the mask is (labels == -100) up to the answer, on real tokens",
    )


def _explicit_lengths(lengths: Tensor, call: CallInputs) -> Tensor:
    if not isinstance(lengths, Tensor) or lengths.shape != (call.batch,) or lengths.is_floating_point():
        shape = list(lengths.shape) if isinstance(lengths, Tensor) else type(lengths).__name__
        raise LocationError(
            f"prompt_lengths is {shape}", value=shape, rule=f"it is a LongTensor [batch] = [{call.batch}]"
        )
    return lengths.to(call.device)


def _padded_ids(call: CallInputs, layout: Layout, adapter: AdapterView) -> Tensor:
    """Ids of all slots, long `[batch, slots]`, −1 where this forward does not have them.

    Raises:
        PositionError: the call has no ids, so that a special token cannot be found.
    """
    if call.input_ids is None:
        raise PositionError(
            f"adapter {adapter.name!r} edits special tokens, and the call has no token ids",
            code="positions.no_ids",
            rule="tok(…) finds a token by its id",
            fix="pass input_ids (for a decoder: decoder_input_ids), or intervention_locations",
        )
    future = layout.real.shape[1] - call.past - call.length
    if call.past_ids is not None:
        return torch.nn.functional.pad(torch.cat([call.past_ids, call.input_ids], 1), (0, future), value=-1)
    return torch.nn.functional.pad(call.input_ids, (call.past, future), value=-1)


def _pad(mask: Tensor, width: int, *, left: bool = False) -> Tensor:
    missing = width - mask.shape[1]
    if missing <= 0:
        return mask[:, :width]
    return torch.nn.functional.pad(mask, (missing, 0) if left else (0, missing), value=False)


def _is_2d(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.dim() == 2


def _width(width: int | None, sequences: int | None) -> int | None:
    return None if width is None or sequences is None else width * sequences


def _total(widths: Sequence[int | None]) -> int | None:
    return None if any(width is None for width in widths) else sum(width for width in widths if width is not None)
