"""Tiny models, made from their configs: three blocks of 32 dimensions, large random weights, no dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from peft import PeftModel, get_peft_model

from peft_reft import ReftConfig

BLOCKS = 3
HIDDEN = 32
VOCABULARY = 64
SPECIAL = 4
"""Ids below this are padding, start, end and mask; random inputs stay above."""

_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_LEARNED = {**_COMMON, "max_position_embeddings": 128}
_MASKED = {**_LEARNED, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GPT2 = {
    "n_embd": HIDDEN,
    "n_layer": BLOCKS,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.3,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_STATE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "initializer_range": 0.3,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_OPT = {
    "hidden_size": HIDDEN,
    "ffn_dim": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "word_embed_proj_dim": HIDDEN,
    "max_position_embeddings": 128,
    "init_std": 0.3,
    "dropout": 0.0,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "init_std": 0.3,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 0,
}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": BLOCKS,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": None,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Architecture:
    """One model class: how it is made, where its blocks are and what reads the last block's output.

    Attributes:
        make: returns the model.
        blocks: role → dotted name of the list of blocks.
        after: role → dotted name of the module that is called with the last block's output, where there is one.
        task_type: PEFT's name of the task, None for a plain `PeftModel`.
        packs: whether several sequences may stand in one row, told by `position_ids`.
    """

    name: str
    make: Callable[[], hf.PreTrainedModel]
    blocks: dict[str, str]
    after: dict[str, str]
    task_type: str | None = "CAUSAL_LM"
    packs: bool = True

    def __str__(self) -> str:
        return self.name


def _only(blocks: str, after: str) -> dict[str, dict[str, str]]:
    return {"blocks": {"only": blocks}, "after": {"only": after}}


_LLAMA_PATHS = _only("model.layers", "model.norm")

ARCHITECTURES = (
    Architecture("llama", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED)), **_LLAMA_PATHS),
    Architecture("qwen3", lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=8, **_GROUPED)), **_LLAMA_PATHS),
    Architecture(
        "mistral", lambda: hf.MistralForCausalLM(hf.MistralConfig(sliding_window=8, **_GROUPED)), **_LLAMA_PATHS
    ),
    Architecture(
        "gemma2",
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(head_dim=8, sliding_window=8, **_GROUPED)),
        **_LLAMA_PATHS,
    ),
    Architecture(
        "gpt2", lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2)), **_only("transformer.h", "transformer.ln_f")
    ),
    Architecture(
        "gpt_neox",
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_LEARNED)),
        **_only("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    ),
    Architecture(
        "opt",
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**_OPT)),
        **_only("model.decoder.layers", "model.decoder.final_layer_norm"),
        packs=False,
    ),
    Architecture(
        "phi", lambda: hf.PhiForCausalLM(hf.PhiConfig(**_LEARNED)), **_only("model.layers", "model.final_layernorm")
    ),
    Architecture(
        "mamba",
        lambda: hf.MambaForCausalLM(hf.MambaConfig(state_size=8, **_STATE)),
        **_only("backbone.layers", "backbone.norm_f"),
        packs=False,
    ),
    Architecture(
        "bert",
        lambda: hf.BertForMaskedLM(hf.BertConfig(**_MASKED)),
        **_only("bert.encoder.layer", "cls.predictions.transform.dense"),
        task_type=None,
        packs=False,
    ),
    Architecture(
        "roberta",
        lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**_MASKED)),
        **_only("roberta.encoder.layer", "lm_head.dense"),
        task_type=None,
        packs=False,
    ),
    Architecture(
        "modernbert",
        lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(cls_token_id=2, sep_token_id=3, **_LEARNED)),
        **_only("model.layers", "model.final_norm"),
        task_type=None,
        packs=False,
    ),
    Architecture(
        "t5",
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)),
        {"encoder": "encoder.block", "decoder": "decoder.block"},
        {"encoder": "encoder.final_layer_norm", "decoder": "decoder.final_layer_norm"},
        task_type="SEQ_2_SEQ_LM",
        packs=False,
    ),
    Architecture(
        "bart",
        lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_BART)),
        {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
        {},
        task_type="SEQ_2_SEQ_LM",
        packs=False,
    ),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
CAUSAL = tuple(architecture for architecture in ARCHITECTURES if architecture.task_type == "CAUSAL_LM")
ENCODER_DECODER = tuple(architecture for architecture in ARCHITECTURES if architecture.task_type == "SEQ_2_SEQ_LM")
BIDIRECTIONAL = tuple(architecture for architecture in ARCHITECTURES if architecture.task_type is None)


def base_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """A base model with random weights, in eval mode; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BY_NAME[name].make()
    return model.to(dtype).eval()


def reft_model(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    base: hf.PreTrainedModel | None = None,
    **config: Any,
) -> PeftModel:
    """A model with one large random edit per site, in eval mode."""
    base = base_model(name, seed=seed, dtype=dtype) if base is None else base
    config = {"task_type": BY_NAME[name].task_type, "init_weights": False, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        return get_peft_model(base, ReftConfig(**config)).eval()


def token_ids(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Random ids `[batch, length]` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SPECIAL, VOCABULARY, (batch, length), generator=generator)
