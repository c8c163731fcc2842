"""Which parts of a block are added to its residual stream, told from the numbers of one call.

A pure function. The stream starts as the block's input. It goes on where something that was seen in the call equals
the stream plus one or more parts (parallel blocks add two at once), and where a norm takes it (post-norm blocks as
BERT's go on from the norm's output). A part that is met on the way is what the block adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

__all__ = ["Flow", "equal", "follow"]

ROUNDINGS = 4
"""Roundings to the tensors' dtype that two ways to the same sum may differ by."""
VISIBLE = 0.1
"""Share of a part's numbers that must exceed the rounding of the stream, or nothing can be told."""


@dataclass(frozen=True)
class Flow:
    """What was found.

    Attributes:
        added: names of the parts that the stream takes up.
        faint: names of the parts that vanish in the stream's rounding, as with zero weights.
        closed: whether the stream reaches the block's output.
    """

    added: frozenset[str]
    faint: frozenset[str]
    closed: bool


def follow(
    start: Tensor,
    end: Tensor,
    seen: Sequence[Tensor],
    norms: Sequence[tuple[Tensor, Tensor]],
    parts: Mapping[str, Tensor],
    eps: float,
    kept: Mapping[str, float] | None = None,
) -> Flow:
    """Follow the residual stream of a block from its input to its output.

    Args:
        start, end: the block's input and output, `[tokens, hidden]` in float64, as all tensors here.
        seen: inputs and outputs of the modules inside.
        norms: (input, output) of the norms inside.
        parts: name → what the part is thought to add.
        eps: of the dtype that the block computes in.
        kept: name → by how much the stream is multiplied where the part is added to it; 1 without.
    """
    kept = kept or {}
    stops = [*seen, end]
    faint = {name for name, part in parts.items() if _is_faint(part, start, eps)}
    stream, added = [start], set[str]()
    for here in stream:  # grows as it is walked
        for names, total in _sums({name: part for name, part in parts.items() if name not in faint}):
            kept_of = {kept.get(name, 1.0) for name in names}
            if len(kept_of) > 1:
                continue
            base = kept_of.pop() * here
            goal = base + total
            reached = [stop for stop in stops if equal(stop, goal, eps, base, total)]
            if reached:
                added |= names
                stream += [stop for stop in reached[:1] if not _among(stop, stream, eps)]
        stream += [after for before, after in norms if equal(before, here, eps) and not _among(after, stream, eps)]
    return Flow(frozenset(added), frozenset(faint), _among(end, stream, eps))


def equal(one: Tensor, other: Tensor, eps: float, *terms: Tensor) -> bool:
    """Whether two tensors agree to rounding, that of the terms that they are sums of included."""
    if one.shape != other.shape:
        return False
    scale = one.abs().maximum(other.abs())
    for term in terms:
        scale = scale.maximum(term.abs())
    return bool(((one - other).abs() <= ROUNDINGS * eps * scale + 1e-30).all())


def _is_faint(part: Tensor, stream: Tensor, eps: float) -> bool:
    rounding = 2 * ROUNDINGS * eps * stream.abs().maximum(part.abs())
    return bool((part.abs() > rounding).double().mean() < VISIBLE)


def _sums(parts: Mapping[str, Tensor]) -> Iterator[tuple[set[str], Tensor]]:
    for count in range(1, len(parts) + 1):
        for names in combinations(parts, count):
            total = parts[names[0]]
            for name in names[1:]:
                total = total + parts[name]
            yield set(names), total


def _among(tensor: Tensor, stream: Sequence[Tensor], eps: float) -> bool:
    return any(equal(tensor, other, eps) for other in stream)
