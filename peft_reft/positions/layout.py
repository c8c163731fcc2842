"""Rows → sequences → prompts. All tensors are `[batch, seq]`; counts run over real tokens, sequence by sequence.

Where every row is one sequence nobody need look for its start: `start` is None there, and a count over a sequence is
one over its row, `[batch, 1]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = [
    "Layout",
    "count_before",
    "count_in_sequence",
    "layout_of",
    "prompt_before",
    "prompt_from_lengths",
    "prompt_from_mask",
    "prompt_runs",
    "sequence_starts",
    "shifted_right",
    "turn_starts",
    "without_filler",
]


@dataclass
class Layout:
    """What a batch looks like.

    Attributes:
        real: bool `[batch, seq]`, False on padding.
        start: long `[batch, seq]`, the column where each token's sequence starts (a packed row holds several); None
            where every row is one sequence.
        prompt: bool `[batch, seq]`, the prompt's tokens.
        packed: whether a row may hold several sequences.
        sequences: how many sequences a row can hold at most, where that is known without looking at values.
        marks: bool `[batch, seq]`, the prompts of all turns, where a mask says them.
        supervised: bool `[batch, seq]`, the answers of all turns, where labels say them.
        prompted: whether it is known that no sequence is without a prompt.
    """

    real: Tensor
    start: Tensor | None
    prompt: Tensor
    packed: bool = False
    sequences: int | None = 1
    marks: Tensor | None = None
    supervised: Tensor | None = None
    prompted: bool = False
    _lengths: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def lengths(self) -> Tensor:
        """Of the prompt of each column's sequence, long `[batch, seq]` or `[batch, 1]`; counted once."""
        if self._lengths is None:
            self._lengths = count_in_sequence(self.prompt, self.start)
        return self._lengths

    def runs(self) -> Tensor | None:
        """The prompts of all turns, bool `[batch, seq]`; None where nothing tells of turns."""
        return prompt_runs(self, self.supervised) if self.marks is None and self.supervised is not None else self.marks

    def by_turns(self) -> Layout:
        """The same tokens with every turn as a sequence of its own: a run of prompt, and what follows it."""
        runs = self.runs()
        if runs is None:
            return self
        start = turn_starts(self.real, self.starts(), runs)
        return Layout(self.real, start, runs, self.packed, None)

    def starts(self) -> Tensor:
        """`start` as a tensor."""
        return sequence_starts(self.real) if self.start is None else self.start


def turn_starts(real: Tensor, start: Tensor, runs: Tensor) -> Tensor:
    """The column where each token's turn starts, long `[batch, seq]`: the sequence's start, or that of a later run.

    Args:
        real: bool `[batch, seq]`.
        start: the column where each token's sequence starts.
        runs: bool `[batch, seq]`, the prompts of all turns.
    """
    columns = torch.arange(real.shape[1], device=real.device)
    latest = torch.where(real, columns, -1).cummax(1).values
    before = torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1)  # the real token before each column
    answer = (real > runs) & (count_through(runs, start) > 0)
    begins = runs & (before >= start) & answer.gather(1, before.clamp_min(0))
    return torch.maximum(start, (begins * columns).cummax(1).values)


def sequence_starts(real: Tensor, position_ids: Tensor | None = None, cu_seq_lens: Tensor | None = None) -> Tensor:
    """The column where each token's sequence starts, long `[batch, seq]`.

    A sequence starts at the first real token of a row, where `position_ids` `[batch or 1, seq]` do not increase
    between real tokens, and at the offsets `cu_seq_lens` `[sequences + 1]` of a single packed row.
    """
    columns = torch.arange(real.shape[1], device=real.device)
    starts = real & (real.cumsum(1) == 1)
    if cu_seq_lens is not None:
        offsets = cu_seq_lens[:-1].to(real.device, torch.long).clamp(0, real.shape[1] - 1)
        starts = starts | torch.zeros_like(real).index_fill(1, offsets, True)
    elif position_ids is not None:
        ids = position_ids.expand_as(real)
        restart = (ids[:, 1:] <= ids[:, :-1]) & real[:, 1:] & real[:, :-1]
        starts = starts | torch.nn.functional.pad(restart, (1, 0), value=False)
    return (starts * columns).cummax(1).values


