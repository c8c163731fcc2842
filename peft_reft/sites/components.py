"""Component name → where in a block it is read and edited: a module, its input or output, a slice of it.

Found by structure, not by the model's name; a probe of the model then checks what is found. A new component is a
function and a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from peft_reft.hub_format.errors import SiteError

from .forms import PLAIN, Form
from .parts import attention_output, head_count, mlp_output, multiplier, output_projection

__all__ = ["COMPONENTS", "Place", "Tap", "component_place", "component_places"]

_HEAD = re.compile(r"head_output\[(\d+)\]")


@dataclass(frozen=True)
class Tap:
    """Which tensor of a module's call is edited: its first output or its first input, whole or one slice of it.

    Attributes:
        on_input: the input instead of the output.
        start, stop: the slice of the last dimension; None for all of it.
        factor: what the block multiplies the tensor with before it adds it; the product is what is read and edited.
        form: how the tokens' states lie in the tensor; start and stop are of a state.
    """

    on_input: bool = False
    start: int | None = None
    stop: int | None = None
    factor: float = 1.0
    form: Form = PLAIN

    @property
    def width(self) -> int | None:
        """Size of the slice; None for the whole hidden size."""
        return None if self.start is None or self.stop is None else self.stop - self.start


@dataclass(frozen=True)
class Place:
    """Dotted name, inside the block, of the module that is hooked (`""` is the block), and what is edited there."""

    path: str
    tap: Tap = Tap()


COMPONENTS: dict[str, Callable[[nn.Module], Place | None]] = {
    "block_output": lambda block: Place(""),
    "block_input": lambda block: Place("", Tap(on_input=True)),
    "attention_output": lambda block: _added(block, "attention_output", attention_output(block)),
    "mlp_output": lambda block: _added(block, "mlp_output", mlp_output(block)),
}
"""Name → function from a block to the place, or None where the block has none. Beside these: `head_output[n]`, and all
of them at once, `heads`."""


def component_place(block: nn.Module, component: str, config: Any = None) -> Place:
    """Where in `block` the component is.

    `head_output[n]` is what the n-th attention head gives to the output projection (LoFiT, arXiv 2406.01563), `heads`
    what all of them give, side by side.

    Args:
        block: one block of a stack.
        component: its name.
        config: the text model's, for the number of heads.

    Raises:
        SiteError: the component is not known, or this block has none.
    """
    if (head := _HEAD.fullmatch(component)) is not None:
        return _head(block, int(head[1]), config)
    if component == "heads":
        first = _head(block, 0, config, component)
        size, count = first.tap.stop or 0, head_count(block, first.path, config) or 0
        return Place(first.path, Tap(on_input=True, start=0, stop=size * count))
    if component not in COMPONENTS:
        raise SiteError(
            f"component={component!r} is not known",
            code="site.component",
            value=component,
            rule=f"known are: {', '.join(sorted(COMPONENTS))}, heads, head_output[<n>]",
        )
    place = COMPONENTS[component](block)
    if place is None:
        raise _lacks(block, component)
    return place


def component_places(block: nn.Module, component: str, config: Any = None) -> list[Place]:
    """Where the component may be, the likeliest place first; a forward tells which it is. See `component_place`.

    Raises:
        SiteError: see `component_place`.
    """
    found = [component_place(block, component, config)]
    inside = _WITHOUT_NORM.get(component)
    other = None if inside is None else _added(block, component, inside(block, behind=False))
    return found if other is None or other in found else [*found, other]


_WITHOUT_NORM: dict[str, Callable[..., str | None]] = {
    "attention_output": attention_output,
    "mlp_output": mlp_output,
}


def _added(block: nn.Module, component: str, path: str | None) -> Place | None:
    return None if path is None else Place(path, Tap(factor=multiplier(block, component)))


def _head(block: nn.Module, head: int, config: Any, component: str | None = None) -> Place:
    component = component or f"head_output[{head}]"
    projection = output_projection(block)
    heads = None if projection is None else head_count(block, projection, config)
    if projection is None or heads is None:
        raise _lacks(block, component)
    if head >= heads:
        raise SiteError(
            f"component={component!r}: there is no head {head}",
            code="site.component",
            value=head,
            rule=f"the model has {heads} heads: 0 to {heads - 1}",
        )
    module = block.get_submodule(projection)
    width = getattr(module, "in_features", None) or getattr(module, "nx", None)
    if not isinstance(width, int) or width % heads:
        raise _lacks(block, component)
    size = width // heads
    return Place(projection, Tap(on_input=True, start=head * size, stop=(head + 1) * size))


def _lacks(block: nn.Module, component: str) -> SiteError:
    return SiteError(
        f"component={component!r}: {type(block).__name__} has none that can be told",
        code="site.component",
        value=component,
        rule="attention and feed-forward part are found by the structure of the block, and are one module each",
        fix="use component='block_output' or 'block_input', or layers_to_transform for the layers that have it",
    )
