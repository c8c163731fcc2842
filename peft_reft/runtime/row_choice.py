"""`adapter_names`: which adapters edit which row of a batch, for the time of one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from peft_reft.hub_format.bundle import BASE
from peft_reft.hub_format.errors import ConfigError

from .activity import Activity

__all__ = ["BASE", "ROWS_RULE", "RowAdapters", "RowUnits"]

ROWS_RULE = f"it is a list with one adapter name per row of the batch, {BASE!r} for none, or a tuple of names that add"


class RowUnits(Protocol):
    """Parameters of many adapters of one structure, gathered row by row."""

    def unit(self, path: str, number: int, batch: int) -> Any:
        """A site's unit for a batch, in which every row has its own parameters."""


@dataclass
class RowAdapters:
    """What each row of a batch is edited by.

    Attributes:
        rows: for each row the names of its adapters.
        stack: of their parameters, where they are of one structure; the first name then stands for all of them.
        activity: what edits the model in this call, once that has been asked for.
        tensors: that the call was given, as far as PEFT shows them.
        taken: whether the call has come to the model.
    """

    rows: tuple[tuple[str, ...], ...]
    stack: RowUnits | None = None
    activity: Activity | None = None
    tensors: Sequence[Tensor] = ()
    taken: bool = False

    def take(self, given: Iterable[Any]) -> bool:
        """Whether a call that reaches the model is the one that this was said of; another, of a hook, comes between.

        Args:
            given: the call's arguments.
        """
        mine = not self.tensors or any(value is tensor for value in given for tensor in self.tensors)
        self.taken = self.taken or mine
        return mine

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters to be resolved: all that are named, or the one that stands for them."""
        named = tuple(dict.fromkeys(name for row in self.rows for name in row))
        return named if self.stack is None else named[:1]

    def selects(self, name: str, batch: int, device: torch.device) -> Tensor:
        """The rows that an adapter edits, bool `[batch, 1]`; beams and returned sequences repeat each row."""
        chosen = [bool(row) if self.stack is not None else name in row for row in self.rows]
        return torch.tensor(chosen, device=device).repeat_interleave(self.repeats(batch))[:, None]

    def repeats(self, batch: int) -> int:
        """How many rows of a batch stand for each of ours; a batch that is no multiple is refused."""
        repeats, rest = divmod(batch, len(self.rows))
        if rest or not repeats:
            raise ConfigError(
                f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self.rows)} "
                f"and {batch} respectively",
                value=len(self.rows),
                rule=ROWS_RULE,
            )
        return repeats
