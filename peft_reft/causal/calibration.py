"""Is an alignment more than a search finds anywhere? Searches in untrained networks, permuted labels, baselines.

With free enough maps an untrained network aligns with any causal model (arXiv 2507.08802), so an accuracy says little
by itself. Here it is compared with the same search in networks before training. If a network were one of those, each
order of its accuracy among theirs would be as likely as any other, whatever the search does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from peft_reft.hub_format.errors import CausalModelError

from .accuracy import Accuracy

__all__ = ["Calibration", "CalibrationWarning", "Nulls", "exceedance_bound", "over_sites", "permuted_value"]

FEWEST = 100
"""Searches in untrained networks."""
PERMUTATIONS = 1000


class CalibrationWarning(UserWarning):
    """A figure that means less than it seems to."""


@dataclass(frozen=True)
class Nulls:
    """The accuracies that a search reaches in untrained networks; to be shared by all searches of the same kind.

    Attributes:
        accuracies: on the held-out pairs, of each.
        settings: what a search must have in common with them.
    """

    accuracies: tuple[float, ...]
    settings: Mapping[str, Any]

    def reached(self, value: float) -> int:
        """How many of them reached a value.

        Args:
            value: an accuracy, 0 to 1.

        Returns:
            How many are at least that.
        """
        return sum(one >= value for one in self.accuracies)


@dataclass(frozen=True)
class Calibration:
    """An accuracy beside what shows nothing.

    Attributes:
        accuracy: of the search, on pairs that it was not fitted on.
        neurons: of the same number of single neurons, chosen by a mask fitted in the same way.
        whole: of the exchange of the whole vector; None where pairs exchange several variables there.
        nulls: of untrained networks.
        permuted: share of permutations of the labels that the answers fit as well.
        alpha: the largest share of false discoveries.
    """

    accuracy: Accuracy
    neurons: Accuracy
    whole: Accuracy | None
    nulls: Nulls
    permuted: float
    alpha: float

    @property
    def p_value(self) -> float:
        """Of the hypothesis that the network is like an untrained one: its rank among the nulls."""
        return (1 + self.nulls.reached(self.accuracy.value)) / (1 + len(self.nulls.accuracies))

    @property
    def bound(self) -> float:
        """With 95 % confidence the share of untrained networks that reach the accuracy is no larger.

        Finitely many nulls, shared by many searches, may be few by luck; this allows for it.
        """
        return exceedance_bound(self.nulls.reached(self.accuracy.value), len(self.nulls.accuracies))

    @property
    def found(self) -> bool:
        """Whether the variables are there: `bound` and `permuted` are at most `alpha`."""
        return self.bound <= self.alpha and self.permuted <= self.alpha

    @property
    def worse_than_neurons(self) -> bool:
        """Whether single neurons do better than the rotation, beyond the chance of so many pairs."""
        return self.neurons.interval[0] > self.accuracy.value

    def __str__(self) -> str:
        values = sorted(self.nulls.accuracies)
        rows = [
            ("search", str(self.accuracy)),
            ("neurons", str(self.neurons)),
            ("whole vector", "not one variable at a time" if self.whole is None else str(self.whole)),
            ("untrained", f"{values[len(values) // 2]:.1%} (median of {len(values)}; largest {values[-1]:.1%})"),
            ("p", f"{self.p_value:.3g}, at most {self.bound:.3g}; labels permuted {self.permuted:.3g}"),
            ("found", "yes" if self.found else "no"),
        ]
        return "\n".join(f"{name:<13} {text}" for name, text in rows)


def exceedance_bound(reached: int, count: int, confidence: float = 0.95) -> float:
    """The upper limit of a probability of which `reached` of `count` draws came true (Clopper and Pearson, 1934)."""
    if reached >= count:
        return 1.0
    low, high = reached / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(reached, count, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(reached: int, count: int, share: float) -> float:
    """The probability of at most so many."""
    term, total = (1 - share) ** count, 0.0
    for number in range(reached + 1):
        total += term
        term *= (count - number) / (number + 1) * share / (1 - share) if share < 1 else 0.0
    return total


def permuted_value(answers: Sequence[tuple[Any, Any]], *, seed: int, count: int = PERMUTATIONS) -> float:
    """The share of permutations of labels among pairs, the given one included, that the answers fit as well.

    Args:
        answers: what the network gave, and the label, of each pair.
        seed: of a generator of its own.
        count: of permutations.
    """
    generator = random.Random(seed)
    given, labels = [value for value, _ in answers], [label for _, label in answers]
    own = _fitting(given, labels)
    reached = 1
    for _ in range(count):
        generator.shuffle(labels)
        reached += _fitting(given, labels) >= own
    return reached / (count + 1)


def _fitting(given: Sequence[Any], labels: Sequence[Any]) -> int:
    return sum(bool(value == label) for value, label in zip(given, labels, strict=True))


def over_sites(found: Mapping[str, Calibration]) -> dict[str, float]:
    """The bounds of several sites that were searched for the same, corrected for their number (Holm, 1979).

    A site's variables are there, with at most `alpha` of a chance that any of the sites is a false discovery, where
    its value is at most that. Few nulls cannot be small enough for many sites: take 100 for each.

    Args:
        found: name of a site → its calibration.

    Returns:
        Name → corrected bound, 0 to 1, in the order given.

    Raises:
        CausalModelError: no site.
    """
    if not found:
        raise CausalModelError("no site", code="causal.calibrate", value=0, rule="one or more")
    order = sorted(found, key=lambda name: max(found[name].bound, found[name].permuted))
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(order):
        own = max(found[name].bound, found[name].permuted)
        largest = max(largest, min(1.0, (len(order) - place) * own))
        corrected[name] = largest
    return {name: corrected[name] for name in found}


Untrained = Callable[[int], nn.Module]
"""A seed → a network of the kind that is searched, before training."""
