"""Which engines can edit: what of vLLM's own settings would run an edit at another place, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft_reft.hub_format.errors import ConfigError

__all__ = ["check_engine"]


def check_engine(config: Any) -> None:
    """Refuse settings under which edits would be wrong, or under which nobody has looked.

    Args:
        config: a `VllmConfig`, complete.

    Raises:
        ConfigError: names the setting.
    """
    for name, value, rule in _refused(config):
        raise ConfigError(
            f"{name}={value!r} with ReFT adapters", code="vllm.engine", value=value, rule=rule, fix=f"leave {name} out"
        )


def _refused(config: Any) -> Iterator[tuple[str, Any, str]]:
    parallel, model = config.parallel_config, config.model_config
    if config.use_v2_model_runner:
        yield "VLLM_USE_V2_MODEL_RUNNER", True, "edits are known to the first model runner; set it to 0"
    for name in ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size"):
        if (value := getattr(parallel, name, 1)) > 1:
            yield (
                name,
                value,
                "a process would see a part of the layers or of a prompt",
            )
    if parallel.data_parallel_size > 1:
        yield "data_parallel_size", parallel.data_parallel_size, "each engine would need the adapters loaded by itself"
    if parallel.enable_dbo:
        yield "enable_dbo", True, "a forward would run in two halves, and rows are counted in the whole"
    if config.kv_transfer_config is not None:
        yield "kv_transfer_config", "…", "blocks from elsewhere do not say with which edits they were computed"
    if model.runner_type != "generate" or model.is_encoder_decoder:
        yield "runner", model.runner_type, "a request's prompt is that of a decoder that generates"
    passes = config.compilation_config.pass_config
    if getattr(passes, "enable_sp", False):
        yield "enable_sp", True, "a process would see a part of the tokens"
    if config.cache_config.kv_sharing_fast_prefill:
        yield "kv_sharing_fast_prefill", True, "later layers would skip the prompt's tokens"
