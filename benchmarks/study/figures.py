"""Figures as SVG that is the same for the same runs: points with intervals, named, on two axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Point", "draw"]

COLOURS = {"reft": "#1b6ca8", "peft": "#c0652a", "mixed": "#6a3d9a", "full": "#555555"}


@dataclass(frozen=True)
class Point:
    """A named point; `low` and `high` are of its y, where there is an interval."""

    name: str
    x: float
    y: float
    family: str
    low: float | None = None
    high: float | None = None


def draw(
    points: Sequence[Point],
    file: Path,
    *,
    x: str,
    y: str,
    title: str,
    log_x: bool = False,
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Write the figure; families have colours, `line` joins points such as those of a front."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "peft-reft", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        if line:
            axes.step([at for at, _ in line], [at for _, at in line], where="post", color="#bbbbbb", zorder=1)
        for point in points:
            colour = COLOURS[point.family]
            if point.low is not None and point.high is not None:
                axes.plot([point.x, point.x], [point.low, point.high], color=colour, alpha=0.5, linewidth=1, zorder=2)
            axes.scatter([point.x], [point.y], color=colour, s=18, zorder=3)
            axes.annotate(point.name, (point.x, point.y), textcoords="offset points", xytext=(4, 3), fontsize=6)
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel=x, ylabel=y, title=title)
        figure.tight_layout()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", metadata={"Date": None})
        pyplot.close(figure)
