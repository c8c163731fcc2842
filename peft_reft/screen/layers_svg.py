"""A graph whose nodes stand in layers, as SVG: from left to right, arrows to the children. Labels are not trusted."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

__all__ = ["layers_svg"]

_GAP, _STEP, _HALF = 60, 48, 15


def layers_svg(layers: Sequence[Sequence[str]], arrows: Sequence[tuple[str, str]], fills: Mapping[str, str]) -> str:
    """One picture.

    Args:
        layers: the nodes by their names, leftmost first.
        arrows: from, to.
        fills: node → the colour of its box.
    """
    wide = 24 + 8 * max(len(name) for layer in layers for name in layer)
    tall = max(map(len, layers)) * _STEP + 16
    places: dict[str, tuple[float, float]] = {}
    for column, layer in enumerate(layers):
        above = (tall - len(layer) * _STEP) / 2
        for row, name in enumerate(layer):
            places[name] = 8 + wide / 2 + column * (wide + _GAP), above + (row + 0.5) * _STEP
    width = len(layers) * (wide + _GAP) - _GAP + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{tall}" viewBox="0 0 {width} {tall}" '
        'font-family="sans-serif" font-size="13" role="img">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555555"/></marker></defs>',
        f'<rect width="{width}" height="{tall}" fill="#ffffff"/>',
    ]
    for start, end in arrows:
        (x1, y1), (x2, y2) = places[start], places[end]
        parts.append(
            f'<line x1="{x1 + wide / 2:.0f}" y1="{y1:.0f}" x2="{x2 - wide / 2:.0f}" y2="{y2:.0f}" '
            'stroke="#555555" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in places.items():
        parts.append(
            f'<rect x="{x - wide / 2:.0f}" y="{y - _HALF:.0f}" width="{wide}" height="{2 * _HALF}" rx="5" '
            f'fill="{fills[name]}" stroke="#555555"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="#111111">{html.escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
