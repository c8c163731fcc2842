"""An interchange with a fixed source: set a variable that was found in a network to one of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.kinds import label, labels, optional_label

from .base import Intervention
from .consreft import consreft_delta
from .registry import register_intervention

__all__ = ["RotatedInterchange"]


@register_intervention("rotated_interchange", version=1)
class RotatedInterchange(Intervention):
    """h′ = h + Rᵀ(z_v − Rh), R Rᵀ = I: the distributed interchange of arXiv 2303.02536, definition 3.

    R's rows are where a variable of a causal model was found, z_v is the point that stands for its value v, in place
    of a source's Rs: the variable is set to v, whatever h is, and what is orthogonal to R stays. Choose it through
    `AlignmentSearch.to_adapter`. Options: `variable`, its name; `values`, a list of texts, numbers or booleans; and
    `value`, the one that it is set to, or None to leave h as it is, bit for bit. `peft_reft.set_value` sets another
    one at run time. It has no identity start: at None nothing is computed that could be trained. Parameters: raw
    `rotation`, `points` z `[values, rank]`; only the point of the value that is set gets a gradient.
    """

    points: Tensor
    broadcasts = True
    tensors = {"rotation": ("rank", "hidden"), "points": ("values", "rank")}
    orthonormal = frozenset({"rotation"})
    option_table = {"variable": label("V"), "values": labels((False, True)), "value": optional_label(True)}

    @classmethod
    def options_conflict(cls, options: Mapping[str, Any]) -> str | None:
        """`value` is one of `values`."""
        if options["value"] is None or options["value"] in options["values"]:
            return None
        return f"value {options['value']!r} is not one of values, {list(options['values'])[:12]!r}; None sets none"

    @property
    def value(self) -> Any:
        """The value that is set now, None for none."""
        return getattr(self, "_value", self.options["value"])

    @value.setter
    def value(self, value: Any) -> None:
        self._value = value

    @property
    def stackable(self) -> bool:
        """Not while another value is set than the options say, by which adapters are known to be alike."""
        return super().stackable and self.value == self.options["value"]

    def edit_delta(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """See `consreft_delta`, with z_v for b; adding −0.0 keeps every bit."""
        if self.value is None:
            return torch.full_like(hidden, -0.0)
        point = self.parameter("points", hidden).select(-2, list(self.options["values"]).index(self.value))
        point = point if self.rows is None else point[..., self.rows]
        return consreft_delta(hidden, rotation, point if point.dim() == 1 else point[:, None])
