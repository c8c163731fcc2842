"""One call with `adapter_names`: what must be in place while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.frames import Running
from peft_reft.runtime.row_choice import BASE, RowAdapters
from peft_reft.runtime.state import ModelState

from .stacking import stacks_of

__all__ = ["rows_in_use"]


@contextmanager
def rows_in_use(
    model: nn.Module, state: ModelState, rows: tuple[tuple[str, ...], ...], args: Any, kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """Run a call in which every row has its own adapters, modules saved in full included.

    Args:
        model: the base model.
        state: of the model.
        rows: for each row the names of its ReFT adapters.
        args, kwargs: the call's, as far as PEFT shows them. Where `intervention_locations` is a dict, it speaks of
            adapters by name, which a stack does not.

    Raises:
        ConfigError: the call did not come to the model.
    """
    stack = None if isinstance(kwargs.get("intervention_locations"), Mapping) else stacks_of(state).for_rows(rows)
    given = (*args, *kwargs.values())
    said = RowAdapters(rows, stack, tensors=[value for value in given if isinstance(value, Tensor)])
    running, outer = state.running, state.running.rows
    if outer is None and running.call is None:  # a call that an interrupt has ended may have left its hooks
        _remove(running.handles)
    handles: list[RemovableHandle] = []
    around, running.handles = running.handles, handles
    try:
        for module in state.base_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                handles.append(module.register_forward_pre_hook(_naming(running, said), with_kwargs=True))
        handles.append(model.register_forward_pre_hook(_showing(running, said), prepend=True, with_kwargs=True))
        running.rows = said
        yield
    finally:  # which may come late, where an interrupt's traceback has held this call: another may run by then
        if running.rows is said or running.rows is None:
            running.rows = outer
        _remove(handles)
        if running.handles is handles:
            running.handles = around
    if not said.taken:
        raise ConfigError(
            "adapter_names reached no call of the model",
            value=rows,
            rule="a call's own tensors come to the model, or none that PEFT shows before",
            fix="pass the inputs to the PEFT model itself, and let no wrapper inside of it replace all of them",
        )


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def _showing(running: Running, said: RowAdapters) -> Any:
    """A pre-hook of the model, before all others, that sees the tensors which PEFT has not shown."""

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if running.rows is said and not said.tensors:
            said.tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]

    return note


def _naming(running: Running, said: RowAdapters) -> Any:
    """A pre-hook that tells a wrapper of PEFT which of its copies each row uses."""

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if running.rows is not said:  # of a call inside, or one that an interrupt has ended
            return args, kwargs
        rows = said.rows
        names = [next((name for name in row if name in module._adapters), BASE) for row in rows]
        repeats = max(1, len(args[0]) // len(names)) if args else 1  # beams
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(repeats)]}

    return tell
