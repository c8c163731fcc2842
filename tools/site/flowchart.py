"""A Mermaid flowchart as boxes in rows, so that the site needs no script of another host to draw it.

GitHub draws the same text as a graph. Here every node stands in a row below all that point to it; arrows between rows
say the direction. That is all that the charts of our pages say: what comes after what.
"""

from __future__ import annotations

import html
import re
from itertools import pairwise

__all__ = ["as_html"]

_NODE = r'(\w+)(?:\["([^"]*)"\])?'
_EDGE = re.compile(r"\s*-->\s*")


def as_html(chart: str) -> str:
    """The rows of a chart.

    Args:
        chart: the text between the fences: `flowchart TD` or `LR`, nodes `name["label"]`, edges `a --> b & c --> d`.

    Returns:
        HTML of one block, for the class `flow` of the site's style sheet.

    Raises:
        ValueError: a line that is neither.
    """
    labels: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    first, *lines = [line.strip() for line in chart.strip().splitlines()]
    if not re.fullmatch(r"flowchart (TD|LR)", first):
        raise ValueError(f"{first!r} is no flowchart; the site draws `flowchart TD` and `flowchart LR`")
    for line in lines:
        groups: list[list[str]] = []
        for part in _EDGE.split(line):
            groups.append([])
            for text in part.split(" & "):
                node = re.fullmatch(_NODE, text.strip())
                if node is None:
                    raise ValueError(f"{line!r} is neither a node nor an edge that the site draws")
                if node[2] is not None or node[1] not in labels:
                    labels[node[1]] = node[2] or node[1]
                groups[-1].append(node[1])
        edges += [(a, b) for above, below in pairwise(groups) for a in above for b in below]
    return _drawn(labels, _levels(list(labels), edges))


def _levels(nodes: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """The row of each node: one more than the lowest that points to it."""
    level = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for above, below in edges:
            level[below] = max(level[below], level[above] + 1)
    if any(level[below] <= level[above] for above, below in edges):
        raise ValueError("the chart has a circle")
    return level


def _drawn(labels: dict[str, str], level: dict[str, int]) -> str:
    rows = []
    for row in range(max(level.values()) + 1):
        boxes = []
        for name in (name for name in labels if level[name] == row):
            head, *rest = (html.escape(part) for part in labels[name].split("<br/>"))
            boxes.append(f"<div><b>{head}</b>{''.join(f'<br>{part}' for part in rest)}</div>")
        rows.append(f'<div class="flow-row">{"".join(boxes)}</div>')
    arrow = '<div class="flow-arrow" aria-hidden="true">↓</div>'
    return f'<div class="flow">{arrow.join(rows)}</div>'
