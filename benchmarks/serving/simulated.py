"""The simulation as a part of the result: what was fitted, a step's bytes and calls, and the published figures."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import table

from .adapters import LORA_RANK
from .engines import BATCH
from .rounds import ROOM
from .simulation import BASES, DEVICES, H100, PASSES, PUBLISHED, Fit, Shape, fit, lora_bytes, lora_calls, simulate

__all__ = ["simulated"]

MEASURED = "SmolLM2 135M"
RANKS = (8, 16, 32, 64)
ADAPTERS, TOKENS = 512, 256
LARGE = "Llama 3.1 70B"


def simulated(told: dict[str, Any]) -> str:
    """Markdown; empty where the steps that it is fitted to were not measured on that base."""
    steps = told["decode"].get("decode", {})
    known = told["base"].startswith("SmolLM2-135M") and told["alone"] is not None
    if not known or not {"lora", "lora_qv"} <= steps.keys():
        return ""
    low, high = told["load"]["prompt"]
    fitted = fit(
        BASES[MEASURED],
        BATCH,
        alone=told["alone"],
        base=steps["lora"]["floor_seconds"],
        ratios={kind: one["median"] for kind, one in steps.items()},
        context=(low + high + ROOM) / 2,
    )
    rows: list[tuple[object, ...]] = []
    for name, published in PUBLISHED.items():
        each = [simulate(name, fitted, adapters=ADAPTERS, rank=rank, tokens=TOKENS) for rank in RANKS]
        shown = (f"{step:.2f}, {whole:.2f}" for step, whole in each)
        rows.append((name, DEVICES.get(name, 1), *shown, str(published)))
    head = ("base", "H100s", *(f"LoRA r {rank}: step, request" for rank in RANKS), "published, request")
    return "\n\n".join(
        [
            "## Simulation: larger bases",
            _model(fitted, told["alone"]),
            _step(BASES[LARGE], DEVICES[LARGE]),
            f"LoRA over ReFT at {ADAPTERS} requests and adapters, {TOKENS} tokens of prompt and of answer each: a "
            "decoding step, and a whole request, whose prompt costs both the same:",
            table(head, rows),
            "Published: throughput of prefill-only ReFT over multi-LoRA at 512 adapters, arXiv 2605.14217. Its "
            "ranks, lengths and batches are not known here; the table says for several ranks what bytes and calls "
            "alone give.",
        ]
    )


def _model(fitted: Fit, alone: float) -> str:
    """What is computed, what was fitted, what is assumed."""
    speed = fitted.speed
    return (
        "Nothing here was run but what is fitted. A step of the base takes the longer of reading its weights, keys "
        "and values, and of multiplying. LoRAs add the reading of their A and B and their calls; a ReFT of the prompt "
        f"adds neither, as was measured above. Fitted: this machine reads {speed.bytes / 1e9:.1f} GB/s (the base's "
        f"step of one request, {alone * 1000:.0f} ms) and computes {speed.operations / 1e9:.0f} GFLOP/s (its step of "
        f"{BATCH}). vLLM's CPU kernels move a LoRA's bytes {PASSES} times (they copy A and B before they multiply); "
        f"of the two LoRAs' steps follows that they do so at {fitted.efficiency:.2f} of that bandwidth, and that a "
        f"call takes as long as {fitted.call / 1e3:.0f} kB. Assumed: these two hold on an H100 as well, whose "
        f"bandwidth and speed are its data sheet's ({H100.bytes / 1e12} TB/s, {H100.operations / 1e12:.0f} TFLOP/s), "
        "and whose kernels read A and B once; 16 bits; every request has an adapter of its own; LoRAs on all "
        "projections, half of each split over the devices; q, k, v and gate, up are one call each; no device waits "
        "for another."
    )


def _step(shape: Shape, devices: int) -> str:
    """Bytes and calls of one step on each device."""
    adapter = lora_bytes(shape, rank=LORA_RANK) * (1 + 1 / devices) / 2
    rows: list[tuple[object, ...]] = [
        (
            count,
            f"{shape.parameters * 2 / devices / 1e9:.1f}",
            f"{count * 1.5 * TOKENS * shape.kv_bytes(2) / devices / 1e9:.2f}",
            f"{count * adapter / 1e9:.2f}",
            "0",
            lora_calls(shape),
            "0",
        )
        for count in (1, 8, 64, 512)
    ]
    head = ("requests, adapters", "weights, GB", "keys and values, GB", f"LoRA r {LORA_RANK}, GB", "ReFT, GB")
    return f"{LARGE}, each of {devices} devices:\n\n" + table((*head, "calls of LoRA", "of ReFT"), rows)
