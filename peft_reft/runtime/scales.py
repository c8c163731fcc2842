"""The factors of `scale_adapter`, as numbers and as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Scales"]


class Scales(dict[str, float]):
    """Adapter → the factor of its edits at one site.

    A number where Python computes, which then can leave a factor of 1 out; a tensor `[]` in a compiled graph, which
    would guard on a number. The tensor is float64: a scalar, it turns no edit into float64.
    """

    @property
    def _tensors(self) -> dict[str, Tensor]:
        held: dict[str, Tensor] = self.__dict__.setdefault("tensors", {})  # unpickling sets items before attributes
        return held

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, float(value))
        if name in self._tensors:
            self._tensors[name].fill_(float(value))
        else:
            with torch.inference_mode(False):  # what is kept must take writes later
                self._tensors[name] = torch.tensor(float(value), dtype=torch.float64)

    def tensor(self, name: str) -> Tensor:
        """An adapter's factor as a tensor; a later factor is written into it."""
        return self._tensors[name]

    def to(self, name: str, device: torch.device) -> None:
        """Let an adapter's tensor live where its parameters do."""
        held = self._tensors[name]
        if held.device != device and device.type != "meta":
            dtype = torch.float32 if device.type == "mps" else held.dtype  # MPS has no float64
            self._tensors[name] = torch.tensor(self[name], dtype=dtype, device=device)

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        self.pop(name, None)
        self._tensors.pop(name, None)
