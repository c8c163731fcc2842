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
from peft_reft.runtime.evaluating import device_of, evaluating

from .dataset import Encode, InterchangeDataset, exchanged_of
from .distribution import Distribution
from .frozen import moved
from .inputs import call_model
from .interchange import Alignment, interchange
from .model import CausalModel, Values
from .pairs import Pair

__all__ = [
    "Accuracy",
    "Decode",
    "answered",
    "decoded",
    "interchange_accuracy",
    "interchange_answers",
    "wilson_interval",
]

Decode = Callable[[Any], Iterable[Any]]
"""What the network returns → for each row of the batch a value of the causal model's output variable; tensors are
compared by the numbers in them."""


@dataclass(frozen=True)
class Accuracy:
    """Interchange intervention accuracy (arXiv 2106.02997, 2303.02536).

    Attributes:
        correct: pairs whose answer is the causal model's.
        total: pairs.
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
    pairs: Iterable[Pair] | InterchangeDataset,
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
        pairs: from `every_pair`, `sample_pairs` or one's own; or a dataset, which has its labels already.
        encode: rows → a batch: inputs of the causal model, or what the dataset holds.
        decode: the network's output → values of the causal model's output.
        batch_size: pairs per forward.
        confidence: of the interval.

    Returns:
        The accuracy, with its interval and what chance gives.

    Raises:
        CausalModelError: no pairs, a variable without a site, an output that is not certain, a decode that gives
            another number of values.
    """
    data = pairs if isinstance(pairs, InterchangeDataset) else InterchangeDataset.from_pairs(causal_model, pairs)
    answers = interchange_answers(model, alignment, data, encode=encode, decode=decode, batch_size=batch_size)
    correct = sum(bool(value == label) for value, label in answers)
    kept = sum(bool(item["label"] == item["base_label"]) for item in data)
    most = Counter(item["label"] for item in data).most_common(1)[0][1]
    interval = wilson_interval(correct, len(data), confidence)
    return Accuracy(correct, len(data), interval, kept / len(data), most / len(data))


def interchange_answers(
    model: nn.Module,
    alignment: Alignment,
    data: InterchangeDataset,
    *,
    encode: Encode,
    decode: Decode,
    batch_size: int = 256,
) -> list[tuple[Any, Any]]:
    """What the network with interchange gives, and the label, of each pair; see `interchange_accuracy`."""
    if batch_size < 1:
        raise CausalModelError(f"batch_size={batch_size}", code="causal.pairs", value=batch_size, rule="1 or more")
    groups: dict[frozenset[str], list[dict[str, Any]]] = {}
    for item in data:
        groups.setdefault(frozenset(exchanged_of(item)), []).append(item)
    device = device_of(model)
    answers: list[tuple[Any, Any]] = []
    with evaluating(model), torch.no_grad():
        for names, group in groups.items():
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                base = moved(encode([item["base"] for item in batch]), device)
                sources = {name: moved(encode([item["sources"][name] for item in batch]), device) for name in names}
                labels = [_certain(item["label"]) for item in batch]
                found = decoded(decode(interchange(model, base, sources, alignment)), labels)
                answers += zip(found, labels, strict=True)
    return answers


def answered(
    model: nn.Module,
    causal_model: CausalModel,
    inputs: Sequence[Values],
    *,
    encode: Encode,
    decode: Decode,
    alignment: Alignment | None = None,
    batch_size: int = 256,
) -> list[bool]:
    """For each input, whether the network gives what the causal model gives, nothing exchanged.

    A network that does not do the task cannot do it in the causal model's way: look at this first, and take pairs of
    inputs that are answered rightly (`sample_pairs(inputs=…)`).

    Args:
        model: as for `interchange_accuracy`.
        causal_model: as for `interchange_accuracy`.
        inputs: of the causal model.
        encode: as for `interchange_accuracy`.
        decode: as for `interchange_accuracy`.
        alignment: sites whose `Column` keys the batches hold.
        batch_size: inputs per forward.

    Returns:
        For each input, whether it is answered rightly.
    """
    right: list[bool] = []
    device, sites = device_of(model), list((alignment or {}).values())
    with evaluating(model), torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size]
            labels = [_certain(causal_model.run(values)[causal_model.output]) for values in batch]
            given = moved(encode(batch), device)
            found = decoded(decode(call_model(model, given, sites)), labels)
            right += [bool(value == label) for value, label in zip(found, labels, strict=True)]
    return right


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): it stays in 0 to 1 and has a width at 0 % and 100 % too.

    Args:
        correct: how many.
        total: of how many.
        confidence: that the interval holds the share, between 0 and 1.

    Returns:
        Lower and upper end, 0 to 1.

    Raises:
        CausalModelError: numbers that are no share or no confidence.

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


def decoded(found: Iterable[Any], labels: Sequence[Any]) -> list[Any]:
    """What `decode` gave as a list, one value for each row, of the labels' kind."""
    if isinstance(found, torch.Tensor) and found.dim() != 1:
        raise _undecoded(
            f"decode gave a tensor of shape {list(found.shape)} for {len(labels)} rows", list(found.shape)
        )
    values = found.tolist() if isinstance(found, torch.Tensor) else list(found)
    if len(values) != len(labels):
        raise _undecoded(f"decode gave {len(values)} values for {len(labels)} rows", len(values))
    for value, label in zip(values, labels, strict=True):
        if (
            isinstance(value, str) != isinstance(label, str)
            and isinstance(value, _PLAIN)
            and isinstance(label, _PLAIN)
        ):
            raise _undecoded(f"decode gave {value!r} where the causal model says {label!r}", value)
    return values


def _undecoded(message: str, value: Any) -> CausalModelError:
    return CausalModelError(
        message, code="causal.decode", value=value, rule="one value of the causal model's output for each row"
    )


_PLAIN = (str, int, float)


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
