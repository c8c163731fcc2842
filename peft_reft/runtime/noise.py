"""Random numbers for kinds that sample in training: one seed a forward, and from it a generator for each unit.

The seed is one number of torch's own generator, drawn when a training forward starts and never in evaluation, so that
`set_seed` repeats a run and a trainer's checkpoint, which holds that generator's state, resumes it. It travels with
the frame: a block that gradient checkpointing runs again draws the same numbers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import nn

from .activity import Activity

__all__ = ["Noise", "noise_for"]

_LARGEST = 2**31


@dataclass(frozen=True, slots=True)
class Noise:
    """That of one forward.

    Attributes:
        seed: of it.
    """

    seed: int

    def generator(self, path: str, unit: tuple[int, int], device: torch.device) -> torch.Generator | None:
        """For one unit of a site; None in a compiled graph, which draws as dropout does."""
        if torch.compiler.is_compiling():
            return None
        own = zlib.crc32(f"{self.seed}/{path}/{unit[0]}/{unit[1]}".encode())  # a CPU's generator heeds 32 bits of it
        return torch.Generator(device).manual_seed(own)


def noise_for(activity: Activity, model: nn.Module) -> Noise | None:
    """The noise of a forward that starts; None where nothing samples, or nothing is trained."""
    if not activity.samples or not model.training or torch.compiler.is_compiling():
        return None
    return Noise(int(torch.randint(_LARGEST, ())))
