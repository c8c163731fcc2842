"""`python -m examples.causal.render`: the figures and the table of `docs/causal.md`, from the numbers measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_reft.causal import Sweep

from . import tasks_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "FOLDER", "PAGE", "RESULTS", "WORDS", "page", "save", "table"]

PAGE = Path(__file__).parents[2] / "docs" / "causal.md"
FOLDER = PAGE.with_suffix("")
RESULTS = "results.json"
WORDS = {
    "asked": "name\nasked for",
    "other": "other\nname",
    "again": "other name\nagain",
    "last": "last\ntoken",
}
_TABLE = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.S)
_BLUE, _ORANGE, _GREY = "#31688e", "#d95f02", "#888888"


def table(results: Mapping[str, Any]) -> str:
    """Accuracies over the seeds, the smallest and the largest, beside chance."""
    conjunction, addition, equality = (results[name] for name in ("conjunction", "addition", "equality"))
    rows = [
        ("**(a) conjunction**: the neurons exchanged", [conjunction["turned"]["0"]]),
        ("turned by 20 degrees", [conjunction["turned"]["20"]]),
        ("searched, one dimension each", conjunction["searched"].values()),
        ("searched against distributions", conjunction["exact"].values()),
        ("a wrong causal model, searched", conjunction["wrong"].values()),
        ("ten untrained networks, searched", conjunction["untrained"].values()),
        *(
            (f"{'**(b) sum**: ' if first else ''}the best {_sets(name)}, by brute force", found.values())
            for first, (name, found) in zip([True, *[False] * 9], addition["localist"].items(), strict=False)
        ),
        *(
            (f"searched, {dimension} dimension{'s' if dimension != '1' else ''}", found.values())
            for dimension, found in addition["searched"].items()
        ),
        ("a wrong causal model, searched", addition["wrong"].values()),
        ("untrained networks, searched", addition["untrained"].values()),
        ("**(c) equality**: whole vectors exchanged", equality["exchanged"].values()),
        ("searched, eight dimensions each", equality["searched"].values()),
        ("a wrong causal model, searched", equality["wrong"].values()),
        ("untrained networks, searched", equality["untrained"].values()),
    ]
    lines = ["| | mean | from … to | chance |", "| --- | --- | --- | --- |"]
    for name, found in rows:
        values = [each["correct"] / each["total"] for each in found]
        chances = [max(each["unchanged"], each["constant"]) for each in found]
        lines.append(
            f"| {name} | {_percent(sum(values) / len(values))} | {_percent(min(values))} … {_percent(max(values))} "
            f"| {_percent(sum(chances) / len(chances))} |"
        )
    return "\n".join(lines) + "\n"


def page(text: str, results: Mapping[str, Any]) -> str:
    """The page with the table of these results."""
    return _TABLE.sub(lambda found: f"{found[1]}{table(results)}{found[2]}", text)


def conjunction_figure(results: Mapping[str, Any]) -> Figure:
    """Accuracy over the angle at which A and B are exchanged, and the angles that the search finds."""
    ax = _axes(5.5, 3.2)
    turned = results["conjunction"]["turned"]
    ax.plot([int(degrees) for degrees in turned], [_value(found) for found in turned.values()], "o-", color=_BLUE)
    for seed, angle in results["conjunction"]["angles"].items():
        ax.axvline(angle, color=_ORANGE, linewidth=1, label=f"found by search, seed {seed}: {angle:.1f}°")
    ax.axhline(_chance([turned["20"]]), color=_GREY, linestyle=":", label="chance")
    ax.set_xlabel("degrees by which the space is turned")
    return _finished(ax, "(a) P and Q: all 96 interchanges")


def addition_figure(results: Mapping[str, Any]) -> Figure:
    """Neurons by brute force against directions by search."""
    ax = _axes(5.5, 3.2)
    found = results["addition"]
    for module, colour, label in (
        ("first", _GREY, "neurons of the 16, by brute force"),
        ("first.0", "#bbbbbb", "neurons of the 64 before, by brute force"),
    ):
        sizes = {int(name.split()[1]): cells for name, cells in found["localist"].items() if name.split()[0] == module}
        _spread(ax, sizes, colour, label)
    _spread(
        ax, {int(size): cells for size, cells in found["searched"].items()}, _BLUE, "directions, by alignment search"
    )
    ax.axhline(_chance(found["searched"]["1"].values()), color=_GREY, linestyle=":", label="chance")
    ax.set_xlabel("how many")
    return _finished(ax, "(b) S1 = X + Y")


def equality_figure(results: Mapping[str, Any]) -> Figure:
    """Search and its controls."""
    ax = _axes(5.5, 2.8)
    found = results["equality"]
    names = {"searched": "searched", "wrong": "other pairs\n(wrong model)", "untrained": "untrained\nnetwork"}
    for place, name in enumerate(names):
        values = [_value(each) for each in found[name].values()]
        ax.bar(place, sum(values) / len(values), color=_BLUE if name == "searched" else _GREY, width=0.6)
        ax.plot([place] * len(values), values, "o", color="black", markersize=4)
        ax.text(place, 1.04, _percent(sum(values) / len(values)), ha="center", fontsize=9)
    ax.axhline(_chance(found["searched"].values()), color="black", linestyle=":", label="chance")
    ax.set_xticks(range(len(names)), names.values())
    return _finished(ax, "(c) a = b and c = d, each after the first block", top=1.15)


def names_figure(folder: Path, name: str, title: str, height: float) -> Figure:
    """Where SmolLM2 holds the name: accuracies of a sweep over layers and tokens."""
    ax = _axes(5.5, height)
    swept = Sweep.load(folder / f"names_{name}.json")
    swept.heat_map(ax, labels=[WORDS[word] for word in swept.positions])
    ax.set_xlabel("")
    ax.set_title(title, fontsize=10)
    figure: Figure = ax.figure
    return figure


FIGURES: dict[str, Callable[[Path], Figure]] = {
    "conjunction": lambda folder: conjunction_figure(_results(folder)),
    "addition": lambda folder: addition_figure(_results(folder)),
    "equality": lambda folder: equality_figure(_results(folder)),
    "names": lambda folder: names_figure(folder, "whole", "(d) the name asked for: whole vectors exchanged", 5.5),
    "names_searched": lambda folder: names_figure(
        folder, "searched", "(d) the name asked for: 16 of 576 dimensions, searched", 2.6
    ),
}


def save(figure: Figure, path: Path) -> None:
    """As SVG: the same bytes from the same numbers, and letters as letters."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Write the figures, and the table into the page."""
    for name, draw in FIGURES.items():
        save(draw(FOLDER), FOLDER / f"{name}.svg")
    text = page(PAGE.read_text(encoding="utf-8"), _results(FOLDER))
    PAGE.write_text(tasks_table.page(text, _results(FOLDER, tasks_table.RESULTS)), encoding="utf-8")


def _results(folder: Path, name: str = RESULTS) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return loaded


def _axes(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _finished(ax: Any, title: str, *, top: float = 1.05) -> Figure:
    ax.set_ylim(0, top)
    ax.set_ylabel("interchange accuracy")
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=7, loc="lower right")
    figure: Figure = ax.figure
    return figure


def _spread(ax: Any, sizes: Mapping[int, Mapping[str, Any]], colour: str, label: str) -> None:
    values = {size: [_value(found) for found in cells.values()] for size, cells in sizes.items()}
    means = [sum(each) / len(each) for each in values.values()]
    ax.plot(list(values), means, "o-", color=colour, label=label)
    ax.fill_between(
        list(values), *zip(*((min(v), max(v)) for v in values.values()), strict=True), color=colour, alpha=0.2
    )


def _sets(name: str) -> str:
    module, size = name.split()
    count = {"1": "single neuron", "2": "two neurons", "3": "three neurons"}[size]
    return f"{count} of {'16' if module == 'first' else '64'}"


def _value(found: Mapping[str, Any]) -> float:
    share: float = found["correct"] / found["total"]
    return share


def _chance(found: Iterable[Mapping[str, Any]]) -> float:
    chances = [max(each["unchanged"], each["constant"]) for each in found]
    return sum(chances) / len(chances)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
