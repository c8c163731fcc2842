"""Component name → where in a block it is read and edited: a module, its input or output, a slice of it.

Found by structure, not by the model's name: the attention's output projection is the last linear map of the block's
first attention module, and the feed-forward part is what is named as such, else the last linear map outside of any
attention. A new component is a function and a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from peft_reft.hub_format.errors import SiteError

__all__ = ["COMPONENTS", "Place", "Tap", "component_place"]

_ATTENTION = re.compile(r"Attention|Attn")
_CROSS = re.compile(r"Cross|EncDec")
_FEED_FORWARD = re.compile(r"MLP|FeedForward|FFN|Moe|MoE|Mixture|Dense(Gated)?Act")
_HEAD = re.compile(r"head_output\[(\d+)\]")


@dataclass(frozen=True)
class Tap:
    """Which tensor of a module's call is edited: its first output or its first input, whole or one slice of it.

    Attributes:
        on_input: the input instead of the output.
        start, stop: the slice of the last dimension; None for all of it.
    """

    on_input: bool = False
    start: int | None = None
    stop: int | None = None

    @property
    def width(self) -> int | None:
        """Size of the slice; None for the whole hidden size."""
        return None if self.start is None or self.stop is None else self.stop - self.start


@dataclass(frozen=True)
class Place:
    """Dotted name, inside the block, of the module that is hooked (`""` is the block), and what is edited there."""

    path: str
    tap: Tap = Tap()


def _attention_output(block: nn.Module) -> str | None:
    """The attention before its residual is added: its module, or where that adds the residual, the projection."""
    projection = _output_projection(block)
    if projection is None:
        return None
    parent = projection.rpartition(".")[0]
    inside = parent and _ATTENTION.search(type(block.get_submodule(parent)).__name__)
    return parent if inside else projection


def _mlp_output(block: nn.Module) -> str | None:
    """The feed-forward part before its residual is added."""
    for path, module in _outermost(block, _FEED_FORWARD):
        if any(True for _ in module.children()):
            return path
    attentions = [path for path, _ in _outermost(block, _ATTENTION)]
    linear = [
        path
        for path, module in block.named_modules()
        if _is_linear(module) and not any(path.startswith(f"{attention}.") for attention in attentions)
    ]
    return linear[-1] if linear else None


COMPONENTS: dict[str, Callable[[nn.Module], Place | None]] = {
    "block_output": lambda block: Place(""),
    "block_input": lambda block: Place("", Tap(on_input=True)),
    "attention_output": lambda block: _place(_attention_output(block)),
    "mlp_output": lambda block: _place(_mlp_output(block)),
}
"""Name → function from a block to the place, or None where the block has none. Beside these: `head_output[n]`."""


def component_place(block: nn.Module, component: str, config: Any = None) -> Place:
    """Where in `block` the component is.

    `head_output[n]` is what the n-th attention head gives to the output projection (LoFiT, arXiv 2406.01563).

    Args:
        block: one block of a stack.
        component: its name.
        config: the text model's, for the number of heads.

    Raises:
        SiteError: the component is not known, or this block has none.
    """
    if (head := _HEAD.fullmatch(component)) is not None:
        return _head(block, int(head[1]), config)
    if component not in COMPONENTS:
        raise SiteError(
            f"component={component!r} is not known",
            code="site.component",
            value=component,
            rule=f"known are: {', '.join(sorted(COMPONENTS))}, head_output[<n>]",
        )
    place = COMPONENTS[component](block)
    if place is None:
        raise _lacks(block, component)
    return place


def _head(block: nn.Module, head: int, config: Any) -> Place:
    names = ("num_attention_heads", "n_head", "num_heads", "n_heads")
    heads = next((n for name in names if isinstance(n := getattr(config, name, None), int)), None)
    projection = _output_projection(block)
    if projection is None or heads is None:
        raise _lacks(block, f"head_output[{head}]")
    if head >= heads:
        raise SiteError(
            f"component='head_output[{head}]': there is no head {head}",
            code="site.component",
            value=head,
            rule=f"the model has {heads} heads: 0 to {heads - 1}",
        )
    module = block.get_submodule(projection)
    width = getattr(module, "in_features", None) or getattr(module, "nx", None)
    if not isinstance(width, int) or width % heads:
        raise _lacks(block, f"head_output[{head}]")
    size = width // heads
    return Place(projection, Tap(on_input=True, start=head * size, stop=(head + 1) * size))


def _output_projection(block: nn.Module) -> str | None:
    found = [path for path, _ in _outermost(block, _ATTENTION) if not _CROSS.search(_class_at(block, path))]
    if not found:
        return None
    linear = [name for name, module in block.get_submodule(found[0]).named_modules() if name and _is_linear(module)]
    return f"{found[0]}.{linear[-1]}" if linear else None


def _outermost(module: nn.Module, pattern: re.Pattern[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if pattern.search(type(child).__name__):
            yield path, child
        else:
            yield from _outermost(child, pattern, path)


def _is_linear(module: nn.Module) -> bool:
    """A linear map, quantised, wrapped by an adapter or not: transformers' Conv1D has `nx` and `nf`."""
    return hasattr(module, "in_features") or (hasattr(module, "nx") and hasattr(module, "nf"))


def _class_at(block: nn.Module, path: str) -> str:
    return type(block.get_submodule(path)).__name__


def _place(path: str | None) -> Place | None:
    return None if path is None else Place(path)


def _lacks(block: nn.Module, component: str) -> SiteError:
    return SiteError(
        f"component={component!r}: {type(block).__name__} has none that can be told",
        code="site.component",
        value=component,
        rule="attention and feed-forward part are found by the structure of the block",
        fix="use component='block_output' or 'block_input'",
    )
