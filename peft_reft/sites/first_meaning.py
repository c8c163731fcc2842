"""What the components meant in format 1.0 (SPEC.md, section 5): a file of that version may mean another module.

Version 1.1 takes attention, feed-forward part and heads where the block adds them: behind a norm that follows the
part, times the block's multiplier, without the residual. Where both say the same, as in Llama, nothing has changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .components import Place, Tap
from .forms import PLAIN
from .parts import linear_maps, outermost
from .probe import probed
from .stacks import text_config
from .table import Site

__all__ = ["PARTS_SINCE", "moved_components"]

PARTS_SINCE = "1.1"
"""The version of the format from which on the components are what a block adds."""
_ATTENTION = re.compile(r"Attention|Attn")
_CROSS = re.compile(r"Cross|EncDec")
_FEED_FORWARD = re.compile(r"MLP|FeedForward|FFN|Moe|MoE|Mixture|Dense(Gated)?Act")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


def moved_components(model: nn.Module, sites: Sequence[Site], components: Sequence[str]) -> dict[str, str]:
    """Component → a site's path, for those that version 1.0 takes elsewhere in some block.

    Args:
        model: of the sites.
        sites: of an adapter.
        components: of its groups, by their number.
    """
    found: dict[str, str] = {}
    config = text_config(model)
    for site in sites:
        path = f"{site.stack.path}.{site.block}"
        block = model.get_submodule(path)
        for number, tap in zip(site.groups, site.taps, strict=True):
            component = components[number]
            if not probed(component) or component == "heads":  # which came later
                continue
            first = _place(block, component, config)
            if first is not None and first != Place(site.path[len(path) + 1 :], replace(tap, form=PLAIN)):
                found.setdefault(component, site.path)
    return found


def _place(block: nn.Module, component: str, config: Any) -> Place | None:
    if component == "attention_output":
        return _whole(_attention(block))
    if component == "mlp_output":
        return _whole(_feed_forward(block))
    projection, head = _projection(block), int(component[len("head_output[") : -1])
    heads = next((n for name in _HEADS if isinstance(n := getattr(config, name, None), int)), None)
    module = None if projection is None else block.get_submodule(projection)
    width = getattr(module, "in_features", None) or getattr(module, "nx", None)
    if projection is None or heads is None or not isinstance(width, int) or width % heads or head >= heads:
        return None
    size = width // heads
    return Place(projection, Tap(on_input=True, start=head * size, stop=(head + 1) * size))


def _whole(path: str | None) -> Place | None:
    return None if path is None else Place(path)


def _attention(block: nn.Module) -> str | None:
    projection = _projection(block)
    if projection is None:
        return None
    parent = projection.rpartition(".")[0]
    return parent if parent and _ATTENTION.search(type(block.get_submodule(parent)).__name__) else projection


def _feed_forward(block: nn.Module) -> str | None:
    for path, module in outermost(block, lambda name: _FEED_FORWARD.search(name) is not None):
        if any(True for _ in module.children()):
            return path
    attentions = [path for path, _ in outermost(block, lambda name: _ATTENTION.search(name) is not None)]
    linear = [path for path in linear_maps(block) if not any(path.startswith(f"{other}.") for other in attentions)]
    return linear[-1] if linear else None


def _projection(block: nn.Module) -> str | None:
    found = [
        path
        for path, module in outermost(block, lambda name: _ATTENTION.search(name) is not None)
        if not _CROSS.search(type(module).__name__)
    ]
    linear = linear_maps(block.get_submodule(found[0])) if found else []
    return f"{found[0]}.{linear[-1]}" if linear else None
