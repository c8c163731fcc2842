"""One call with `adapter_names`: what must be in place while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_reft.runtime.row_choice import BASE, RowAdapters
from peft_reft.runtime.state import ModelState

from .hiding import base_modules
from .stacking import stacks_of

__all__ = ["rows_in_use"]


@contextmanager
def rows_in_use(
    model: nn.Module, state: ModelState, rows: tuple[tuple[str, ...], ...], locations: Any = None
) -> Iterator[None]:
    """Run a call in which every row has its own adapters, modules saved in full included.

    Args:
        model: the base model.
        state: of the model.
        rows: for each row the names of its ReFT adapters.
        locations: `intervention_locations` of the call; a dict speaks of adapters by name, which a stack does not.
    """
    stack = None if isinstance(locations, Mapping) else stacks_of(state).for_rows(rows)
    with ExitStack() as opened:
        for module in base_modules(model, state):
            if isinstance(module, AuxiliaryTrainingWrapper):
                handle = module.register_forward_pre_hook(_naming(rows), with_kwargs=True)
                opened.callback(handle.remove)
        opened.enter_context(state.running.during("rows", RowAdapters(rows, stack)))
        yield


def _naming(rows: Sequence[Sequence[str]]) -> Any:
    """A pre-hook that tells a wrapper of PEFT which of its copies each row uses."""

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        names = [next((name for name in row if name in module._adapters), BASE) for row in rows]
        repeats = max(1, len(args[0]) // len(names)) if args else 1  # beams
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(repeats)]}

    return tell
