"""Makes any config of transformers tiny by rules on the names of its fields, towers inside it included.

One table of rules for all architectures: what says a width becomes one small width, so that parts that must agree do.
Where a model cannot be made from that, `PROFILES` are tried in turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from transformers import PreTrainedConfig

from .hints import HINTS, OPEN

__all__ = ["PROFILES", "VOCABULARY", "Profile", "shrunk"]

VOCABULARY = 160
_FREE_IDS = 110  # ids of special tokens that a tiny vocabulary lacks come behind this one


@dataclass(frozen=True)
class Profile:
    """Sizes of a tiny model; `sections`: rotary embeddings of rows and columns, where defaults leave them out."""

    hidden: int = 64
    heads: int = 4
    key_heads: int = 2
    layers: int = 2
    attention: str | None = None
    sections: tuple[int, ...] | None = None


PROFILES = (
    Profile(),
    Profile(key_heads=4),
    Profile(layers=4),
    Profile(attention="eager"),
    Profile(sections=(4, 2, 2)),
    Profile(sections=(2, 1, 1)),
    Profile(hidden=128, heads=2),
    Profile(layers=6, key_heads=4, attention="eager"),
)

_KEPT = re.compile(
    r"_token_id|_token_index|_index$|^(num|n)_(labels|channels|langs|speakers|codebooks)|_idx$|seed|pretraining_tp"
)
_LAYERS = re.compile(
    r"^(num_(hidden_|decoder_|encoder_|text_|blocks_)?layers?|n_layers?|(en|de)coder_layers|depth|depth_|layers|"
    r"num_blocks|resampler_depth|\w+_(en|de)coder_layers|(en|de)coder_num_hidden_layers|num_h_layers|num_l_layers|"
    r"\w+_num_hidden_layers)$"
)
_HIDDEN = re.compile(
    r"^(hidden_sizes?|d_model|n_embd|dim|embed_dim|hidden_dim|embedding_size|emb_dim|embedding_dim|output_dim|"
    r"word_embed_proj_dim|projection_dim|\w+_hidden_size|\w*hidden_size_\w+|d_embed|decoder_hidden_dim|input_size|"
    r"attention_hidden_size|d_inner|ple_embed_dim|lru_width|state_dim|(key_)?query_dim|sentence_embed_dim|"
    r"adapter_out_dim|vision_output_dim|\w+_embed_dim|bottleneck_size|true_hidden_size|conv_dim|model_dim)$"
)
_HEADS = re.compile(
    r"^(num_(attention_)?heads|n_heads?|(en|de)coder_attention_heads|attention_heads|\w+_attention_heads|num_head|"
    r"index_n_heads|\w+_n_heads|linear_num_(key|value)_heads|linear_num_heads|heads_per_ngram)$"
)
_KEY_HEADS = re.compile(r"^(\w*num_key_value_heads|num_kv_heads|n_head_kv|n_kv_heads|\w+_num_key_value_heads)$")
_HEAD_DIM = re.compile(
    r"^(\w*head_dim|d_kv|dim_head|d_head|kv_channels|head_size|qk_(rope|nope)_head_dim|rotary_dim|key_length)$"
)
_INNER = re.compile(r"^(\w*intermediate_size\w*|\w*ffn_dim|d_ff|n_inner|mlp_dim|ffn_hidden_size|dim_feedforward)$")
_EXPERTS = re.compile(r"^(num_(local_)?experts|n_routed_experts|moe_num_experts|num_experts|n_experts)$")
_CHOSEN = re.compile(r"^(num_experts_per_tok(en)?|moe_topk|moe_k|num_experts_per_token|top_k|topk)$")
_LENGTH = re.compile(
    r"^(max_position_embeddings|n_positions|max_\w*positions?|max_seq_len|seq_length|context_length)$"
)


def shrunk(config_class: type[PreTrainedConfig], profile: Profile = PROFILES[0]) -> PreTrainedConfig:
    """A tiny config of a class, from its defaults.

    Raises:
        Exception: whatever the config's own checks say of the sizes.
    """
    return _shrunk(config_class(), profile, {})


def _shrunk(config: PreTrainedConfig, profile: Profile, ids: dict[int, int]) -> PreTrainedConfig:
    given: dict[str, Any] = {}
    depth = _depth(config)
    chosen = _chosen_layers(config, depth, profile)
    for field in fields(config) if is_dataclass(config) else ():
        if not field.init:
            continue
        declared = None if field.default is MISSING else field.default
        value = _value(config, field.name, declared)
        if value is None and field.name in OPEN:
            given[field.name] = OPEN[field.name]
        elif profile.sections and field.name == "rope_parameters" and isinstance(value, Mapping):
            given[field.name] = {**value, "mrope_section": list(profile.sections)}
        elif isinstance(value, PreTrainedConfig):
            given[field.name] = _shrunk(value, profile, ids)
        elif isinstance(value, (list, tuple)) and depth and len(value) == depth:
            given[field.name] = type(value)(value[layer] for layer in chosen)
        elif declared is None and not isinstance(value, (list, tuple, Mapping)):
            continue  # follows from other fields
        elif (small := _small(field.name, value, config, profile, len(chosen), ids)) is not None:
            given[field.name] = small
    return type(config)(**{**given, **HINTS.get(config.model_type, {})})


def _value(config: PreTrainedConfig, name: str, declared: Any) -> Any:
    """A field's value; what a class keeps by layer cannot be read as one and is as declared."""
    try:
        return getattr(config, name, declared)
    except Exception:
        return declared


def _depth(config: PreTrainedConfig) -> int | None:
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "depth")
    return next((value for name in names if isinstance(value := _value(config, name, None), int)), None)


