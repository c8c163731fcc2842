"""Joint training without overlap: what an edit reads is kept out of what its block's LoRA writes.

In arXiv 2603.00425 weights and activations are trained together, and the rows of W_d are projected off the span of the
LoRA's B, so that both parts learn different things. As its authors' code does at each step, the projection is written
into the parameter, so that what is saved is plain W_d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import Intervention
from peft_reft.runtime import state_of
from peft_reft.sites.parts import linear_maps, mlp_output, output_projection

__all__ = ["Orthogonal"]

RELATIVE = 1e-6
"""A direction of B counts from this part of its largest on: B starts as 0, and then keeps nothing out."""


class Orthogonal:
    """Keeps the edits of one mixed model apart from its LoRA; `keep` is called before a forward and before a save.

    Args:
        base: the base model, with both tuners on it.

    Raises:
        ConfigError: none of its edits reads by rows that could be kept apart.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.done: dict[int, Any] = {}
        if not list(self._pairs()):
            raise ConfigError(
                "orthogonal=True, and no edit at a block's output stands beside a LoRA that writes there",
                value=True,
                rule="an edit of the kind 'adapter' at component='block_output', and a LoRA on the output projection "
                "of the block's attention or feed-forward part",
                fix='e.g. target_modules=["o_proj", "down_proj"], or target_modules="all-linear"',
            )

    @torch.no_grad()
    def keep(self) -> None:
        """Project what has changed since; parameters that have not are left alone, a graph may hold them."""
        for unit, written in self._pairs():
            rows: Tensor = getattr(unit, type(unit).reads)  # type: ignore[attr-defined]
            if self.done.get(id(unit)) == _state(rows, written):
                continue
            basis = _basis([held.to(rows.device) for held in written])
            free = rows.double()
            rows.copy_(free - (free @ basis) @ basis.mT)
            self.done[id(unit)] = _state(rows, written)

    def _pairs(self) -> Iterator[tuple[Intervention, list[Tensor]]]:
        """Each unit that reads by rows, and the B `[hidden, rank]` of every active LoRA of its block."""
        state = state_of(self.base)
        for path, layer in {} if state is None else state.layers.items():
            block = self.base.get_submodule(path)
            if path != f"{layer.stack}.{path.rpartition('.')[2]}":
                continue
            written = list(_written(block))
            for name in layer.active_adapters if written else ():
                for number in layer.units.get(name, ()):
                    unit, tap = layer.unit((name, number)), layer.taps[name, number]
                    if hasattr(type(unit), "reads") and not tap.on_input:
                        yield unit, written


def _written(block: nn.Module) -> Iterator[Tensor]:
    inside = mlp_output(block)
    last = linear_maps(block.get_submodule(inside), inside)[-1:] if inside else []
    for path in (output_projection(block), *last):
        module = None if path is None else block.get_submodule(path)
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                if name in module.lora_B:
                    yield module.lora_B[name].weight


def _basis(written: Sequence[Tensor]) -> Tensor:
    """Orthonormal columns of all that is written, float64; columns of zeros in place of those that are not there."""
    left, sizes, _ = torch.linalg.svd(torch.cat([held.double() for held in written], 1), full_matrices=False)
    basis: Tensor = left * (sizes > RELATIVE * sizes.max()).to(left.dtype)
    return basis


def _state(rows: Tensor, written: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((id(held), held._version) for held in (rows, *written))
