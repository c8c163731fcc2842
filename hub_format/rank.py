"""Full row rank of raw matrices: what has less has no orthonormal counterpart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import AdapterLoadError
from .kinds import COMPLEMENT
from .reader import edit_of
from .schema import SiteGroup
from .tensors import TensorInfo, read_values

__all__ = ["check_ranks", "freed", "has_full_rank", "have_clear_rank", "is_orthonormal"]

MAX_CONDITION = 1e6
CLEAR_CONDITION = 1e3
"""Squared it is far from what float64 resolves."""
ORTHONORMAL = 2e-2
"""Of the products of rows that are kept in bfloat16: what is further off is no basis."""
MAX_SCALE = 1e15
"""Of a raw matrix: its squares, and those of its inverse, stay inside float32."""


def has_full_rank(raw: NDArray[np.floating]) -> bool:
    """Whether the rows of `[rank, hidden]` are independent in the precision that computes.

    All numbers are finite, the ratio of the largest singular value to the smallest is below 1e6, and both lie between
    1e-15 and 1e15.
    """
    rows = raw.astype(np.float64)
    if have_clear_rank(rows[None]):
        return True
    if not rows.size or not np.isfinite(rows).all():
        return False
    values = np.linalg.svd(rows, compute_uv=False)
    largest, smallest = float(values[0]), float(values[-1])
    return smallest > 1 / MAX_SCALE and largest < MAX_SCALE and smallest * MAX_CONDITION > largest


def have_clear_rank(raw: NDArray[np.floating]) -> bool:
    """Whether each of `[n, rank, hidden]` is far from the bounds of `has_full_rank`: from the squares of few rows."""
    rows = raw.astype(np.float64)
    if not rows.size or not np.isfinite(rows).all():
        return False
    squares = np.linalg.eigvalsh(rows @ rows.swapaxes(1, 2))
    smallest, largest = squares[:, 0], squares[:, -1]
    return bool(((smallest > 1e-12) & (largest < 1e12) & (largest < CLEAR_CONDITION**2 * smallest)).all())


def check_ranks(weights: Path, tensors: Mapping[str, TensorInfo], groups: tuple[SiteGroup, ...]) -> None:
    """Refuse raw matrices without full rank, after `check_folder`; judged in float32, the least that computes.

    Args:
        weights: the safetensors file.
        tensors: of it.
        groups: of the config.

    Raises:
        AdapterLoadError: names the matrix.
    """
    taken = [name for name in tensors if name.endswith(f".{COMPLEMENT}") and edit_of(name) is not None]
    for name, values in read_values(weights, taken):
        if not is_orthonormal(values):
            raise AdapterLoadError(
                f"the rows of {name[:120]!r} are not orthonormal",
                code="load.rank",
                file=weights.name,
                rule="they are the directions that a rotation keeps out of",
                fix="take an earlier checkpoint",
            )
    outside = {name.rpartition(".")[0]: values for name, values in read_values(weights, taken)}
    for name, values in read_values(weights, list(_raw(tensors, groups))):
        with np.errstate(over="ignore", under="ignore"):
            held: NDArray[np.floating] = values.astype(np.float32)
        if (rows := outside.get(name.rpartition(".")[0])) is not None:
            held = freed(held, rows)
        if not np.isfinite(held).all() or not has_full_rank(held):
            raise AdapterLoadError(
                f"the raw rotation {name[:120]!r} does not have full rank",
                code="load.rank",
                file=weights.name,
                rule="its rows must be linearly independent, or they have no orthonormal counterpart",
                fix="take an earlier checkpoint",
            )


def freed(raw: NDArray[np.floating], taken: NDArray[np.floating]) -> NDArray[np.float64]:
    """X (I − BᵀB), twice: X `[rank, hidden]`, B `[k, hidden]` with orthonormal rows; see SPEC.md, section 6."""
    rows, left = taken.astype(np.float64), raw.astype(np.float64)
    for _ in range(2):
        left = left - (left @ rows.T) @ rows
    return left


def is_orthonormal(rows: NDArray[np.floating]) -> bool:
    """Whether rows are orthonormal, but for the rounding of the dtype that they are kept in."""
    gram = rows.astype(np.float64) @ rows.astype(np.float64).T
    return bool(rows.size) and bool(np.abs(gram - np.eye(len(rows))).max() < ORTHONORMAL)


def _raw(tensors: Mapping[str, TensorInfo], groups: tuple[SiteGroup, ...]) -> Iterator[str]:
    units = [group for group in groups for _ in range(group.units)]
    for name in tensors:
        if (place := edit_of(name)) is not None and place[2] in units[place[1]].signature.orthonormal:
            yield name
