"""A tiny base in the place of the studies' own: a Llama of two blocks with the wide model's kind of tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.study.base import Base
from benchmarks.wide.model import END, answer_prompt, make_tokenizer

__all__ = ["tiny_base"]


def tiny_base() -> Base:
    """Random weights, the same every time; text of eight blocks."""
    tokenizer = make_tokenizer(["Date: 3 March 1990 camelCase rename_this style the big red box please"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        eos_token_id=3,
    )

    def make(dtype: torch.dtype) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(config).to(dtype).eval()

    text = torch.randint(4, len(tokenizer), (8, 24), generator=torch.Generator().manual_seed(0))
    return Base("wide", "tiny", make, tokenizer, answer_prompt, END, text)
