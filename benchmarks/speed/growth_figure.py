"""The figure of a growth: one panel an axis, own cost and base in logarithms; SVG, same bytes for same data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

__all__ = ["draw"]

COLUMNS = 3
COLOURS = {"ours": "#1f5fa8", "lora": "#c2571a"}
GREY = "#888888"


def draw(told: dict[str, Any], file: Path) -> None:
    """Of a result of `growth_result`; matplotlib is needed here alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = math.ceil(len(told["axes"]) / COLUMNS)
    settings = {
        "svg.hashsalt": "growth",
        "svg.fonttype": "none",
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure, panels = pyplot.subplots(
            rows, COLUMNS, figsize=(3.1 * COLUMNS, 2.4 * rows), squeeze=False, layout="constrained"
        )
        cells = list(panels.flat)
        for panel, (name, by_method) in zip(cells, told["axes"].items(), strict=False):
            _panel(panel, name, by_method)
        for panel in cells[len(told["axes"]) :]:
            panel.set_axis_off()
        cells[0].legend(frameon=False, fontsize=7)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _panel(panel: Any, name: str, by_method: dict[str, Any]) -> None:
    """Own cost with its noise, the slope that it must have, and the base's time."""
    for method, along in by_method.items():
        there = {int(value): one for value, one in along["points"].items() if "own" in one}
        costs = [one["own"]["median"] for one in there.values()]
        noise = [one["own"]["noise"] or 0 for one in there.values()]
        panel.errorbar(list(there), costs, noise, color=COLOURS[method], marker="o", ms=3, lw=1.2, label=method)
        if method == "ours" and there:
            base = [one["floor_seconds"] * 1000 for one in there.values()]
            panel.plot(list(there), base, color=GREY, lw=1, ls=":", label="frozen base")
            _must(panel, there, along["must"])
        panel.set_xlabel(along["unit"], fontsize=7)
    panel.set_xscale("log", base=2)
    if any(
        one.get("own", {}).get("median", 0) > 0 for along in by_method.values() for one in along["points"].values()
    ):
        panel.set_yscale("log", nonpositive="clip")
    panel.set_title(name, fontsize=8)
    panel.set_ylabel("ms", fontsize=7)
    panel.grid(visible=True, lw=0.3, color="#dddddd")


def _must(panel: Any, there: dict[int, Any], exponent: int) -> None:
    """A line of that slope through the first point above nothing."""
    start = next(((value, one["own"]["median"]) for value, one in there.items() if one["own"]["median"] > 0), None)
    if start is not None:
        line = [start[1] * (value / start[0]) ** exponent for value in there]
        panel.plot(list(there), line, color=COLOURS["ours"], lw=0.8, ls="--", alpha=0.5, label="must")
