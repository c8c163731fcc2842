"""A call that runs: with what its frame was planned, and which forwards of the model are on the way inside of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .compiling import beside_graphs
from .frames import Running
from .inputs import Explicit

__all__ = ["Call", "shows_tokens"]

_SCALARS = (bool, int, float, str, type(None))


@dataclass(slots=True)
class Call:
    """One call of a model, from its way in until it returns.

    Attributes:
        inside: the forwards that are on the way, the one that opened the frame first, each by two numbers of its own.
        arguments: the call's, by name, as the frame was planned with.
        explicit: the positions that it states.
        labels: as the call was given them.
        session: the generation that it belongs to, if it does.
        rows: what was said for its rows, if anything was.
    """

    inside: list[tuple[int, int]]
    arguments: Mapping[str, Any]
    explicit: Explicit
    labels: Any
    session: Any
    rows: Any

    @beside_graphs
    def is_left(self, here: tuple[int, int], running: Running) -> bool:
        """Whether a forward that starts is no part of this call: somebody's hook calls the model once more.

        A forward that is on the way already starts anew, or a generation, or a call with other rows.
        """
        return here in self.inside or running.session is not self.session or running.rows is not self.rows

    @beside_graphs
    def updated(self, arguments: dict[str, Any], explicit: Explicit) -> bool:
        """Take over what a wrapper around the model's own forward changed; whether it changed anything.

        What it keeps for itself, such as labels for a loss of its own, is known all the same. A generation knows its
        prompt, whatever a wrapper does.
        """
        if self.session is not None or (not explicit and self._has(arguments)):
            return False
        if self.labels is not None and arguments.get("labels") is None:
            arguments = {**arguments, "labels": self.labels}
        self.arguments, self.explicit = arguments, explicit or self.explicit
        return True

    def _has(self, arguments: Mapping[str, Any]) -> bool:
        known = self.arguments
        return all(
            value is known.get(name) or (isinstance(value, _SCALARS) and name != "labels")
            for name, value in arguments.items()
        )


@beside_graphs
def shows_tokens(arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments of a call tell how many tokens there are."""
    return any(isinstance(value, Tensor) and value.dim() > 1 for value in arguments.values())
