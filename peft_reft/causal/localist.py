"""Localist search by brute force: every set of units of a site, each measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from peft_reft.hub_format.errors import CausalModelError
from peft_reft.runtime.evaluating import device_of, evaluating
from peft_reft.screen import progress

from .accuracy import Decode, decoded
from .dataset import Encode, InterchangeDataset
from .edits import Edit
from .frozen import moved
from .interchange import source_views
from .model import CausalModel
from .pairs import Pair
from .passes import run
from .site import Site

__all__ = ["localist_search"]

_MOST = 100_000


def localist_search(
    model: nn.Module,
    causal_model: CausalModel,
    site: Site,
    variable: str,
    size: int,
    pairs: Sequence[Pair] | InterchangeDataset,
    *,
    encode: Encode,
    decode: Decode,
    width: int,
) -> list[tuple[tuple[int, ...], float]]:
    """The interchange accuracy of every set of `size` units, the best first: what alignment search is compared with.

    The first of so many is partly lucky: measure it again on other pairs, with `interchange_accuracy`.

    Args:
        model: as for `interchange_accuracy`.
        causal_model: as for `interchange_accuracy`.
        site: without units and mask; with a space, units are its features.
        variable: that the pairs exchange, and no other.
        size: of the sets.
        pairs: as for `interchange_accuracy`, in one batch.
        encode: as for `interchange_accuracy`.
        decode: as for `interchange_accuracy`.
        width: number of units there.

    Returns:
        Each set with its accuracy, 0 to 1, the best first.

    Raises:
        CausalModelError: pairs of other variables, or more than 100,000 sets.
    """
    count = math.comb(width, size) if size >= 1 else 0
    if not 1 <= count <= _MOST:
        raise CausalModelError(
            f"{count} sets of {size} of {width} units",
            code="causal.localist",
            value=(size, width),
            rule=f"1 to {_MOST} sets: brute force grows with the binomial coefficient",
        )
    data = pairs if isinstance(pairs, InterchangeDataset) else InterchangeDataset.from_pairs(causal_model, pairs)
    if data.variables != (variable,):
        raise CausalModelError(
            f"pairs of {', '.join(data.variables)}",
            code="causal.pairs",
            value=data.variables,
            rule=f"every pair exchanges {variable!r} alone",
        )
    device = device_of(model)
    base = moved(encode([item["base"] for item in data]), device)
    source = moved(encode([item["sources"][variable] for item in data]), device)
    labels = [item["label"] for item in data]
    found = []
    with evaluating(model), torch.no_grad():
        view = source_views(model, {variable: source}, {variable: site})[variable]
        for units in progress(itertools.combinations(range(width), size), "localist", unit="set", total=count):
            output, _ = run(model, base, edits=[Edit(replace(site, units=units), source=view)])
            values = decoded(decode(output), labels)
            found.append((units, sum(bool(v == label) for v, label in zip(values, labels, strict=True)) / len(data)))
    return sorted(found, key=lambda entry: -entry[1])
