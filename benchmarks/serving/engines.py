"""The engines: vLLM with one kind of adapter, all loaded before anything is measured, asked step by step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .adapters import LORA_RANK, REFT_RANK, TARGETS, folder_of

__all__ = ["BATCH", "SETTINGS", "SLOTS", "Engine", "variables"]

BATCH = 32
"""Requests in a step at most."""
SLOTS = 32
"""vLLM's `max_loras` and our `max_refts`: adapters on the device at once, and so in a step."""
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": BATCH,
    "max_num_batched_tokens": 512,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
    "seed": 0,
}


def variables() -> dict[str, str]:
    """Of a process that holds an engine on the CPU: all of it in that process, on one thread."""
    told = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    return {**told, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


class Engine:
    """One engine.

    Args:
        kind: of its adapters, see `adapters.MEANING`.
        base: folder of the base.
        adapters: folder of the adapters' folders.
        count: how many names to load.
        compiled: whether the model is compiled; vLLM compiles none with LoRAs on a CPU.
    """

    def __init__(self, kind: str, base: str, adapters: Path, count: int, *, compiled: bool) -> None:
        from vllm import LLM

        from peft_reft.integrations.vllm import ReftLLM

        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        settings = {**SETTINGS, "enforce_eager": not compiled}
        self.kind = kind
        self.requests: Callable[[int], dict[str, Any]] = lambda number: {}
        if kind == "ours":
            self.llm: Any = ReftLLM(base, max_refts=SLOTS, max_reft_rank=REFT_RANK, **settings)
            for number in range(count):
                self.llm.load_reft_adapter(f"a{number}", str(folder_of(adapters, kind, number)))
        elif kind == "base":
            self.llm = LLM(base, **settings)
        else:
            loras = {"max_loras": SLOTS, "max_cpu_loras": max(count, SLOTS), "max_lora_rank": LORA_RANK}
            targets = list(TARGETS[kind])  # else vLLM multiplies by zeros at every other projection
            self.llm = LLM(base, enable_lora=True, lora_target_modules=targets, **loras, **settings)
            self._load_loras(adapters, count)
        self.core = self.llm.llm_engine

    def add(self, name: str, prompt: tuple[int, ...], adapter: int, new: int) -> None:
        """Send a request."""
        from vllm import SamplingParams

        extra = {"reft": f"a{adapter}"} if self.kind == "ours" else None
        chosen = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, extra_args=extra)
        self.core.add_request(name, {"prompt_token_ids": list(prompt)}, chosen, **self.requests(adapter))

    def _load_loras(self, adapters: Path, count: int) -> None:
        from vllm.lora.request import LoRARequest

        made = [LoRARequest(f"a{n}", n + 1, str(folder_of(adapters, self.kind, n))) for n in range(count)]
        for request in made:
            self.llm.llm_engine.add_lora(request)
        self.requests = lambda number: {"lora_request": made[number]}
