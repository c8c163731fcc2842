"""Full row rank of raw matrices: what has less has no orthonormal counterpart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import AdapterLoadError
from .reader import edit_of
from .schema import SiteGroup
from .tensors import TensorInfo, read_values

__all__ = ["check_ranks", "has_full_rank"]

MAX_CONDITION = 1e6
MAX_SCALE = 1e15
"""Of a raw matrix: its squares, and those of its inverse, stay inside float32."""


def has_full_rank(raw: NDArray[np.floating]) -> bool:
    """Whether the rows of `[rank, hidden]` are independent in the precision that computes.

    The ratio of the largest singular value to the smallest is below 1e6, and both lie between 1e-15 and 1e15.
    """
    values = np.linalg.svd(raw.astype(np.float64), compute_uv=False)
    if not values.size:
        return False
    largest, smallest = float(values[0]), float(values[-1])
    return smallest > 1 / MAX_SCALE and largest < MAX_SCALE and smallest * MAX_CONDITION > largest


def check_ranks(weights: Path, tensors: Mapping[str, TensorInfo], groups: tuple[SiteGroup, ...]) -> None:
    """Refuse raw matrices without full rank, after `check_folder`; judged in float32, the least that computes.

    Args:
        weights: the safetensors file.
        tensors: of it.
        groups: of the config.

    Raises:
        AdapterLoadError: names the matrix.
    """
    for name, values in read_values(weights, list(_raw(tensors, groups))):
        with np.errstate(over="ignore", under="ignore"):
            held = values.astype(np.float32)
        if not np.isfinite(held).all() or not has_full_rank(held):
            raise AdapterLoadError(
                f"the raw rotation {name[:120]!r} does not have full rank",
                code="load.rank",
                file=weights.name,
                rule="its rows must be linearly independent, or they have no orthonormal counterpart",
                fix="take an earlier checkpoint",
            )


def _raw(tensors: Mapping[str, TensorInfo], groups: tuple[SiteGroup, ...]) -> Iterator[str]:
    units = [group for group in groups for _ in range(group.units)]
    for name in tensors:
        if (place := edit_of(name)) is not None and place[2] in units[place[1]].signature.orthonormal:
            yield name
