"""A table of numbers as a picture: SVG, HTML for a notebook, bars of a terminal. Labels are not trusted."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

__all__ = ["bars", "heat_map_html", "heat_map_svg"]

Values = Sequence[Sequence[float | None]]
"""Rows of numbers, the topmost first; None where there is nothing."""
_CELL = (64, 22)
_LETTER = 7.0
_STOPS = ((255, 255, 229), (254, 196, 79), (217, 95, 14), (102, 37, 6))
"""White to brown, light to dark for every eye (ColorBrewer's YlOrBr, thinned)."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def heat_map_svg(
    values: Values,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    written: str = "{:.2f}",
    highest: float | None = None,
) -> str:
    """One picture: a coloured cell for each number, with the number in it.

    Args:
        values: `[rows][columns]`, none below 0.
        rows, columns: their names.
        title: above; lines are kept.
        written: how a number is written into its cell.
        highest: the number of the darkest colour; None: the largest.

    Returns:
        The text of an SVG file; the same for the same numbers.

    Raises:
        ValueError: another number of values than of names, or a value that is below 0 or not finite.
    """
    _check(values, rows, columns)
    top, titles = _highest(values, highest), title.split("\n")
    left = round(16 + _LETTER * max(map(len, rows), default=0))
    above = 18 * len(titles) + 24
    wide = max([_CELL[0], *(_LETTER * len(name) + 14 for name in columns)])
    width = max(left + wide * len(columns) + 8, 16 + 6.6 * max(map(len, titles)))
    height = above + _CELL[1] * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{_escaped(titles[0])}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    parts += [_text(8, 18 + 18 * number, line, "start") for number, line in enumerate(titles)]
    parts += [_text(left + wide * (n + 0.5), above - 6, name, "middle") for n, name in enumerate(columns)]
    for row, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = above + _CELL[1] * row
        parts.append(_text(left - 6, y + 15, name, "end"))
        for column, value in enumerate(line):
            if value is None:
                continue
            fill, ink = _colours(value, top)
            x = left + wide * column
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{wide - 1:.0f}" height="{_CELL[1] - 1}" fill="{fill}"/>'
                + _text(x + wide / 2, y + 15, written.format(value), "middle", ink)
            )
    return "\n".join([*parts, "</svg>", ""])


def heat_map_html(
    values: Values,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    written: str = "{:.2f}",
    highest: float | None = None,
) -> str:
    """The same as a table of HTML; where a page drops its colours, the numbers remain."""
    _check(values, rows, columns)
    top = _highest(values, highest)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = []
    for name, line in zip(rows, values, strict=True):
        cells = "".join(_html_cell(value, top, written) for value in line)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def bars(values: Sequence[float | None], *, width: int = 20, highest: float | None = None) -> list[str]:
    """For each number a bar of block letters; the largest, or `highest`, is `width` letters long."""
    _check([values], [""], values)
    top = _highest([values], highest)
    found = []
    for value in values:
        eighths = round(8 * width * min(1.0, (value or 0.0) / top)) if top else 0
        found.append(("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip())
    return found


def _check(values: Values, rows: Sequence[object], columns: Sequence[object]) -> None:
    lengths = [len(line) for line in values]
    if len(lengths) != len(rows) or any(length != len(columns) for length in lengths):
        raise ValueError(f"lines of {lengths} values, with {len(rows)} names of rows and {len(columns)} of columns")
    for value in (value for line in values for value in line if value is not None):
        if not 0 <= value < math.inf:
            raise ValueError(f"{value} is drawn as nothing else than a finite number, 0 or more")


def _highest(values: Values, given: float | None) -> float:
    found = [value for line in values for value in line if value is not None]
    return max(found, default=0.0) if given is None else given


def _colours(value: float, top: float) -> tuple[str, str]:
    """Background, and black or white upon it."""
    share = min(1.0, max(0.0, value / top)) if top else 0.0
    place = share * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed), "#ffffff" if share > 0.6 else "#111111"


def _html_cell(value: float | None, top: float, written: str) -> str:
    if value is None:
        return "<td></td>"
    fill, ink = _colours(value, top)
    style = f"background: {fill}; color: {ink}; text-align: center"
    return f'<td bgcolor="{fill}" style="{style}">{written.format(value)}</td>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#111111") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """Text for SVG, which has no control characters."""
    return html.escape("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text))
