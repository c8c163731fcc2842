"""Room for edits of a higher rank than an adapter has: rows of zeros, so that hot-swapped adapters share one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .complement import COMPLEMENT

__all__ = ["Reserving"]


class Reserving(nn.Module):
    """What an intervention does about its capacity; its tensors and rank are the intervention's.

    Attributes:
        capacity: rows that the tensors of its rank have; None where they have `rank`.
    """

    tensors: ClassVar[Mapping[str, tuple[str, ...]]]
    frozen: ClassVar[frozenset[str]]
    rank: int
    capacity: int | None

    def named_tensors(self) -> dict[str, Tensor]:
        """Name → tensor of the intervention's own."""
        raise NotImplementedError

    @property
    def ranked(self) -> list[str]:
        """Names of the tensors whose first dimension is the rank."""
        return [name for name in self.named_tensors() if self.is_ranked(name)]

    def is_ranked(self, name: str) -> bool:
        """Whether the first dimension of one of its tensors is the rank."""
        return name != COMPLEMENT and self.tensors[name][0] == "rank"

    def reserve(self, capacity: int) -> None:
        """Make room for edits up to this rank: rows of zeros, which are computed and add nothing.

        They are no part of the adapter: what is saved has `rank` rows.
        """
        for name in self.ranked:
            held = getattr(self, name)
            wider = torch.zeros(capacity, *held.shape[1:], dtype=held.dtype, device=held.device)
            wider[: held.shape[0]] = held.detach()
            if name in self.frozen:
                self.register_buffer(name, wider)
            else:
                self.register_parameter(name, nn.Parameter(wider, requires_grad=held.requires_grad))
        self.capacity = capacity

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.ranked if self.capacity is not None else ():
            destination[prefix + name] = destination[prefix + name][: self.rank].clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.ranked if self.capacity is not None else ():
            given = state_dict.get(prefix + name)
            if given is not None and given.shape[0] < getattr(self, name).shape[0]:
                wider = given.new_zeros(getattr(self, name).shape)
                wider[: given.shape[0]] = given
                state_dict = {**state_dict, prefix + name: wider}
        super()._load_from_state_dict(state_dict, prefix, *args)
