"""A decoding step's bytes and calls for a base on several devices, fitted to the steps that were measured here.

A step of the base reads its weights and the keys and values of its requests, and multiplies: it takes the longer of
both. A LoRA reads, for each adapter in the step, its A and B of every projection besides, by two calls for every
product. A ReFT of the prompt does neither:

    step = max(bytes / bandwidth, operations / speed)
    LoRA: + adapters' bytes / (efficiency · bandwidth) + calls · (a call's bytes) / bandwidth

Bandwidth and speed are fitted to the base's steps of one request and of many, efficiency and the bytes that a call is
worth to the steps of two LoRAs. For other hardware its nominal bandwidth and speed are taken, and the two fitted ones
as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .adapters import LINEAR, LORA_RANK, TARGETS

__all__ = [
    "BASES",
    "DEVICES",
    "H100",
    "PUBLISHED",
    "Fit",
    "Shape",
    "Speed",
    "fit",
    "lora_bytes",
    "lora_calls",
    "simulate",
]


@dataclass(frozen=True)
class Shape:
    """A base's sizes: blocks, hidden size, heads of keys and values times their size, MLP, vocabulary."""

    layers: int
    hidden: int
    kv: int
    mlp: int
    vocabulary: int
    tied: bool = False

    def projections(self) -> dict[str, tuple[int, int]]:
        """Projection → sizes of its input and output."""
        wide = self.hidden
        kv = dict.fromkeys(("k_proj", "v_proj"), (wide, self.kv))
        mlp = {"gate_proj": (wide, self.mlp), "up_proj": (wide, self.mlp), "down_proj": (self.mlp, wide)}
        return {"q_proj": (wide, wide), "o_proj": (wide, wide), **kv, **mlp}

    @property
    def parameters(self) -> int:
        """That a step reads: of the blocks and the head; the embedding gives one row a token."""
        return self.layers * sum(a * b for a, b in self.projections().values()) + self.hidden * self.vocabulary

    def kv_bytes(self, width: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv * width


BASES = {
    "SmolLM2 135M": Shape(30, 576, 192, 1536, 49152, tied=True),
    "Qwen 2.5 0.5B": Shape(24, 896, 128, 4864, 151936, tied=True),
    "Llama 3.1 8B": Shape(32, 4096, 1024, 14336, 128256),
    "Llama 3.1 70B": Shape(80, 8192, 1024, 28672, 128256),
}
PUBLISHED = {"Llama 3.1 70B": 1.9, "Llama 3.1 8B": 2.21, "Qwen 2.5 0.5B": 2.39}
"""Base → throughput of prefill-only ReFT over multi-LoRA at 512 adapters, arXiv 2605.14217: the 70B on 4 H100s."""
DEVICES = {"Llama 3.1 70B": 4}


def lora_bytes(shape: Shape, targets: tuple[str, ...] = LINEAR, *, rank: int = LORA_RANK, width: int = 2) -> int:
    """Of one adapter's A and B, at `width` bytes a number."""
    sizes = shape.projections()
    return shape.layers * width * rank * sum(sum(sizes[name]) for name in targets)


def lora_calls(shape: Shape, targets: tuple[str, ...] = LINEAR, *, stacked: bool = True) -> int:
    """Calls of vLLM's LoRAs in a step: to shrink and to expand, for each product that a block makes.

    Args:
        shape: of the base.
        targets: projections that have one.
        stacked: whether q, k, v and gate, up are one call each, as on a GPU; on a CPU every one has its own.
    """
    products = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 2, "gate_proj": 3, "up_proj": 3, "down_proj": 4}
    touched = {products[name] for name in targets}
    if stacked:
        return 2 * shape.layers * len(touched)
    return 2 * shape.layers * sum(1 for product in products.values() if product in touched)


@dataclass(frozen=True)
class Speed:
    """Of a device: bytes and operations a second."""

    bytes: float
    operations: float


PASSES = 3
"""vLLM's CPU kernels copy A and B before they multiply: read, written, read again. On a GPU they are read once."""
H100 = Speed(3.35e12, 989e12)
"""NVIDIA H100 SXM, by its data sheet: HBM3, and 16 bits without sparsity."""


@dataclass(frozen=True)
class Fit:
    """What was fitted to the steps measured here.

    Attributes:
        speed: of this machine.
        efficiency: how fast adapters' bytes are moved, over the bandwidth.
        call: bytes that could be read while a LoRA's call begins.
    """

    speed: Speed
    efficiency: float
    call: float


def fit(shape: Shape, rows: int, *, alone: float, base: float, ratios: Mapping[str, float], context: float) -> Fit:
    """Four unknowns of four measured steps, in float32 on a CPU.

    Args:
        shape: of the base that was measured.
        rows: requests in a step, each of which reads an adapter of its own: so vLLM's CPU kernels do.
        alone: seconds of the base's step of one request.
        base: seconds of the base's step of `rows`.
        ratios: kind → its step over the base's.
        context: tokens of a request, on average.
    """
    speed = Speed(_bytes(shape, 1, context, 4) / alone, _operations(shape, rows) / base)
    wide, narrow = (PASSES * rows * lora_bytes(shape, _read(kind), width=4) for kind in ("lora", "lora_qv"))
    much, few = (lora_calls(shape, TARGETS[kind], stacked=False) for kind in ("lora", "lora_qv"))
    over, under = ((ratios[kind] - 1) * base * speed.bytes for kind in ("lora", "lora_qv"))
    slowness = (over * few - under * much) / (wide * few - narrow * much)
    return Fit(speed, 1 / slowness, (over - slowness * wide) / much)


def _read(kind: str) -> tuple[str, ...]:
    """Projections whose A and B vLLM reads: q, k and v are one product, and k's zeros are read with them."""
    return LINEAR if kind == "lora" else (*TARGETS[kind], "k_proj")


def _bytes(shape: Shape, rows: int, context: float, width: int) -> float:
    return shape.parameters * width + rows * context * shape.kv_bytes(width)


def _operations(shape: Shape, rows: float) -> float:
    return 2.0 * rows * shape.parameters


def simulate(name: str, fitted: Fit, *, adapters: int, rank: int, tokens: int) -> tuple[float, float]:
    """A LoRA's time over ReFT's on H100s in 16 bits: of one decoding step, and of whole requests.

    Every request has its own adapter. Half of a LoRA is split over the devices, the other half is read by each, as
    vLLM does by default. A prompt takes its operations; what adapters add to prompts is left out, of both.

    Args:
        name: of `BASES`.
        fitted: to what was measured.
        adapters: in a step, as many as requests.
        rank: of the LoRAs, on all projections.
        tokens: of every prompt, and of every answer.
    """
    shape, devices = BASES[name], DEVICES.get(name, 1)
    read = _bytes(shape, adapters, 1.5 * tokens, 2) / devices / H100.bytes
    step = max(read, _operations(shape, adapters) / devices / H100.operations)
    share = (1 + 1 / devices) / 2
    own = adapters * lora_bytes(shape, rank=rank) * share / fitted.efficiency + lora_calls(shape) * fitted.call
    more = own / H100.bytes
    prompts = _operations(shape, adapters * tokens) / devices / H100.operations
    return 1 + more / step, 1 + tokens * more / (prompts + tokens * step)
