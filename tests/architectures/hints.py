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
    "esm": {"token_dropout": False, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "reformer": {"axial_pos_embds": False, "is_decoder": False},
    "step3p7": {"sliding_window": 8},
    "xlnet": {"n_layer": 2},
    "xmod": {"default_language": "en_XX"},
}
"""Model type → fields, after all rules."""
