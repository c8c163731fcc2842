"""The figure of a run: requests a second, first token and each token along the number of adapters; SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]

PANELS = (("per_second", "requests/s", 1.0), ("first", "first token, s", 1.0), ("each", "each token, ms", 1000.0))
COLOURS = {"base": "#888888", "ours": "#1f5fa8", "lora": "#c2571a", "lora_qv": "#e0a070"}
LABELS = {"base": "base", "ours": "ours", "lora": "LoRA, all linear", "lora_qv": "LoRA, q,v"}


def draw(told: dict[str, Any], file: Path) -> None:
    """Of a result; the same bytes for the same data. matplotlib is needed here alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    arrivals = list(told["cases"])
    settings = {"svg.hashsalt": "serving", "svg.fonttype": "none", "font.size": 8}
    settings |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure, panels = pyplot.subplots(
            len(arrivals), len(PANELS), figsize=(3.1 * len(PANELS), 2.4 * len(arrivals)), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for row, arrival in zip(panels, arrivals, strict=True):
            for panel, (name, unit, factor) in zip(row, PANELS, strict=True):
                _panel(panel, told["cases"][arrival], name, factor)
                panel.set_title(f"{arrival}: {unit}", fontsize=8)
                panel.set_xlabel("adapters", fontsize=7)
        panels[0][0].legend(frameon=False, fontsize=7)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _panel(panel: Any, by_count: dict[str, Any], name: str, factor: float) -> None:
    for kind, colour in COLOURS.items():
        there = {int(count): kinds[kind][name] * factor for count, kinds in by_count.items() if kinds.get(kind)}
        dotted = ":" if kind == "base" else "-"
        panel.plot(
            list(there), list(there.values()), dotted, color=colour, marker="o", ms=3, lw=1.2, label=LABELS[kind]
        )
    panel.set_xscale("log", base=2)
    panel.set_ylim(bottom=0)
    panel.grid(visible=True, lw=0.3, color="#dddddd")
