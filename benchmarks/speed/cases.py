"""What is measured: models of three shapes, and on each the work of a training step, a forward or a generation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

__all__ = ["CASES", "COMPILED", "EDGE", "FACTS_CASE", "VOCABULARY", "Case", "Shape", "llama"]

VOCABULARY = 512
EDGE = 7
"""Edited tokens at each end of the prompt, where nothing else is said."""


@dataclass(frozen=True)
class Shape:
    """A Llama of random weights, without grouped heads."""

    hidden: int
    layers: int
    mlp: int
    heads: int = 4


S = Shape(hidden=256, layers=8, mlp=1024)
M = Shape(hidden=768, layers=12, mlp=3072)
X = Shape(hidden=768, layers=12, mlp=32, heads=1)
"""Nearly no work of the base, so that what is left is the method's own cost."""


@dataclass(frozen=True)
class Case:
    """One row of the table. Every method edits or adapts all layers; a ReFT is a loreft at f7+l7, tied.

    `loaded` above one: that many adapters on the model and one active, against the same method with one.
    """

    name: str
    shape: Shape
    work: Literal["train", "forward", "generate"]
    batch: int
    tokens: int
    calls: int
    """Calls in one measurement: enough of them that the clock's own steps do not count."""
    new_tokens: int = 0
    rank: int = 4
    lora_rank: int = 8
    loaded: int = 1
    target: float | None = None
    """What ours may cost at most, as a ratio to the frozen base."""
    own_cost: bool = False
    """The floor leaves the method's own cost alone: the frozen base, also beside many adapters, and in training a
    backward that ends behind the first block, as a ReFT's does."""
    edge: int = EDGE
    """Edited tokens at each end of the prompt."""
    named: int = 1
    """Adapters that the rows name, evenly (`adapter_names`); 1: no names, the active one serves all."""
    compiled: str | None = None
    """The backend of `torch.compile`, in place on the base; a generation then decodes with a static cache."""

    def settings(self) -> dict[str, Any]:
        """What another result must share to be compared with; JSON. `_OPTIONAL` where they are unusual."""
        usual = {one.name: one.default for one in fields(self) if one.name in _OPTIONAL}
        told = {key: value for key, value in asdict(self).items() if key not in ("name", "calls", "target")}
        return {key: value for key, value in told.items() if key not in usual or value != usual[key]}


_OPTIONAL = ("own_cost", "edge", "named", "compiled")


_ALL = (
    Case("S train", S, "train", 4, 128, calls=2, target=0.96),
    Case("M train", M, "train", 2, 64, calls=1, target=0.97),
    Case("X train r 4", X, "train", 4, 128, calls=1, target=1.04),
    Case("X train r 64", X, "train", 4, 128, calls=1, rank=64, lora_rank=64, target=1.25),
    Case("S prefill", S, "forward", 1, 32, calls=16, target=1.08),
    Case("S forward", S, "forward", 4, 128, calls=3),
    Case("X forward", X, "forward", 4, 128, calls=2, target=1.03),
    Case("S generation", S, "generate", 1, 32, calls=1, new_tokens=64, target=1.02),
    Case("X generation", X, "generate", 1, 32, calls=1, new_tokens=64, target=1.03),
    Case("S 10 adapters", S, "forward", 4, 128, calls=3, loaded=10, target=1.02),
    Case("tiny train", Shape(32, 2, 64), "train", 2, 32, calls=2),
    Case("tiny forward", Shape(32, 2, 64), "forward", 2, 32, calls=2),
    Case("tiny generation", Shape(32, 2, 64), "generate", 1, 16, calls=1, new_tokens=4),
    Case("tiny 3 adapters", Shape(32, 2, 64), "forward", 2, 32, calls=2, loaded=3),
)
CASES = {case.name: case for case in _ALL}
"""Name → case; those called tiny try the command out and are measured only where they are named."""
COMPILED = {
    f"{case.name}, compiled": replace(case, name=f"{case.name}, compiled", compiled="inductor", target=None)
    for case in (
        CASES["S train"],
        CASES["S prefill"],
        CASES["M train"],
        Case("M prefill", M, "forward", 1, 32, calls=4),
        CASES["S generation"],
    )
}
"""What `benchmarks.speed.compiled` measures: floor and method are compiled alike."""
FACTS_CASE = "M train"
"""On what loading, attaching, memory and disk are measured."""


def llama(shape: Shape, device: str) -> Any:
    """The base, the same weights at every call, frozen, in evaluation mode; bf16 on an accelerator, else float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.mlp,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = LlamaForCausalLM(config)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return base.to(device=device, dtype=dtype).requires_grad_(False).eval()
