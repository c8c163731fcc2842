"""`interchange_accuracy`: how often the network under an interchange does what the causal model says (IIA)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import nn

from peft_reft.hub_format.errors import CausalModelError

from .distribution import Distribution
from .inputs import Inputs
from .interchange import Alignment, interchange
from .model import CausalModel, Values
from .pairs import Pair

__all__ = ["Accuracy", "Decode", "Encode", "interchange_accuracy", "wilson_interval"]

Encode = Callable[[Sequence[Values]], Inputs]
"""Inputs of the causal model → a batch for the network."""

Decode = Callable[[Any], Iterable[Any]]
"""What the network returns → for each row of the batch a value of the causal model's output variable; tensors are
compared by the numbers in them."""


@dataclass(frozen=True)
class Accuracy:
    """Interchange intervention accuracy (arXiv 2106.02997, 2303.02536).

    Attributes:
        correct, total: pairs.
        interval: Wilson's interval of the accuracy.
        unchanged: share of pairs whose label is the base's own: what a site that does nothing gets.
        constant: share of the most common label: what a network that always answers the same gets.
    """

    correct: int
    total: int
    interval: tuple[float, float]
    unchanged: float
    constant: float

    @property
    def chance(self) -> float:
        """The larger of `unchanged` and `constant`: what shows nothing."""
        return max(self.unchanged, self.constant)

    @property
    def value(self) -> float:
        """Share of pairs, 0 to 1."""
        return self.correct / self.total

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} of {self.total} ({low:.1%} to {high:.1%}; chance {self.chance:.1%})"


def interchange_accuracy(
    model: nn.Module,
    causal_model: CausalModel,
    alignment: Alignment,
    pairs: Iterable[Pair],
    *,
    encode: Encode,
    decode: Decode,
    batch_size: int = 256,
    confidence: float = 0.95,
) -> Accuracy:
    """How often the network with interchange gives what the causal model with interchange gives.

    Args:
        model: any module; it runs in eval mode without gradients and is left in the mode it was in.
        causal_model: what the network is thought to compute.
        alignment: variable → site.
        pairs: from `every_pair`, `sample_pairs` or one's own.
        encode: inputs of the causal model → a batch.
        decode: the network's output → values of the causal model's output.
        batch_size: pairs per forward.
        confidence: of the interval.

    Raises:
        CausalModelError: no pairs, a variable without a site, an output that is not certain, a decode that gives
            another number of values.
    """
    listed = list(pairs)
    if not listed or batch_size < 1:
        raise CausalModelError(
            f"{len(listed)} pairs in batches of {batch_size}", code="causal.pairs", rule="one or more of both"
        )
    groups: dict[frozenset[str], list[Pair]] = {}
    for pair in listed:
        groups.setdefault(frozenset(pair.sources), []).append(pair)
    correct = 0
    with evaluating(model), torch.no_grad():
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                labels = [_certain(pair.label(causal_model)) for pair in batch]
                base, sources = encoded(batch, encode)
                found = list(_values(decode(interchange(model, base, sources, alignment))))
                if len(found) != len(batch):
                    raise CausalModelError(
                        f"decode gave {len(found)} values for {len(batch)} rows",
                        code="causal.decode",
                        value=len(found),
                        rule="one value of the output variable for each row",
                    )
                correct += sum(bool(value == label) for value, label in zip(found, labels, strict=True))
    kept = sum(not pair.changes(causal_model) for pair in listed)
    most = Counter(pair.label(causal_model) for pair in listed).most_common(1)[0][1]
    interval = wilson_interval(correct, len(listed), confidence)
    return Accuracy(correct, len(listed), interval, kept / len(listed), most / len(listed))


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): it stays in 0 to 1 and has a width at 0 % and 100 % too.

    >>> low, high = wilson_interval(81, 100)
    >>> round(low, 3), round(high, 3)
    (0.722, 0.875)
    """
    if not 0 <= correct <= total or total < 1 or not 0 < confidence < 1:
        raise CausalModelError(
            f"{correct} of {total} at confidence {confidence}",
            code="causal.interval",
            value=(correct, total, confidence),
            rule="0 ≤ correct ≤ total, total ≥ 1, 0 < confidence < 1",
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / total, z * z / total
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def encoded(batch: Sequence[Pair], encode: Encode) -> tuple[Inputs, dict[str, Inputs]]:
    """The base's batch and each variable's source batch, of pairs that exchange the same variables."""
    base = encode([pair.base for pair in batch])
    return base, {name: encode([pair.sources[name] for pair in batch]) for name in batch[0].sources}


class evaluating:  # noqa: N801  a context, named as what it does
    """Eval mode of every module within; afterwards each is in the mode it was in."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes:
            module.training = training


def _values(found: Iterable[Any]) -> Iterable[Any]:
    return found.tolist() if isinstance(found, torch.Tensor) else found


def _certain(label: Any) -> Any:
    if isinstance(label, Distribution):
        raise CausalModelError(
            f"the output is {label!r}",
            code="causal.output",
            value=label,
            rule="accuracy counts outputs that are certain",
            fix="compare distributions with a loss of AlignmentSearch",
        )
    return label
