"""Pictures of a causal model: networkx, graphviz's language, matplotlib."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from peft_reft.screen import layers_svg

from .extras import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from networkx import DiGraph

__all__ = ["Drawn", "draw", "to_dot", "to_networkx", "to_svg"]


_COLOURS = {"input": "#d9e4f2", "hidden": "#f7e3b5", "output": "#cfe8cf"}


class Drawn(Protocol):
    """What a picture shows of a causal model."""

    @property
    def order(self) -> tuple[str, ...]:
        """The variables, each after its parents."""

    @property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """Variable → its parents."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """By the name of each input."""

    @property
    def output(self) -> str:
        """The variable that the network's output stands for."""


def to_networkx(model: Drawn) -> DiGraph[str]:
    """Nodes have `layer`, their distance from the inputs, and `role`: input, hidden or output."""
    networkx = need("networkx")
    graph = networkx.DiGraph()
    depth = _depths(model)
    for name in model.order:
        graph.add_node(name, layer=depth[name], role=_role(model, name))
        graph.add_edges_from((parent, name) for parent in model.parents[name])
    return graph


def to_dot(model: Drawn, values: Mapping[str, Any] | None = None) -> str:
    """The text that `dot -Tsvg` reads."""
    lines = ["digraph {", "  rankdir=LR;"]
    for name in model.order:
        shape = "box" if name in model.inputs else "doublecircle" if name == model.output else "ellipse"
        lines.append(f"  {name} [shape={shape}, label={json.dumps(_label(name, values), ensure_ascii=False)}];")
    lines += [f"  {parent} -> {name};" for name in model.order for parent in model.parents[name]]
    return "\n".join([*lines, "}", ""])


def to_svg(model: Drawn) -> str:
    """A small picture of it as text, by nothing but this package."""
    depth = _depths(model)
    layers = [[name for name in model.order if depth[name] == number] for number in range(max(depth.values()) + 1)]
    arrows = [(parent, name) for name in model.order for parent in model.parents[name]]
    return layers_svg(layers, arrows, {name: _COLOURS[_role(model, name)] for name in model.order})


def draw(model: Drawn, values: Mapping[str, Any] | None = None, ax: Axes | None = None) -> Axes:
    """Inputs at the left, the output at the right."""
    networkx = need("networkx")
    if ax is None:
        ax = need("matplotlib.figure").Figure(figsize=(6, 3.5), layout="constrained").subplots()
    graph = to_networkx(model)
    places = networkx.multipartite_layout(graph, subset_key="layer")
    networkx.draw_networkx(
        graph,
        places,
        ax=ax,
        labels={name: _label(name, values) for name in graph},
        node_color=[_COLOURS[role] for _, role in graph.nodes(data="role")],
        node_size=1800,
        edgecolors="#555555",
        font_size=9,
        arrowsize=14,
    )
    ax.margins(0.2)
    ax.set_axis_off()
    return ax


def _depths(model: Drawn) -> dict[str, int]:
    """Variable → its distance from the inputs."""
    depth: dict[str, int] = {}
    for name in model.order:
        depth[name] = 1 + max((depth[parent] for parent in model.parents[name]), default=-1)
    return depth


def _role(model: Drawn, name: str) -> str:
    return "input" if name in model.inputs else "output" if name == model.output else "hidden"


def _label(name: str, values: Mapping[str, Any] | None) -> str:
    return name if values is None or name not in values else f"{name} = {values[name]}"
