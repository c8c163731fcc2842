"""Tiny random models under the names that PEFT's tests ask for, in a Hugging Face cache of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from safetensors.torch import save_file

__all__ = ["MODELS", "make_cache"]

COMMIT = "0" * 40
SMALL = {"vocab_size": 1200, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 4, "initializer_range": 0.05}
"""PEFT's tests feed the tokens 1 and 2: padding must be another one."""
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**LAYERS, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 4,
}
OPT = {**LAYERS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPTConfig", OPT),
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", "OPTConfig", OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**GROUPED, "head_dim": 8, "sliding_window": 16},
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration",
        "BartConfig",
        BART,
    ),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", "BertConfig", LAYERS),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", "RobertaConfig", LAYERS),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", "DebertaConfig", LAYERS),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", "DebertaV2Config", LAYERS),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "BertForSequenceClassification",
        "BertConfig",
        LAYERS,
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        LAYERS,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification",
        "LlamaConfig",
        GROUPED,
    ),
}
"""Name → (model class, config class, fields)."""

LORA = ("peft-internal-testing/tiny-opt-lora-revision", "test")
"""An adapter, and its revision, that the tests of configs read."""


def make_cache(home: Path, names: Iterable[str] = tuple(MODELS)) -> None:
    """Write stand-ins into `home`, laid out as a Hugging Face cache; what is there is made anew."""
    shutil.rmtree(home, ignore_errors=True)
    adapter = _snapshot(home, *LORA)
    LoraConfig(target_modules=["q_proj"]).save_pretrained(str(adapter))
    save_file({"base_model.model.q_proj.lora_A.weight": torch.zeros(8, 32)}, adapter / "adapter_model.safetensors")
    for name in names:
        model, config, fields = MODELS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = getattr(transformers, model)(getattr(transformers, config)(**{**SMALL, **fields}))
        made.save_pretrained(_snapshot(home, name, "main"))


def _snapshot(home: Path, name: str, revision: str) -> Path:
    """A new folder for the files of a repository's revision."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot
