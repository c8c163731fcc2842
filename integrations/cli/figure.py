"""`peft-reft inspect --figure`, `--svg`: how large the edits are, by layer and term, on the screen or as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.writer import write_atomic
from peft_reft.screen import bars, heat_map_svg

from .report import plain, table
from .sizes import MEANING, EditSize

__all__ = ["draw", "figure_lines"]

Sizes = Mapping[str, Sequence[EditSize]]
"""Adapter → its interventions."""


def figure_lines(sizes: Sizes) -> list[str | RenderableType]:
    """A table with a bar for each intervention, for each adapter, and what the figures mean."""
    _refuse_none(sizes)
    lines: list[str | RenderableType] = []
    highest = max(size.size for found in sizes.values() for size in found)
    heads = ("site", "term", "", "size", "dependent", "constant", "largest")
    for name, found in sizes.items():
        rows = [
            [f"  {size.site}", size.term, "", f"{size.size:.3g}", f"{size.dependent:.3g}", f"{size.constant:.3g}",
             "" if size.largest is None else f"{size.largest:.3g}"]
            for size in found
        ]  # fmt: skip
        drawn = bars([size.size for size in found], width=_left(heads, rows), highest=highest)
        for row, bar in zip(rows, drawn, strict=True):
            row[2] = bar
        lines += ["", f"{name}: how large its edits are", table(heads, rows)]
    return [*lines, "", *MEANING]


def _left(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The letters that a bar may have beside the other columns, so that none is folded; 4 to 20."""
    beside = sum(2 + max(map(len, column)) for column in zip(heads, *rows, strict=True))
    return max(4, min(20, Console().width - beside))


def draw(path: Path, source: str, sizes: Sizes) -> None:
    """Write the sizes as one heat map, a row for each site and a column for each term of each adapter.

    Raises:
        ConfigError: the file exists, its folder does not, or no adapter is a ReFT.
    """
    _refuse_none(sizes)
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists", value=str(path), rule="an existing file is not overwritten")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent} is no folder", value=str(path), rule="a picture is written into a folder that is there"
        )
    units = list(dict.fromkeys((name, size.term) for name, found in sizes.items() for size in found))
    sites = list(dict.fromkeys(size.site for found in sizes.values() for size in found))
    cells = {(size.site, name, size.term): size.size for name, found in sizes.items() for size in found}
    hidden = max(size.hidden for found in sizes.values() for size in found)
    several = len(sizes) > 1
    text = heat_map_svg(
        [[cells.get((site, *unit)) for unit in units] for site in sites],
        rows=[plain(site) for site in sites],
        columns=[plain(f"{name}: {term}" if several else term) for name, term in units],
        title=f"{plain(source)}: size of the edits\nroot mean square of |h′ − h| over standard normal h, "
        f"|h| ≈ √{hidden} = {hidden**0.5:.1f}",
        written="{:.3g}",
    )
    write_atomic(path, text)


def _refuse_none(sizes: Sizes) -> None:
    if not sizes:
        raise ConfigError(
            "no adapter there is a ReFT",
            code="inspect.figure",
            rule="the figure shows edits of hidden states; a LoRA changes weights",
            fix="leave --figure and --svg out",
        )
