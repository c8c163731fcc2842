"""`sweep`: an accuracy for each layer and position, kept on disk as it goes, and drawn as a heat map."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_reft.hub_format.errors import CausalModelError
from peft_reft.hub_format.writer import write_atomic
from peft_reft.screen import heat_map_html
from peft_reft.screen import progress as watched

from .accuracy import Accuracy
from .extras import need
from .site import Position

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Sweep", "sweep"]


@dataclass(frozen=True)
class Sweep:
    """Accuracies over layers × positions.

    Attributes:
        layers: as they were swept.
        positions: as they were swept, in words.
        cells: (layer, position in words) → accuracy.
    """

    layers: tuple[int, ...]
    positions: tuple[str, ...]
    cells: Mapping[tuple[int, str], Accuracy]

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """What `sweep` has kept in a file, be it all or a part; layers in order, positions as they come.

        Args:
            path: of the JSON file.

        Returns:
            The sweep.

        Raises:
            CausalModelError: no file, or none of a sweep.
        """
        file = Path(path)
        if not file.exists():
            raise CausalModelError(f"there is no {file.name}", code="causal.sweep", value=str(file))
        cells, _ = _stored(file)
        layers = tuple(sorted({layer for layer, _ in cells}))
        positions = tuple(dict.fromkeys(position for _, position in cells))
        return cls(layers, positions, cells)

    @property
    def best(self) -> tuple[int, str]:
        """Layer and position of the highest accuracy; the first of equals."""
        return max(self.cells, key=lambda cell: self.cells[cell].value)

    def _repr_html_(self) -> str:
        """What a notebook shows: layer 0 at the bottom, as in `heat_map`; cells not measured yet are empty."""
        rows = list(reversed(self.layers))
        values = [[self._value(layer, position) for position in self.positions] for layer in rows]
        return heat_map_html(
            values,
            rows=[f"layer {layer}" for layer in rows],
            columns=self.positions,
            title="interchange accuracy",
            written="{:.0%}",
            highest=1.0,
        )

    def _value(self, layer: int, position: str) -> float | None:
        found = self.cells.get((layer, position))
        return None if found is None else found.value

    def heat_map(self, ax: Axes | None = None, *, labels: Sequence[str] | None = None) -> Axes:
        """Draw it with matplotlib (extra `causal`), layer 0 at the bottom, from 0 to 1.

        Args:
            ax: where; None makes a new figure.
            labels: of the positions, e.g. the tokens there.

        Returns:
            The axes.

        Raises:
            CausalModelError: another number of labels than of positions.
        """
        shown = list(self.positions if labels is None else labels)
        if len(shown) != len(self.positions):
            raise CausalModelError(
                f"{len(shown)} labels",
                code="causal.sweep",
                value=len(shown),
                rule=f"one for each of the {len(self.positions)} positions",
            )
        if ax is None:
            ax = need("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained").subplots()
        values = [[self.cells[layer, position].value for position in self.positions] for layer in self.layers]
        image = ax.imshow(values, vmin=0.0, vmax=1.0, origin="lower", aspect="auto", cmap="viridis")
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                colour = "black" if value > 0.6 else "white"
                ax.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=8)
        ax.set_xticks(range(len(shown)), shown)
        ax.set_yticks(range(len(self.layers)), [str(layer) for layer in self.layers])
        ax.set_xlabel("position")
        ax.set_ylabel("layer")
        ax.figure.colorbar(image, ax=ax, label="interchange accuracy")
        return ax


def sweep(
    measure: Callable[[int, Position], Accuracy],
    *,
    layers: Sequence[int],
    positions: Sequence[Position],
    progress: bool | None = None,
    path: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Sweep:
    """Measure every layer at every position, e.g. by a search there.

    Args:
        measure: layer and position → accuracy.
        layers: to go over; none twice.
        positions: to go over; none twice.
        progress: True shows a bar, False none; None shows one as `convert` and the like do: on a terminal, where bars
            are not switched off.
        path: a JSON file that keeps each cell as soon as it is measured; if it is there, its cells are not measured
            again.
        settings: of the measurement, plain JSON, kept in the file; a file of other settings is refused. A path needs
            some: model, data, seed, whatever another accuracy would come of.

    Returns:
        All cells.

    Raises:
        CausalModelError: no layer or position, one twice, a path without settings, or a file of another sweep.
    """
    words = [str(position) for position in positions]
    if not layers or not words or len(set(layers)) != len(layers) or len(set(words)) != len(words):
        raise CausalModelError(
            f"layers={list(layers)}, positions={words}",
            code="causal.sweep",
            value=(list(layers), words),
            rule="one or more of both, each once",
        )
    if path is not None and not settings:
        raise CausalModelError(
            f"path={str(path)!r} without settings",
            code="causal.sweep",
            value=str(path),
            rule="a file is only gone on with where the settings are the same",
            fix="say what the accuracies depend on, e.g. settings={'model': …, 'pairs': …, 'seed': 0}",
        )
    told = json.loads(json.dumps(dict(settings or {})))
    file = None if path is None else Path(path)
    cells = {} if file is None else _read(file, told)
    grid = [(layer, word, position) for layer in layers for word, position in zip(words, positions, strict=True)]
    for layer, word, position in watched(grid, "sweep", unit="site", shown=progress):
        if (layer, word) in cells:
            continue
        cells[layer, word] = measure(layer, position)
        if file is not None:
            _write(file, told, cells)
    kept = {(layer, word): cells[layer, word] for layer, word, _ in grid}
    return Sweep(tuple(layers), tuple(words), kept)


def _write(file: Path, settings: Mapping[str, Any], cells: Mapping[tuple[int, str], Accuracy]) -> None:
    listed = [{"layer": layer, "position": word, **asdict(found)} for (layer, word), found in cells.items()]
    write_atomic(file, json.dumps({"settings": settings, "cells": listed}, indent=1) + "\n")


def _read(file: Path, settings: Mapping[str, Any]) -> dict[tuple[int, str], Accuracy]:
    if not file.exists():
        return {}
    cells, kept = _stored(file)
    if kept != settings:
        raise CausalModelError(
            f"{file.name} holds a sweep with settings {kept!r}",
            code="causal.sweep",
            value=kept,
            rule=f"this one has {settings!r}",
            fix="choose another path",
        )
    return cells


def _stored(file: Path) -> tuple[dict[tuple[int, str], Accuracy], Any]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        cells = {
            (cell.pop("layer"), cell.pop("position")): Accuracy(**{**cell, "interval": tuple(cell["interval"])})
            for cell in stored["cells"]
        }
        return cells, stored["settings"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CausalModelError(
            f"{file.name} holds no sweep: {error}", code="causal.sweep", value=str(file), fix="choose another path"
        ) from error
