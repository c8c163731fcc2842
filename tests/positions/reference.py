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


def claims(spec: str, sequence: Columns, prompt: Columns) -> list[Columns]:
    """For each term of a spec the columns that it claims in one sequence."""
    pieces = re.findall(r"(?:^|[+-])[^+\[(-]+(?:\[[^\]]*\]|\([^)]*\))?", spec.replace(" ", ""))
    taken = [column for piece in pieces if piece[0] == "-" for column in _selected(piece[1:], sequence, prompt)]
    result = []
    for piece in pieces:
        if piece[0] == "-":
            continue
        claimed = [column for column in _selected(piece.lstrip("+"), sequence, prompt) if column not in taken]
        taken = taken + claimed
        result.append(claimed)
    return result


def _selected(term: str, sequence: Columns, prompt: Columns) -> Columns:
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
) -> list[set[tuple[int, int]]]:
    """For each term of a spec the tokens (row, column) that it edits in a batch."""
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
            for term, columns in enumerate(claims(spec, sequence, prompt)):
                while len(found) <= term:
                    found.append(set())
                found[term] |= {(row, column) for column in columns}
    return found
