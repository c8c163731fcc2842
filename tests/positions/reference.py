"""Which tokens are edited, said slowly: loops over rows, sequences and tokens, in plain lists.

Written from the rules alone and kept free of the library, so that both can be wrong only independently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Columns = list[int]


def split_row(
    real: Sequence[bool], *, position_ids: Sequence[int] | None = None, offsets: Sequence[int] | None = None
) -> list[Columns]:
    """The sequences of one row, each as the columns of its real tokens."""
    sequences: list[Columns] = []
    previous = None
    for column, is_real in enumerate(real):
        if not is_real:
            previous = None
            continue
        begins = not sequences
        if offsets is not None:
            begins = begins or column in offsets[:-1]
        elif position_ids is not None and previous is not None:
            begins = begins or position_ids[column] <= previous
        if begins:
            sequences.append([])
        sequences[-1].append(column)
        previous = None if position_ids is None else position_ids[column]
    return sequences


def prompt_of(
    sequence: Columns,
    *,
    labels: Sequence[int] | None = None,
    mask: Sequence[int] | None = None,
    length: int | None = None,
    width: int | None = None,
    packed: bool = False,
) -> Columns:
    """The prompt of one sequence: said by a mask, a length or `generate` (`width`), else inferred from labels."""
    prompt: Columns = []
    for number, column in enumerate(sequence):
        if mask is not None:
            if mask[column] == 0:
                if prompt:
                    break
                continue
        elif length is not None:
            if number >= length:
                break
        elif width is not None:
            if column >= width:
                break
        elif labels is not None and labels[column] != -100:
            break
        prompt.append(column)
    if packed and labels is not None and mask is None and length is None and len(prompt) == 1:
        return []
    return prompt


def turns_of(
    sequence: Columns,
    prompt: Columns,
    *,
    labels: Sequence[int] | None = None,
    mask: Sequence[int] | None = None,
    length: int | None = None,
) -> list[tuple[Columns, Columns]]:
    """The turns of one sequence, each as its columns and its prompt: what stands before an answer is a prompt."""
    if not prompt or length is not None or (mask is None and labels is None):
        return [(sequence, prompt)]
    turns: list[tuple[Columns, Columns]] = [([], [])]
    answered = False
    for place, column in enumerate(sequence):
        if mask is not None:
            asks = mask[column] == 1
        else:
            answers_follow = any(labels[later] != -100 for later in sequence[place:])
            answers_exist = any(labels[other] != -100 for other in sequence)
            asks = labels[column] == -100 and (answers_follow or not answers_exist)
        if asks and answered:
            turns.append(([], []))
            answered = False
        turns[-1][0].append(column)
        if asks:
            turns[-1][1].append(column)
        elif turns[-1][1]:
            answered = True
    return turns


def claims(spec: str, sequence: Columns, prompt: Columns, special: Columns) -> list[Columns]:
    """For each term of a spec the columns that it claims in one sequence; `special` are those of `tok(…)`."""
    pieces = re.findall(r"(?:^|[+-])[^+\[(-]+(?:\[[^\]]*\]|\([^)]*\))?", "".join(spec.split()))
    taken = [
        column for piece in pieces if piece[0] == "-" for column in _selected(piece[1:], sequence, prompt, special)
    ]
    result = []
    for piece in pieces:
        if piece[0] == "-":
            continue
        claimed = [column for column in _selected(piece.lstrip("+"), sequence, prompt, special) if column not in taken]
        taken = taken + claimed
        result.append(claimed)
    return result


def _selected(term: str, sequence: Columns, prompt: Columns, special: Columns) -> Columns:
    if term.startswith("tok"):
        return [column for column in sequence if column in special]
    after = [column for column in sequence if column > prompt[-1]] if prompt else list(sequence)
    if term == "all":
        return list(sequence)
    if term == "prompt":
        return list(prompt)
    if term == "generated":
        return after
    if term[0] == "f":
        return (prompt or sequence)[: int(term[1:])]
    if term[0] == "l":
        return prompt[-int(term[1:]) :]
    start, stop = (int(bound) if bound else None for bound in term[2:-1].split(":"))
    return (prompt if term[0] == "p" else after)[start:stop]


def _is_spoken_of(column: int, labels: Sequence[int] | None, mask: Sequence[int] | None) -> bool:
    if mask is not None:
        return mask[column] == 1
    return labels is None or labels[column] != -100


def edited_tokens(
    spec: str,
    real: Sequence[Sequence[bool]],
    *,
    labels: Sequence[Sequence[int]] | None = None,
    mask: Sequence[Sequence[int]] | None = None,
    lengths: Sequence[int] | None = None,
    width: int | None = None,
    position_ids: Sequence[Sequence[int]] | None = None,
    offsets: Sequence[int] | None = None,
    packed: bool = False,
    special: Sequence[Sequence[bool]] | None = None,
    turns: str = "first",
) -> list[set[tuple[int, int]]]:
    """For each term of a spec the tokens (row, column) that it edits in a batch; `special` marks those of `tok(…)`."""
    found: list[set[tuple[int, int]]] = []
    for row, flags in enumerate(real):
        ids = None if position_ids is None else position_ids[row]
        for sequence in split_row(flags, position_ids=ids, offsets=offsets):
            row_labels = None if labels is None else labels[row]
            if packed and len(sequence) == 1 and not _is_spoken_of(sequence[0], row_labels, mask and mask[row]):
                continue  # the row's padding
            prompt = prompt_of(
                sequence,
                labels=row_labels,
                mask=None if mask is None else mask[row],
                length=None if lengths is None else lengths[row],
                width=width,
                packed=packed,
            )
            named = [column for column in sequence if special is not None and special[row][column]]
            parts = [(sequence, prompt)]
            if turns == "each":
                told_length = None if lengths is None else lengths[row]
                told_mask = None if mask is None else mask[row]
                parts = turns_of(sequence, prompt, labels=row_labels, mask=told_mask, length=told_length)
            for part, asked in parts:
                for term, columns in enumerate(claims(spec, part, asked, named)):
                    while len(found) <= term:
                        found.append(set())
                    found[term] |= {(row, column) for column in columns}
    return found
