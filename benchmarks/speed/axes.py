"""Along what a cost can grow: one size is changed, the others stay, on a base that leaves little but the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.speed.cases import Case, Shape

__all__ = ["AXES", "POINTS", "Axis"]

Work = Literal["train", "forward", "generate"]

BASE = Shape(hidden=256, layers=8, mlp=32)
"""An MLP of nearly nothing: the own cost would drown in the noise of a usual base, and ratios to one are lower."""
SECONDS = 0.03
"""About what one measurement shall take at least."""


@dataclass(frozen=True)
class Axis:
    """One size, and its values; `must`: the exponent of edited tokens × layers × rank × hidden along it."""

    name: str
    unit: str
    values: tuple[int, ...]
    must: int
    work: Work
    case: Callable[[int], Case]

    def point(self, value: int) -> str:
        """The name of the case at `value`."""
        return f"{self.name} {value}"

    def cases(self) -> dict[str, Case]:
        """Point → case, from the least value on."""
        named = {self.point(value): replace(self.case(value), work=self.work) for value in self.values}
        return {name: replace(case, name=name, calls=_calls(case)) for name, case in named.items()}


def _calls(case: Case) -> int:
    """So many that they take `SECONDS` or more; from a rough count of products and a usual processor."""
    shape, tokens = case.shape, case.batch * case.tokens
    products = tokens * shape.layers * shape.hidden * (4 * shape.hidden + 3 * shape.mlp + 2 * case.tokens)
    once = 2 * products / 4e10 + shape.layers * 4e-4
    once = once * 3 if case.work == "train" else once + case.new_tokens * shape.layers * 4e-4
    return max(1, min(16, round(SECONDS / once)))


def _case(batch: int = 4, tokens: int = 32, *, shape: Shape = BASE, **more: int | bool) -> Case:
    return replace(Case("", shape, "forward", batch, tokens, calls=1, own_cost=True), **more)


def _doubled(least: int, most: int, step: int = 2) -> tuple[int, ...]:
    values = [least]
    while values[-1] * step <= most:
        values.append(values[-1] * step)
    return tuple(values)


_SIZES: tuple[tuple[str, str, tuple[int, ...], int, Callable[[int], Case]], ...] = (
    ("sequence length", "tokens", _doubled(64, 4096), 0, lambda n: _case(1, n)),
    # a training step's prompt is half of its tokens
    ("edited tokens", "tokens a row", _doubled(2, 32), 1, lambda n: _case(8, 64, edge=n // 2)),
    ("batch", "rows", _doubled(1, 32), 1, lambda n: _case(n)),
    ("layers", "blocks", _doubled(2, 32), 1, lambda n: _case(shape=replace(BASE, layers=n))),
    ("rank", "rank", _doubled(1, 64), 1, lambda n: _case(rank=n)),
    ("hidden size", "hidden", _doubled(64, 2048), 1, lambda n: _case(shape=replace(BASE, hidden=n))),
)
_ONCE: tuple[Axis, ...] = (
    Axis("adapters loaded", "adapters", _doubled(1, 512, 8), 0, "forward", lambda n: _case(loaded=n)),
    Axis("adapters per batch", "adapters", _doubled(1, 32), 0, "forward", lambda n: _case(32, loaded=n, named=n)),
    Axis("generated tokens", "tokens", _doubled(8, 256), 0, "generate", lambda n: _case(1, 32, new_tokens=n)),
)
AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        *(Axis(name, unit, values, must, "forward", case) for name, unit, values, must, case in _SIZES),
        *_ONCE,
        *(Axis(f"{name}, training", unit, values, must, "train", case) for name, unit, values, must, case in _SIZES),
    )
}
"""Name → axis; what ends in `training` is a training step, the others a prefill or a generation."""
POINTS: dict[str, Case] = {name: case for axis in AXES.values() for name, case in axis.cases().items()}
"""Name → case, of all axes."""
