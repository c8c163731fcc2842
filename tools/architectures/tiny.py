"""Any transformers model, tiny and random: its own config class with every size cut down by the size's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

__all__ = ["BLOCKS", "HIDDEN", "VOCABULARY", "names_of_models", "randomise", "tiny_model"]

BLOCKS, HIDDEN, VOCABULARY = 4, 32, 64
LARGEST = 12_000_000
"""Parameters that a tiny model has at most."""
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(("lru_width", "adapter_hidden_size", "projection_dim", "d_embed"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"), BLOCKS),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_blocks", "num_encoder_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "linear_num_value_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "swa_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "attention_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("swa_v_head_dim", "attention_head_size", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("rotary_dim", "index_n_heads"), 4),
    **dict.fromkeys(("qk_head_dim",), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "index_topk", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size", "dff"), 48),
    **dict.fromkeys(("shared_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "topk_groups"), 1),
    **dict.fromkeys(("num_memory_blocks",), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_source_positions"), 64),
    **dict.fromkeys(("max_target_positions", "max_sequence_length", "original_max_position_embeddings"), 64),
    "num_nextn_predict_layers": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "image_token_id": 60,
    "video_token_id": 61,
    "image_token_index": 60,
    "audio_token_id": 62,
    "boi_token_id": 58,
    "eoi_token_id": 59,
    "vision_start_token_id": 57,
    "vision_end_token_id": 56,
    "depth": 2,
    "out_hidden_size": HIDDEN,
    "use_mamba_kernels": False,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
}
_MROPE = {"rope_theta": 1e4, "rope_type": "default", "mrope_section": [1, 1, 2]}
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 2,
    },
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    "xmod": {"default_language": "en_XX"},
    "esm": {"vocab_size": 64},
    "fsmt": {"src_vocab_size": 64, "tgt_vocab_size": 64},
    "xlm": {"emb_dim": 32, "n_words": 64},
    "flaubert": {"emb_dim": 32, "n_words": 64},
    "luke": {"entity_vocab_size": 64},
    "cohere_compass_text": {"layer_types": ["full_attention"] * 4},
    "musicgen_decoder": {"audio_channels": 1},
    "step3p5": {"sliding_window": 16},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "qwen2_vl_text": {"rope_parameters": _MROPE},
    "qwen2_5_vl_text": {"rope_parameters": _MROPE},
    "qwen2_5_omni_text": {"rope_parameters": _MROPE},
    "glm4v_text": {"rope_parameters": _MROPE},
    "glm4v_moe_text": {"rope_parameters": _MROPE},
    "glm_ocr_text": {"rope_parameters": _MROPE},
    "glm46v": {},
    "paddleocr_vl_text": {"rope_parameters": _MROPE},
}
"""Model type → what its config needs beside the common sizes; a key with a dot is of a sub-config."""


def names_of_models() -> list[tuple[str, str]]:
    """(model type, class) of everything that reads text, in alphabetical order, each once."""
    found: dict[str, str] = {}
    for mapping in (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for kind, classes in mapping.items():
            for name in (classes,) if isinstance(classes, str) else classes:
                found.setdefault(name, kind)
    return sorted((kind, name) for name, kind in found.items())


def tiny_model(name: str, seed: int = 0, **fields: Any) -> nn.Module:
    """A model of a class of transformers with random weights, in evaluation mode.

    Args:
        name: of the class.
        seed: of the weights.
        fields: of the config, over the common sizes; a name with a dot is of a sub-config.
    """
    cls = getattr(transformers, name)
    config_cls = cls.config_class
    config = _shrunk(config_cls, {key: value for key, value in fields.items() if "." not in key})
    for key, value in fields.items():
        if "." in key:
            part, _, field = key.partition(".")
            setattr(getattr(config, part), field, value)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{name} has {size} parameters: some size is not cut down")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).eval()
    randomise(model, seed)
    return model


def _shrunk(config_cls: Any, given: dict[str, Any]) -> Any:
    default = config_cls()
    given = {**MORE.get(config_cls.model_type, {}), **given}
    fields = dict(_sizes(default))
    for part, sub in getattr(config_cls, "sub_configs", {}).items():
        known = getattr(default, part, None)
        kind = type(known) if known is not None else sub
        try:
            fields[part] = {k: v for k, v in _shrunk(kind, {}).to_dict().items() if k != "transformers_version"}
        except Exception:  # a part that cannot be made alone keeps its defaults
            continue
    return config_cls(**{**fields, **given})


def _sizes(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in SIZES.items():
        try:
            known = getattr(config, name, None)
        except Exception:  # differs from layer to layer
            continue
        if known is not None and not isinstance(known, (list, tuple, dict)) and name in config.to_dict():
            yield name, value
    if getattr(config, "kv_lora_rank", None) is not None:  # multi-head latent attention has no groups
        yield "num_key_value_heads", 4
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        known = getattr(config, name, None)
        mapped = getattr(config, "attribute_map", {}).get(name, name)
        if any(isinstance(getattr(type(config), each, None), property) for each in (name, mapped)):
            continue
        if isinstance(known, (list, tuple)) and known:
            kinds = list(dict.fromkeys(known))
            yield name, [kinds[i % len(kinds)] for i in range(BLOCKS)]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights large enough that every part of a block matters; norms are no identities."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2 and "norm" not in name.lower():
                parameter.copy_(noise * 0.5 / parameter.shape[-1] ** 0.5)
            elif not any(word in name for word in ("A_log", "dt_", "decay", "time_")):
                parameter.copy_((1.0 if "norm" in name.lower() and "bias" not in name else 0.0) + 0.3 * noise)
