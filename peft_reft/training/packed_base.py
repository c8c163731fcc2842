"""4-bit weights of bitsandbytes on a CPU: a layout for inference, through which no gradient flows.

On processors with AVX512-BF16, a forward in eval mode whose input needs no gradient moves the weights of a
`Linear4bit` into another layout, in place, and rounds their scales to bfloat16 (bitsandbytes 0.50, nn/modules.py,
`Linear4bit.forward`). They stay there in training mode, and the product of that layout (`gemv_4bit`) has no backward:
torch warns, and what lies below the layer gets gradients without it. No verb brings the scales back.

So a model that is trained is kept out of that layout, and one that is in it is refused where it would be trained. A
model that only infers keeps bitsandbytes' choice, and its speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.boundary import BoundaryProvider

__all__ = ["PackedBase"]

_PACKS = "support_avx512bf16_for_cpu"
_PACKED = "packing_format_for_cpu"


class PackedBase(BoundaryProvider):
    """Looks before every forward that wants gradients.

    Attributes:
        layers: path → what may move its weights; empty once they are kept, and for any other base.
        kept: those that were told not to, on this model alone.
    """

    layers: Mapping[str, nn.Module]
    kept: tuple[nn.Module, ...] = ()

    def attach(self) -> None:
        """Find the layers that may."""
        any_packs = any(_PACKS in part.__dict__ for part in self.state.base_modules())
        named = self.state.model.named_modules() if any_packs else ()
        self.layers = {path: part for path, part in named if part.__dict__.get(_PACKS)}
        self.prepares: bool = bool(self.layers)

    def detach(self) -> None:
        """Let bitsandbytes choose again."""
        for layer in self.kept:
            setattr(layer, _PACKS, True)
        self.layers, self.kept, self.prepares = {}, (), False

    def mode_changed(self) -> None:
        """In training mode nothing is moved; from now on not in evaluations between the steps either."""
        if self.layers and self.state.model.training and self._is_trained() and not self._moved():
            self._keep()

    def starting(self, call: Mapping[str, Any]) -> None:
        """Keep the layers as they are where gradients are wanted.

        Raises:
            ConfigError: gradients are wanted, and the weights lie in the other layout.
        """
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not self._is_trained(call):
            return
        if moved := self._moved():
            raise ConfigError(
                f"{len(moved)} layers of the base, such as {moved[0]}, have their 4-bit weights in bitsandbytes' "
                "layout for inference on a CPU",
                code="base.packed",
                value=moved[0],
                rule="a forward in eval mode without gradients moved them there; no gradient flows through that "
                "layout, so what lies below would be trained with wrong ones",
                fix="load the base once more, add or load the adapter as one that is trained (is_trainable=True), and "
                "call model.train() before the first forward; evaluations in between are then right too",
            )
        self._keep()

    def _is_trained(self, call: Mapping[str, Any] | None = None) -> bool:
        wanted = any(parameter.requires_grad for parameter in self.state.model.parameters())
        return wanted or any(isinstance(value, Tensor) and value.requires_grad for value in (call or {}).values())

    def _moved(self) -> list[str]:
        return [path for path, layer in self.layers.items() if _is_packed(layer)]

    def _keep(self) -> None:
        """Tell the layers not to move their weights."""
        self.kept = tuple(self.layers.values())
        for layer in self.kept:
            setattr(layer, _PACKS, False)
        self.layers, self.prepares = {}, False


def _is_packed(layer: nn.Module) -> bool:
    return bool(getattr(getattr(layer.weight, "quant_state", None), _PACKED, False))
