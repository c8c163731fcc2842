"""Blocks whose hooks would do nothing, or not what an adapter needs: told when it is made, never found out by silence.

- Somebody calls the blocks by `forward`, past their hooks (SqueezeBERT). The code of the modules around them says
  whether that may be so; only then a tiny forward settles it.
- A block runs without gradients and works them out itself (Reformer's reversible layers, which also give two streams).

What the code says is kept for each class: the models of all others cost a look into a dict.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from peft_reft.hub_format.errors import SiteError

from .stacks import Stack
from .watch import reached_blocks

__all__ = ["check_reached"]

_checked: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def check_reached(model: nn.Module, stacks: Sequence[Stack]) -> None:
    """Refuse stacks whose blocks are run past their hooks, or run without gradients by themselves.

    Args:
        model: the whole model.
        stacks: those that are edited.

    Raises:
        SiteError: names the block's class and the cause.
    """
    for stack in stacks:
        blocks = model.get_submodule(stack.path)
        for block in {type(block): block for block in blocks.children()}.values():
            if _works_out_gradients(type(block)):  # type: ignore[arg-type]  # classes are hashable
                raise _refuse(
                    block,
                    "site.reversible",
                    "runs without gradients and gives several streams, from which its own backward pass computes "
                    "its input again",
                    "an edit would reach no gradient, and be in one of the streams only",
                    "use another base model",
                )
        if _calls_by_name(model, stack.path) and stack.path not in _checked.get(model, ()):
            paths = [f"{stack.path}.{name}" for name, _ in blocks.named_children()]
            try:
                reached = reached_blocks(model, paths)
                cause = "a forward on two tokens ran none of their hooks"
            except Exception as error:  # the model's own, of any kind: nothing is known then
                reached, cause = set(), f"no forward could tell: {type(error).__name__}: {str(error)[:200]}"
            if not reached:
                raise _refuse(
                    next(blocks.children()),
                    "site.unreached",
                    f"is run by its forward's name, past every hook; {cause}",
                    "an edit is a hook of the block",
                    "call the blocks themselves in the model's code: layer(...) for layer.forward(...)",
                )
            _checked.setdefault(model, set()).add(stack.path)


def _calls_by_name(model: nn.Module, path: str) -> bool:
    """Whether the code of a module around a list names both the list and `forward`."""
    parts = path.split(".")
    owners = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    wanted = {"forward", parts[-1]}
    return any(wanted <= _names_in(type(owner)) for owner in owners)  # type: ignore[arg-type]  # classes are hashable


@cache
def _names_in(owner: type[nn.Module]) -> frozenset[str]:
    """What the methods of a class look up by name, those left out that every model has from its libraries."""
    found: set[str] = set()
    for cls in owner.__mro__:
        module = f"{cls.__module__}."
        if module.startswith(("torch.", "peft.", "builtins.")):
            continue
        if module.startswith("transformers.") and not module.startswith("transformers.models."):
            continue
        for name, value in vars(cls).items():
            if name != "__init__":
                found |= _looked_up(value)
    return frozenset(found)


@cache
def _works_out_gradients(block: type[nn.Module]) -> bool:
    return callable(getattr(block, "backward_pass", None)) and "no_grad" in _looked_up(block.forward)


def _looked_up(value: Any) -> set[str]:
    code = getattr(inspect.unwrap(getattr(value, "__func__", value)), "__code__", None) if callable(value) else None
    return {name for part in _parts(code) for name in part.co_names} if isinstance(code, CodeType) else set()


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _refuse(block: nn.Module, code: str, what: str, rule: str, fix: str) -> SiteError:
    name = type(block).__name__
    return SiteError(f"{name} {what}", code=code, value=name, rule=rule, fix=fix)
