"""R of every active unit that has one, for all sites of a shape in one call."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from peft_reft.interventions import orthonormal_rows
from peft_reft.positions import is_transformed

from .frames import Frame, Rotated
from .situation import UnitKey
from .state import ModelState

__all__ = ["Rotations", "is_gathered_alone", "is_placeholder"]


class Rotations:
    """Computes R where a frame needs it: once, when its first edit does.

    Args:
        state: of the model.
    """

    def __init__(self, state: ModelState) -> None:
        self.state = state
        self.known: dict[Any, tuple[Tensor, Tensor]] = {}

    def of(self, frame: Frame) -> Rotated:
        """R by (site, unit).

        A generation runs many frames, some of one stack only: there R is made once, for all stacks. Sharded
        parameters are left out: their R is computed where the shards are gathered, in the unit's forward.
        """
        if frame.rotations is None:
            frame.rotations = self._computed(frame)
            if frame.keeper is not None:
                frame.keeper.rotations = frame.rotations
        return frame.rotations

    def _computed(self, frame: Frame) -> Rotated:
        if frame.rows is not None and frame.rows.stack is not None:
            return {}
        groups: dict[Any, list[tuple[tuple[str, UnitKey], Tensor]]] = {}
        for path, layer in self.state.layers.items():
            if frame.keeper is None and frame.plans.get(layer.stack) is None:
                continue
            for one in frame.units.get(path, ()):
                unit = one.module if torch.compiler.is_compiling() else layer.unit((one.name, one.key[1]))
                for name in unit.orthonormal:
                    raw = getattr(unit, name)
                    if not is_gathered_alone(self.state.model, path, raw):
                        alike = (raw.shape, raw.dtype, raw.device, unit.capacity is not None)
                        groups.setdefault(alike, []).append(((path, one.key), unit.raw_rotation()))
        found: Rotated = {}
        for alike, members in groups.items():
            rows = self._rows(alike, torch.stack([raw for _, raw in members]))
            found.update(zip((where for where, _ in members), rows.unbind(0), strict=True))
        return found

    def _rows(self, alike: Any, raw: Tensor) -> Tensor:
        """R of stacked raw parameters `[sites, rank, hidden]`.

        Without gradients it is the one of the forward before, where the parameters are the same. Their values say so,
        not their versions: TRL writes into a reference through `.data`, which counts no version. To look at values
        costs nothing on a CPU; an accelerator would have to be waited for.
        """
        padded = alike[-1]
        if raw.device.type != "cpu" or torch.compiler.is_compiling() or is_transformed() or raw.requires_grad:
            return orthonormal_rows(raw, padded=padded)
        known = self.known.get(alike)
        if known is None or known[0].shape != raw.shape or not torch.equal(known[0], raw):
            with torch.inference_mode(False):
                known = self.known[alike] = (raw.clone(), orthonormal_rows(raw.clone(), padded=padded))
        return known[1]


def is_placeholder(parameter: nn.Parameter) -> bool:
    """Whether an engine holds a parameter's values elsewhere until its module runs."""
    return type(parameter) is not nn.Parameter or hasattr(parameter, "ds_id") or parameter.is_meta


def is_gathered_alone(model: nn.Module, path: str, parameter: nn.Parameter) -> bool:
    """Whether an engine, or accelerate's offloading, brings a site's parameters around the site's block only.

    The type alone does not say it: FSDP2 leaves a plain parameter where it does not free it after a forward.
    """
    if is_placeholder(parameter):
        return True
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    module = model
    for part in path.split("."):
        if isinstance(module, FSDPModule):
            return True
        module = module.get_submodule(part)
    return isinstance(module, FSDPModule)
