"""vLLM's decoder layers, taught to call the edit: the class of each is replaced by one made of it, before compilation.

What a layer gives out differs between architectures, and a wrong guess would edit another place in silence. So the
table lists those that were compared with transformers token by token; another is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peft_reft.hub_format.errors import SiteError

from .op import OPERATORS

__all__ = ["ARCHITECTURES", "OPERATORS", "Blocks", "edit_blocks"]


@dataclass(frozen=True)
class Blocks:
    """Where an architecture's decoder layers stand, and what they give out.

    Attributes:
        path: dotted name of their list, the same in transformers and in vLLM.
        pair: whether a layer gives its last branch and the residual stream, whose sum is h; else h itself.
    """

    path: str = "model.layers"
    pair: bool = True


ARCHITECTURES = {
    "Gemma2ForCausalLM": Blocks(),
    "Gemma3ForCausalLM": Blocks(),
    "GemmaForCausalLM": Blocks(),
    "GraniteForCausalLM": Blocks(pair=False),
    "LlamaForCausalLM": Blocks(),
    "MistralForCausalLM": Blocks(),
    "Phi3ForCausalLM": Blocks(),
    "Qwen2ForCausalLM": Blocks(),
    "Qwen3ForCausalLM": Blocks(),
    "Qwen3MoeForCausalLM": Blocks(),
}
"""Class of vLLM's model → its layers. `tests/serving/test_architectures.py` compares each with transformers."""


def edit_blocks(model: nn.Module) -> int:
    """Let every decoder layer of vLLM's model call the edit; returns how many there are.

    Raises:
        SiteError: an architecture that is not in the table.
    """
    name = type(model).__name__
    blocks = ARCHITECTURES.get(name)
    if blocks is None:
        raise SiteError(
            f"ReFT on vLLM's {name}",
            code="vllm.architecture",
            value=name,
            rule=f"what a layer gives out is known for: {', '.join(ARCHITECTURES)}",
            fix="serve it with transformers (docs/serving.md), or add a row to ARCHITECTURES and to its test",
        )
    layers: Any = model.get_submodule(blocks.path)
    made: dict[type[nn.Module], type[nn.Module]] = {}
    for number, layer in enumerate(layers):
        own = type(layer)
        layer.__class__ = made.setdefault(own, _editing(own, blocks.pair))
        layer.reft_layer = number
    return len(layers)


def _editing(base: type[nn.Module], pair: bool) -> type[nn.Module]:
    """A decoder layer's class whose forward ends in the edit; Dynamo traces it as any other."""
    if pair:

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            hidden, residual = base.forward(self, *args, **kwargs)
            torch.ops.peft_reft.edit_pair(hidden, residual, self.reft_layer)
            return hidden, residual
    else:

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            hidden = base.forward(self, *args, **kwargs)
            torch.ops.peft_reft.edit_plain(hidden, self.reft_layer)
            return hidden

    return type(f"Reft{base.__name__}", (base,), {"forward": forward, "__module__": base.__module__})
