"""How a calibration is made: one search, one mask over neurons, and searches in untrained networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from peft_reft.hub_format.errors import CausalModelError
from peft_reft.screen import progress

from .accuracy import Accuracy, Decode, interchange_accuracy, interchange_answers
from .calibration import FEWEST, Calibration, CalibrationWarning, Nulls, Untrained, permuted_value
from .dataset import InterchangeDataset, exchanged_of
from .site import Site
from .untrained import untrained_like

__all__ = ["calibrated"]

_APART = 104_729
"""Between the seeds of two untrained networks."""


def calibrated(
    search: Any,
    pairs: InterchangeDataset,
    held_out: InterchangeDataset,
    *,
    decode: Decode,
    settings: Mapping[str, Any],
    seed: int,
    nulls: Nulls | int,
    untrained: Untrained | None,
    alpha: float,
) -> Calibration:
    """See `AlignmentSearch.calibrate`; the search is one, which imports this file."""
    model = search._base[0]
    about = _about(search, settings, len(pairs), len(held_out))
    _check_nulls(nulls, about)

    def fitted(one: Any, start: int) -> Any:
        one.reset(start)
        one.fit(pairs, **settings, seed=start)
        return one

    fitted(search, seed)
    accuracy = search.accuracy(held_out, decode=decode)
    answers = interchange_answers(model, search.alignment, held_out, encode=search.encode, decode=decode)
    neurons = accuracy
    if search.dimensions is not None and not isinstance(search.directions, str):
        neurons = fitted(search.like(model, seed=seed, directions="neurons"), seed).accuracy(held_out, decode=decode)
    if isinstance(nulls, int):
        make = untrained or (lambda number: untrained_like(model, number))
        found = []
        for number in progress(range(nulls), "calibrate", unit="network"):
            start = seed + (number + 1) * _APART
            other = search.like(make(start), seed=start, directions=search.directions)
            found.append(fitted(other, start).accuracy(held_out, decode=decode).value)
        nulls = Nulls(tuple(found), about)
    result = Calibration(
        accuracy,
        neurons,
        _whole(search, held_out, decode),
        nulls,
        permuted_value(answers, seed=seed),
        alpha,
    )
    if result.worse_than_neurons:
        warnings.warn(
            f"the rotation reaches {accuracy.value:.1%} and single neurons {neurons.value:.1%}: it was not fitted "
            "well, and its accuracy says nothing of the site (more steps, another learning rate, restarts)",
            CalibrationWarning,
            stacklevel=3,
        )
    return result


def _check_nulls(nulls: Nulls | int, about: Mapping[str, Any]) -> None:
    if isinstance(nulls, Nulls) and dict(nulls.settings) != about:
        differing = sorted(name for name in about if nulls.settings.get(name) != about[name])
        raise _refuse(f"nulls of another search: {', '.join(differing)} differ", differing)
    if (len(nulls.accuracies) if isinstance(nulls, Nulls) else nulls) < FEWEST:
        raise _refuse(f"nulls={nulls if isinstance(nulls, int) else len(nulls.accuracies)}", FEWEST)


def _whole(search: Any, pairs: InterchangeDataset, decode: Decode) -> Accuracy | None:
    if any(len(list(exchanged_of(item))) > 1 for item in pairs):
        return None
    sites = search.site if isinstance(search.site, Mapping) else dict.fromkeys(search.variables, search.site)
    model = search._base[0]
    return interchange_accuracy(model, search.causal_model, sites, pairs, encode=search.encode, decode=decode)


def _about(search: Any, settings: Mapping[str, Any], fitted: int, held_out: int) -> dict[str, Any]:
    sites: Any = search.site.values() if isinstance(search.site, Mapping) else [search.site]
    model = search._base[0]
    return {
        **settings,
        "network": f"{type(model).__module__}.{type(model).__qualname__}",
        "shapes": tuple(tuple(parameter.shape) for parameter in model.parameters()),
        "site": tuple(site.describe() for site in sites if isinstance(site, Site)),
        "variables": tuple(search.variables if search.dimensions is None else search.dimensions.items()),
        "directions": None if search.directions is None else str(getattr(search.directions, "shape", "neurons")),
        "pairs": (fitted, held_out),
    }


def _refuse(what: str, value: object) -> CausalModelError:
    return CausalModelError(
        what,
        code="causal.calibrate",
        value=value,
        rule=f"at least {FEWEST} searches in untrained networks of the same kind, at the same site, of equal settings",
        fix="leave nulls out to make them, and pass calibration.nulls to further searches",
    )
