"""Which kinds add something to the loss of a training forward, and with what weight."""

from __future__ import annotations

from typing import Any

from .base import Intervention

__all__ = ["PenaltyWeight", "has_own_penalty", "has_penalty", "has_row_penalty"]


class PenaltyWeight:
    """Of kinds with an option `penalty`: its weight in the loss, which a schedule may change while a run lasts."""

    options: dict[str, Any]

    @property
    def penalty_weight(self) -> float:
        """What was set last, or what the options say."""
        weight: float = self.__dict__.get("_penalty_weight", self.options["penalty"])
        return weight

    @penalty_weight.setter
    def penalty_weight(self, value: float) -> None:
        self.__dict__["_penalty_weight"] = value

    @property
    def unweighted(self) -> bool:
        """Whether it adds nothing as it is now."""
        return self.penalty_weight == 0


def has_penalty(unit: Any) -> bool:
    """Whether a unit's kind can add something to the loss.

    Args:
        unit: an intervention.

    Returns:
        True where its class defines `penalty` or `row_penalty`.
    """
    return has_own_penalty(unit) or type(unit).row_penalty is not Intervention.row_penalty


def has_own_penalty(unit: Any) -> bool:
    """Whether it adds something of its parameters alone.

    Args:
        unit: an intervention.

    Returns:
        True where its class defines `penalty`.
    """
    return type(unit).penalty is not Intervention.penalty


def has_row_penalty(unit: Any) -> bool:
    """Whether a unit adds something that depends on the rows that it edits.

    Args:
        unit: an intervention.

    Returns:
        True where its class defines `row_penalty` and its weight is not 0.
    """
    return type(unit).row_penalty is not Intervention.row_penalty and not (
        isinstance(unit, PenaltyWeight) and unit.unweighted
    )
