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

from .layout import Layout, count_through

__all__ = ["needs_prompt", "term_masks", "term_width"]


def term_masks(
    positions: Positions,
    layout: Layout,
    *,
    input_ids: Tensor | None = None,
    token_ids: Mapping[str, int] | None = None,
    tied: bool = False,
) -> list[Tensor]:
    """The tokens that each term of a spec claims: one bool `[batch, seq]` per term, disjoint, never on padding.

    Args:
        positions: the spec.
        layout: the batch.
        input_ids: `[batch, seq]`, for `tok(…)`.
        token_ids: special token → id, for `tok(…)`.
        tied: whether all terms are one: then their union is the only mask.
    """
    ids = dict(token_ids or {})
    counts = _Counts(layout)
    taken: Tensor | None = None
    for term in positions.exclusions:
        mask = _mask(term, counts, input_ids, ids)
        taken = mask if taken is None else taken | mask
    masks: list[Tensor] = []
    for term in positions.terms:
        mask = _mask(term, counts, input_ids, ids)
        if tied and masks:
            masks[0] = masks[0] | mask
            continue
        if taken is not None and not tied:
            mask = mask & ~taken
        if not tied:
            taken = mask if taken is None else taken | mask
        masks.append(mask)
    if tied and taken is not None:
        masks[0] = masks[0] & ~taken
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


class _Counts:
    """A layout, and what several terms count in it, counted once. No `cached_property`: its lock stops a compiler."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.real, self.start, self.prompt = layout.real, layout.start, layout.prompt
        self._leading: Tensor | None = None
        self._numbered: tuple[Tensor, Tensor] | None = None

    @property
    def leading(self) -> Tensor:
        """The prompt's tokens, and all of a sequence without a prompt: bool `[batch, seq]`."""
        if self.prompt is self.real or self.layout.prompted:
            return self.prompt
        if self._leading is None:
            self._leading = torch.where(self.layout.lengths() == 0, self.real, self.prompt)
        return self._leading

    def ordinal(self, tokens: Tensor) -> Tensor:
        """Of each of these tokens its number in its sequence, from 1: long `[batch, seq]`, of no meaning elsewhere."""
        if self._numbered is None or self._numbered[0] is not tokens:
            self._numbered = tokens, count_through(tokens, self.start)
        return self._numbered[1]


def _mask(term: Term, counts: _Counts, input_ids: Tensor | None, token_ids: Mapping[str, int]) -> Tensor:
    real, start, prompt = counts.real, counts.start, counts.prompt
    if isinstance(term, All):
        return real
    if isinstance(term, Prompt):
        return prompt
    if isinstance(term, Special):
        if input_ids is None or term.token not in token_ids:
            return torch.zeros_like(real)
        return real & (input_ids == token_ids[term.token])
    if isinstance(term, Generated):
        after = (real > prompt) & (counts.ordinal(prompt) == counts.layout.lengths())
        found = after
        if term.start or term.stop is not None:
            rank = count_through(after, start)
            found = found & (rank > (term.start or 0))
            found = found if term.stop is None else found & (rank <= term.stop)
        return found
    if isinstance(term, First):
        leading = counts.leading
        return leading & (counts.ordinal(leading) <= term.count)
    ordinal, length = counts.ordinal(prompt), counts.layout.lengths()
    if isinstance(term, Last):
        return prompt & (ordinal > length - term.count)
    found = prompt
    if term.start is not None:
        found = found & (ordinal > _bound(term.start, length))
    if term.stop is not None:
        found = found & (ordinal <= _bound(term.stop, length))
    return found


def _bound(bound: int, length: Tensor) -> Tensor | int:
    return bound if bound >= 0 else length + bound
