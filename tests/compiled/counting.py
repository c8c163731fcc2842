"""Models of two blocks, the count of graphs, and batches in which lengths, padding and labels differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from contract.tiny import reft_model, token_ids

__all__ = ["CompileCounter", "base", "batch", "counting_backend", "fresh_compiler", "labelled", "reft"]

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def base(name: str) -> hf.PreTrainedModel:
    """A base model with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES)).eval()
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=8, **_SIZES)).eval()


def reft(name: str, **fields: Any) -> PeftModel:
    """The same with one large random edit per site."""
    return reft_model(name, base=base(name), **fields)


@contextmanager
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


def batch(rows: int, length: int, *, left: int = 0, right: int = 0) -> dict[str, Tensor]:
    """Ids and a mask `[rows, length]`; the first row is padded by so many tokens."""
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, :left] = 0
    mask[0, length - right :] = 0
    return {"input_ids": token_ids(rows, length) * mask, "attention_mask": mask}


def labelled(given: Mapping[str, Tensor], prompt: int) -> dict[str, Any]:
    """The batch with labels on every real token after the first `prompt` columns."""
    columns = torch.arange(given["input_ids"].shape[1])
    supervised = (columns >= prompt) & given["attention_mask"].bool()
    return {**given, "labels": torch.where(supervised, given["input_ids"], -100)}


def counting_backend() -> tuple[Callable[..., Any], list[int]]:
    """A backend for a `CompileConfig`, which is copied, and a list that grows with every graph."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return backend, graphs
