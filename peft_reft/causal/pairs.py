"""Base and source inputs of an interchange, and what the causal model says of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_reft.hub_format.errors import CausalModelError

from .model import CausalModel, Values

__all__ = ["Pair", "every_pair", "sample_pairs"]

_TRIES = 1000


@dataclass(frozen=True)
class Pair:
    """One interchange: the base's inputs, and of each variable that is exchanged its source's inputs.

    Args:
        base: inputs.
        sources: variable → inputs.

    >>> Pair({"P": True, "Q": False}, {"Q": {"P": False, "Q": True}}).label(
    ...     CausalModel({"V": lambda P, Q: P and Q}, inputs={"P": (False, True), "Q": (False, True)})
    ... )
    True
    """

    base: Values
    sources: Mapping[str, Values]

    def label(self, causal_model: CausalModel) -> Any:
        """The output that the causal model gives under the interchange.

        Args:
            causal_model: of these inputs.

        Returns:
            A value, or a `Distribution`.
        """
        return causal_model.interchange(self.base, self.sources)[causal_model.output]

    def changes(self, causal_model: CausalModel) -> bool:
        """Whether the interchange gives another output than the base's.

        Args:
            causal_model: of these inputs.

        Returns:
            True where it does.
        """
        return bool(self.label(causal_model) != causal_model.run(self.base)[causal_model.output])


def every_pair(causal_model: CausalModel, variables: Sequence[str]) -> Iterator[Pair]:
    """All pairs in which all of these variables are exchanged, each with a source of its own.

    Args:
        causal_model: its inputs have known values.
        variables: those that are exchanged; there are n^(1 + their number) pairs of n inputs.

    Yields:
        The pairs, bases in the order of `every_input`.

    Raises:
        CausalModelError: no variable, an unknown one, or an input of any value.
    """
    _check(causal_model, variables)
    inputs = list(causal_model.every_input())
    for base, *sources in itertools.product(inputs, repeat=1 + len(variables)):
        yield Pair(base, dict(zip(variables, sources, strict=True)))


def sample_pairs(
    causal_model: CausalModel,
    variables: Sequence[str],
    count: int,
    *,
    seed: int,
    changing: float | None = None,
    inputs: Callable[[random.Random], Values] | None = None,
) -> list[Pair]:
    """Pairs of inputs drawn at random; each exchanges a subset of the variables, drawn uniformly, never empty.

    Args:
        causal_model: its inputs have known values, unless `inputs` is given.
        variables: those that may be exchanged.
        count: number of pairs.
        seed: of a generator of its own.
        changing: the share of pairs, 0 to 1, whose interchange changes the output; None: as it falls.
        inputs: draws one input with the generator; None: each input variable uniformly, for itself.

    Returns:
        The pairs, in the order in which they were drawn.

    Raises:
        CausalModelError: no variable, an unknown one, an input of any value, or a share that 1000 draws do not give.
    """
    _check(causal_model, variables)
    if changing is not None and not 0 <= changing <= 1:
        raise CausalModelError(
            f"changing={changing!r}", code="causal.pairs", value=changing, rule="a share from 0 to 1, or None"
        )
    generator = random.Random(seed)
    subsets = [list(s) for n in range(1, len(variables) + 1) for s in itertools.combinations(variables, n)]

    def draw() -> Pair:
        chosen = generator.choice(subsets)
        needed = 1 + len(chosen)
        drawn: list[Values] = (
            [*causal_model.sample_inputs(needed, seed=generator.getrandbits(64))]
            if inputs is None
            else [inputs(generator) for _ in range(needed)]
        )
        return Pair(drawn[0], dict(zip(chosen, drawn[1:], strict=True)))

    if changing is None:
        return [draw() for _ in range(count)]
    wanted = [index < round(changing * count) for index in range(count)]
    generator.shuffle(wanted)
    return [_drawn(draw, causal_model, change) for change in wanted]


def _drawn(draw: Any, causal_model: CausalModel, change: bool) -> Pair:
    for _ in range(_TRIES):
        pair: Pair = draw()
        if pair.changes(causal_model) == change:
            return pair
    raise CausalModelError(
        f"none of {_TRIES} pairs {'changes' if change else 'keeps'} the output",
        code="causal.pairs",
        value=change,
        fix="leave out changing, or exchange variables on which the output depends",
    )


def _check(causal_model: CausalModel, variables: Sequence[str]) -> None:
    for name in variables:
        causal_model.descendants(name)  # refuses what is no variable
    if not variables or isinstance(variables, str):
        raise CausalModelError(
            f"variables={variables!r}",
            code="causal.pairs",
            value=variables,
            rule="a list of one or more names",
        )
