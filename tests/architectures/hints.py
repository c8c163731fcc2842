"""What no rule can guess of single model types: fields that their defaults leave open, or that must go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HINTS", "OPEN"]

OPEN: Mapping[str, Any] = {
    "vocab_size": 160,
    "head_dim": 16,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "mask_token_id": 4,
}
"""Field → value where a config class has the field and its defaults give None."""

HINTS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "emu3": {"vocabulary_map": {"<image>": 3}},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    },
    "esm": {"token_dropout": False, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lilt": {"hidden_size": 96},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 3, "vision_end_token_id": 4},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3, "vision_end_token_id": 4},
    "reformer": {"axial_pos_embds": False, "is_decoder": False, "hash_seed": 0},
    "step3p5": {"sliding_window": 8},
    "xlnet": {"n_layer": 2},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "xmod": {"default_language": "en_XX"},
}
"""Model type → fields, after all rules."""
