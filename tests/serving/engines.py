"""Engines in this process, started and ended, and what is asked of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Asked = Sequence[tuple[str | None, Sequence[int]]]
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "block_size": 32,
    "disable_log_stats": False,
    "enable_prefix_caching": True,
}
"""On the CPU a block has 32 tokens at least, so prompts of 40 and more share blocks."""


@contextmanager
def engine(base: Path, adapters: Mapping[str, Path], *, made: Any = None, **settings: Any) -> Iterator[Any]:
    """A `ReftLLM` in this process; of another class with `made`, which takes no adapters."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from peft_reft.integrations.vllm import ReftLLM

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        own = {"reft_adapters": {name: str(path) for name, path in adapters.items()}} if made is None else {}
        llm = (made or ReftLLM)(str(base), **own, **{**SETTINGS, **settings})
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()


ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def ask(llm: Any, asked: Asked, steps: int, **how: Any) -> list[list[int]]:
    """The greedy tokens of every request, all sent at once."""
    return [list(output.outputs[0].token_ids) for output in outputs(llm, asked, steps, **how)]


def outputs(llm: Any, asked: Asked, steps: int, **how: Any) -> list[Any]:
    """vLLM's own outputs."""
    from vllm import SamplingParams

    from peft_reft.integrations.vllm import ReftRequest

    settings = {"temperature": 0, "max_tokens": steps, "ignore_eos": True, **how}
    found: list[Any] = llm.generate(
        [{"prompt_token_ids": list(prompt)} for _, prompt in asked],
        SamplingParams(**settings),
        reft_request=[None if name is None else ReftRequest(name) for name, _ in asked],
        use_tqdm=False,
    )
    return found


def counted(llm: Any, name: str) -> float:
    """One of vLLM's own counters."""
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)