def shifted_right(mask: Tensor) -> Tensor:
    """Which tokens are real, bool `[batch, seq]`, where a start token is put before and the last column falls off.

    As many as before, so that a padded row has the tokens of the same row alone.

    Args:
        mask: `[batch, seq]`, not 0 on the real tokens of the row as it was.
    """
    moved = torch.nn.functional.pad(mask.bool()[:, :-1], (1, 0), value=True)
    return moved & (moved.cumsum(1) <= mask.bool().sum(1, keepdim=True))


def count_before(mask: Tensor, start: Tensor | None) -> Tensor:
    """How many tokens of `mask`, real ones, stand before each column in its own sequence, long `[batch, seq]`."""
    before = torch.add(mask.cumsum(1), mask, alpha=-1)
    return before if start is None else before - before.gather(1, start)


def count_through(mask: Tensor, start: Tensor | None) -> Tensor:
    """The same with the column's own token: long `[batch, seq]`."""
    count = mask.cumsum(1)
    return count if start is None else count - torch.add(count, mask, alpha=-1).gather(1, start)


def count_in_sequence(mask: Tensor, start: Tensor | None) -> Tensor:
    """How many tokens of `mask` each column's sequence has, long `[batch, seq]`, or `[batch, 1]` without `start`."""
    if start is None:
        return mask.sum(1, keepdim=True)
    totals = torch.zeros_like(start).scatter_add(1, start, mask.long())
    return totals.gather(1, start)


def prompt_before(supervised: Tensor, real: Tensor, start: Tensor | None, *, shifted: bool = False) -> Tensor:
    """Real tokens before the first that a label supervises, bool `[batch, seq]`.

    Args:
        supervised: bool `[batch, seq]`, where labels are not −100.
        real: bool `[batch, seq]`.
        start: the column where each token's sequence starts.
        shifted: labels stand at the position that predicts them (the decoder of an encoder-decoder): the token at the
            first supervised position is then part of the prompt.
    """
    seen = (count_before if shifted else count_through)(supervised & real, start)
    return real & (seen == 0)


def prompt_from_mask(real: Tensor, start: Tensor | None, marked: Tensor) -> Tensor:
    """The first run of ones of an explicit mask in each sequence.

    Args:
        real: bool `[batch, seq]`.
        start: the column where each token's sequence starts.
        marked: bool `[batch, seq]`, real tokens.
    """
    broken = (real > marked) & (count_through(marked, start) > 0)
    return marked & (count_through(broken, start) == 0)


def prompt_runs(layout: Layout, supervised: Tensor) -> Tensor:
    """An explicit mask that says of each sequence what its labels say: bool `[batch, seq]`, one run a turn.

    Marked is what an answer follows: every token that is not supervised, up to the last supervised one. The first run
    is the prompt of `layout`. A sequence without a prompt has no run at all, and one without labels is all prompt.

    Args:
        layout: of the batch, its prompt inferred from the labels.
        supervised: bool `[batch, seq]`, where labels are not −100.
    """
    supervised = supervised & layout.real
    total = count_in_sequence(supervised, layout.start)
    answered = (total == 0) | (count_through(supervised, layout.start) < total)
    return (layout.real > supervised) & answered & (layout.lengths() > 0)


def prompt_from_lengths(real: Tensor, start: Tensor | None, lengths: Tensor) -> Tensor:
    """The first `lengths[row]` real tokens of each row; `lengths` is `[batch]`."""
    return real & (count_through(real, start) <= lengths[:, None])


def without_filler(real: Tensor, start: Tensor | None, known: Tensor) -> Tensor:
    """Real tokens of a packed row: a sequence of one token about which nothing is `known` is padding of the row."""
    return real & ((count_in_sequence(real, start) > 1) | known)


def layout_of(
    real: Tensor,
    start: Tensor | None,
    prompt: Tensor,
    *,
    packed: bool,
    supervised: Tensor | None,
    sequences: int | None,
) -> Layout:
    """A layout, after the rules for packed rows.

    In a packed row a prompt of one token counts as none, because trainers mask the first label of every sequence; and
    with labels a sequence of one token that is not supervised is padding of the row.
    """
    if packed and supervised is not None:
        real = without_filler(real, start, supervised)  # of whose prompts the rule for one token takes the rest
        lengths = count_in_sequence(prompt, start)
        several = lengths > 1
        layout = Layout(real, start, prompt & several, packed, sequences)
        layout._lengths = lengths * several
        return layout
    return Layout(real, start, prompt, packed, sequences)
