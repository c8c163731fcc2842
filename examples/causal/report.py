"""What the three small examples measure, as plain numbers for a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from peft_reft.causal import Accuracy

from . import addition, conjunction, equality

__all__ = ["DEGREES", "DIMENSIONS", "SIZES", "measured_addition", "measured_conjunction", "measured_equality"]

DEGREES = range(0, 91, 5)
DIMENSIONS = (1, 2, 3, 4, 6)
SIZES = {"first": (16, (1, 2, 3)), "first.0": (64, (1, 2))}
"""Module → its number of neurons, and sizes of the sets that brute force goes through."""


def measured_conjunction(seeds: Sequence[int]) -> dict[str, Any]:
    """Exchanged at given angles; searched; the controls, of which ten networks are untrained."""
    exact = {seed: conjunction.searched_exactly(seed) for seed in seeds}
    return {
        "turned": {str(degrees): _plain(conjunction.measured(conjunction.turned(degrees))) for degrees in DEGREES},
        "searched": {str(seed): _plain(conjunction.searched(seed)[1]) for seed in seeds},
        "exact": {str(seed): _plain(conjunction.measured(search.alignment)) for seed, search in exact.items()},
        "angles": {str(seed): round(conjunction.angle(search), 1) for seed, search in exact.items()},
        "wrong": {
            str(seed): _plain(conjunction.searched(seed, conjunction.XOR, ["A"], restarts=0)[1]) for seed in seeds
        },
        "untrained": {
            str(seed): _plain(conjunction.searched(seed, network=conjunction.Conjunction(seed), restarts=0)[1])
            for seed in range(100, 110)
        },
    }


def measured_addition(seeds: Sequence[int]) -> dict[str, Any]:
    """Neurons by brute force against directions by search, and the controls."""
    networks = {seed: addition.trained(seed) for seed in seeds}
    return {
        "right": {str(seed): addition.right(network) for seed, network in networks.items()},
        "localist": {
            f"{module} {size}": {
                str(seed): _plain(addition.best_units(network, seed, size, module=module, width=width)[1])
                for seed, network in networks.items()
            }
            for module, (width, sizes) in SIZES.items()
            for size in sizes
        },
        "searched": {
            str(dimension): {
                str(seed): _plain(addition.searched(network, seed, dimension=dimension)[1])
                for seed, network in networks.items()
            }
            for dimension in DIMENSIONS
        },
        "wrong": {
            str(seed): _plain(addition.searched(network, seed, addition.WRONG, restarts=0)[1])
            for seed, network in networks.items()
        },
        "untrained": {
            str(seed): _plain(addition.searched(addition.trained(seed, 0), seed, restarts=0)[1]) for seed in seeds
        },
    }


def measured_equality(seeds: Sequence[int]) -> dict[str, Any]:
    """Both equalities searched, whole vectors exchanged, and the controls."""
    networks = {seed: equality.trained(seed) for seed in seeds}
    return {
        "right": {str(seed): equality.right(network) for seed, network in networks.items()},
        "exchanged": {str(seed): _plain(equality.exchanged(network, seed)) for seed, network in networks.items()},
        "searched": {str(seed): _plain(equality.searched(network, seed)[1]) for seed, network in networks.items()},
        "wrong": {
            str(seed): _plain(equality.searched(network, seed, equality.WRONG, restarts=0)[1])
            for seed, network in networks.items()
        },
        "untrained": {
            str(seed): _plain(equality.searched(equality.trained(seed, 0), seed, restarts=0)[1]) for seed in seeds
        },
    }


def _plain(found: Accuracy) -> dict[str, Any]:
    return {**asdict(found), "interval": list(found.interval)}
