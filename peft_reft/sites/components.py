"""Component name → the module of a block whose output is edited. A new component is a function and a row."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from peft_reft.hub_format.errors import SiteError

__all__ = ["COMPONENTS", "component_module"]


def _block_output(block: nn.Module) -> str:
    return ""


COMPONENTS: dict[str, Callable[[nn.Module], str]] = {"block_output": _block_output}
"""Name → function from a block to the dotted name of a module inside it; `""` is the block itself."""


def component_module(block: nn.Module, component: str) -> str:
    """Dotted name, inside `block`, of the module whose output is the component.

    Raises:
        SiteError: the component is not known, or this block has none.
    """
    if component not in COMPONENTS:
        raise SiteError(
            f"component={component!r} is not known",
            code="site.component",
            value=component,
            rule=f"known are: {', '.join(sorted(COMPONENTS))}",
        )
    return COMPONENTS[component](block)