def _chosen_layers(config: PreTrainedConfig, depth: int | None, profile: Profile) -> list[int]:
    """Layers that are kept: the first of each kind, at least as many as the profile says."""
    if not depth:
        return list(range(profile.layers))
    per_layer = [
        value
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == depth and name.endswith(("_types", "_type", "_pattern"))
    ]
    kinds = list(zip(*per_layer, strict=True)) if per_layer else [()] * depth
    first = [place for place, kind in enumerate(kinds) if kinds.index(kind) == place]
    rest = [place for place in range(depth) if place not in first]
    wanted = min(max(len(first), profile.layers), depth)
    return sorted((first + rest)[:wanted])


def _small(name: str, value: Any, config: PreTrainedConfig, profile: Profile, layers: int, ids: dict[int, int]) -> Any:
    """The tiny value of a field; None to leave it alone."""
    if isinstance(value, Mapping):
        return _small_rope(value, profile)
    if isinstance(value, float) and re.search(r"drop", name):
        return 0.0
    if name in ("initializer_range", "init_std", "initializer_factor") and isinstance(value, float):
        return 0.1 if name != "initializer_factor" else value
    if isinstance(value, (list, tuple)):
        return _small_list(name, value, profile)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if re.search(r"(_token_id|_token_index|_id)$", name):
        return value if value < _FREE_IDS else ids.setdefault(value, _FREE_IDS + len(ids) % (VOCABULARY - _FREE_IDS))
    return _small_number(name, value, profile, layers)


def _small_number(name: str, value: int, profile: Profile, layers: int) -> int | None:
    if _KEPT.search(name) or value <= 0:
        return None
    head = profile.hidden // profile.heads
    if name.startswith("vocab_size") or name.endswith(("vocab_size", "_vocab")):
        return VOCABULARY
    if _LAYERS.match(name):
        return layers
    if _KEY_HEADS.match(name):
        return min(value, profile.key_heads)
    if _HEADS.match(name):
        return min(value, profile.heads)
    if _HEAD_DIM.match(name):
        return {"qk_head_dim": head * 2}.get(name, min(value, head))
    if _HIDDEN.match(name):
        return profile.hidden if value > profile.hidden or name in ("hidden_size", "d_model") else None
    if _INNER.match(name):
        return min(value, profile.hidden * 2)
    return _SPECIAL.get(name, lambda value, profile: _by_kind(name, value))(value, profile)


def _by_kind(name: str, value: int) -> int | None:
    if _EXPERTS.match(name):
        return min(value, 4)
    if _CHOSEN.match(name):
        return min(value, 2)
    if _LENGTH.match(name):
        return min(value, 128)
    return None


_SPECIAL: dict[str, Any] = {
    "image_size": lambda value, profile: 56 if value % 14 == 0 and value % 16 else 64,
    "q_lora_rank": lambda value, profile: 32,
    "kv_lora_rank": lambda value, profile: 32,
    "o_lora_rank": lambda value, profile: 32,
    "n_group": lambda value, profile: min(value, 2),
    "topk_group": lambda value, profile: 1,
    "num_expert_group": lambda value, profile: min(value, 2),
    "sliding_window": lambda value, profile: 8,
    "sliding_window_size": lambda value, profile: 8,
    "first_k_dense_replace": lambda value, profile: 1,
    "num_dense_layers": lambda value, profile: 1,
    "attn_layer_period": lambda value, profile: 2,
    "attn_layer_offset": lambda value, profile: 1,
    "expert_layer_period": lambda value, profile: 2,
    "expert_layer_offset": lambda value, profile: 1,
    "full_attention_interval": lambda value, profile: 2,
    "cross_attention_frequency": lambda value, profile: 1,
    "encoder_sparse_step": lambda value, profile: 2,
    "decoder_sparse_step": lambda value, profile: min(value, 2),
    "num_kv_shared_layers": lambda value, profile: 0,
    "block_size": lambda value, profile: min(value, 8),
    "num_position_embeddings": lambda value, profile: 64,
    "ngram_vocab_size_base": lambda value, profile: 200,
    "num_buckets": lambda value, profile: 4,
    "num_latents": lambda value, profile: 16,
    "d_latents": lambda value, profile: profile.hidden,
    "codebook_size": lambda value, profile: min(value, 64),
    "query_pre_attn_scalar": lambda value, profile: profile.hidden // profile.heads,
}
"""Field → small value of the tiny model, where a name says no width and no count of a kind."""


def _small_rope(value: Mapping[str, Any], profile: Profile) -> Any:
    found = dict(value)
    for key, part in value.items():
        if isinstance(part, Mapping):
            found[key] = _small_rope(part, profile) or part
        elif key == "mrope_section":
            half = profile.hidden // profile.heads // 2
            rest = half // len(part)
            found[key] = [half - rest * (len(part) - 1), *[rest] * (len(part) - 1)]
    return found if found != dict(value) else None


def _small_list(name: str, value: Any, profile: Profile) -> Any:
    """Widths, depths and heads of a tower's stages; indices of its layers."""
    if not value or any(isinstance(one, bool) or not isinstance(one, int) for one in value):
        return None
    if re.search(r"hidden_sizes|embed_dims?$|embed_dim$|conv_dim", name):
        return type(value)(min(one, profile.hidden) for one in value)
    if re.search(r"depths?$", name):
        return type(value)(1 for _ in value)
    if re.search(r"deepstack|feature_layers?$|layer_indexes|layers_indexes|fullatt", name):
        return type(value)(place % profile.layers for place in range(min(len(value), profile.layers)))
    return None
