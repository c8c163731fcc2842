"""Terms of a spec × layout → masks. Terms claim tokens in order: a token belongs to the first that takes it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peft_reft.hub_format.positions import (
    All,
    First,
    Generated,
    Last,
    Positions,
    Prompt,
    PromptWindow,
    Special,
    Term,
)

from .layout import Layout, count_before, count_in_sequence

__all__ = ["needs_prompt", "term_masks", "term_width"]


def term_masks(
    positions: Positions,
    layout: Layout,
    *,
    input_ids: Tensor | None = None,
    token_ids: Mapping[str, int] | None = None,
) -> list[Tensor]:
    """The tokens that each term of a spec claims: one bool `[batch, seq]` per term, disjoint, never on padding.

    Args:
        positions: the spec.
        layout: the batch.
        input_ids: `[batch, seq]`, for `tok(…)`.
        token_ids: special token → id, for `tok(…)`.
    """
    ids = dict(token_ids or {})
    taken = torch.zeros_like(layout.real)
    for term in positions.exclusions:
        taken = taken | _mask(term, layout, input_ids, ids)
    masks = []
    for term in positions.terms:
        mask = _mask(term, layout, input_ids, ids) & ~taken
        taken = taken | mask
        masks.append(mask)
    return masks


def term_width(term: Term) -> int | None:
    """How many tokens of one sequence a term can claim at most; None where only the values say."""
    if isinstance(term, (First, Last)):
        return term.count
    if isinstance(term, (PromptWindow, Generated)) and term.start is not None and term.stop is not None:
        return term.stop - term.start if (term.start < 0) == (term.stop < 0) else None
    return None


def needs_prompt(positions: Positions) -> bool:
    """Whether the spec has no meaning for a sequence without a prompt."""
    return any(isinstance(term, (Last, Prompt, PromptWindow)) for term in (*positions.terms, *positions.exclusions))


def _mask(term: Term, layout: Layout, input_ids: Tensor | None, token_ids: Mapping[str, int]) -> Tensor:
    real, start, prompt = layout.real, layout.start, layout.prompt
    if isinstance(term, All):
        return real
    if isinstance(term, Prompt):
        return prompt
    if isinstance(term, Special):
        if input_ids is None or term.token not in token_ids:
            return torch.zeros_like(real)
        return real & (input_ids == token_ids[term.token])
    if isinstance(term, Generated):
        after = real & ~prompt & (count_before(prompt, start) == count_in_sequence(prompt, start))
        rank = count_before(after, start)
        return after & (rank >= (term.start or 0)) & (rank < (real.shape[1] if term.stop is None else term.stop))
    rank, length = count_before(prompt, start), count_in_sequence(prompt, start)
    if isinstance(term, First):
        without = real & (length == 0) & (count_before(real, start) < term.count)
        return (prompt & (rank < term.count)) | without
    if isinstance(term, Last):
        return prompt & (rank >= length - term.count)
    low = torch.zeros_like(length) if term.start is None else _bound(term.start, length)
    high = length if term.stop is None else _bound(term.stop, length)
    return prompt & (rank >= low) & (rank < high)


def _bound(bound: int, length: Tensor) -> Tensor:
    return torch.full_like(length, bound) if bound >= 0 else length + bound
