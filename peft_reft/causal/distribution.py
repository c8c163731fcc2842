"""A finite distribution over the values of a variable."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

from peft_reft.hub_format.errors import CausalModelError

__all__ = ["Distribution"]

_TOLERANCE = 1e-6


class Distribution(Mapping[Hashable, float]):
    """Value → probability, for a variable of a `CausalModel` that is not certain.

    A function of a causal model may return one, and an input or an intervention may be one. Distributions that a
    model gives are exact: it follows every possible world (`CausalModel.run`).

    Args:
        probabilities: value → probability; they are not negative and sum to 1.

    Raises:
        CausalModelError: a negative probability, or a sum other than 1.

    >>> Distribution({True: 0.25, False: 0.75})[True]
    0.25
    """

    def __init__(self, probabilities: Mapping[Hashable, float]) -> None:
        if not isinstance(probabilities, Mapping):
            raise CausalModelError(
                f"a distribution of {type(probabilities).__name__}",
                code="causal.distribution",
                value=type(probabilities).__name__,
                rule="it maps values to probabilities",
                fix="Distribution.uniform(values) where all have the same",
            )
        self._table = {value: float(p) for value, p in probabilities.items() if p != 0}
        total = sum(self._table.values())
        if not self._table or any(not p > 0 for p in self._table.values()) or abs(total - 1) > _TOLERANCE:
            raise CausalModelError(
                f"probabilities {dict(probabilities)!r} are no distribution",
                code="causal.distribution",
                value=dict(probabilities),
                rule="probabilities are not negative and sum to 1",
            )

    @classmethod
    def uniform(cls, values: Iterable[Hashable]) -> Distribution:
        """Every one of the values with the same probability.

        Args:
            values: one or more; what stands twice counts once.

        Returns:
            The distribution.

        Raises:
            CausalModelError: no values.
        """
        chosen = list(dict.fromkeys(values))
        return cls({value: 1 / len(chosen) for value in chosen} if chosen else {})

    def __getitem__(self, value: Hashable) -> float:
        return self._table.get(value, 0.0)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, value: object) -> bool:
        return value in self._table

    def __repr__(self) -> str:
        return f"Distribution({self._table!r})"
