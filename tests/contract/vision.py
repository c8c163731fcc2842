"""Tiny models with image inputs, made from their configs: a vision tower of two blocks, a text model of three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from .tiny import HIDDEN, VOCABULARY

IMAGE, START, END = 5, 6, 7
PROMPT = 12
_TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
_QWEN_VISION = {
    "depth": 2,
    "embed_dim": 16,
    "num_heads": 2,
    "hidden_size": HIDDEN,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "mlp_ratio": 2,
}


def _llava() -> hf.PreTrainedModel:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_VISION), text_config=hf.LlamaConfig(**_TEXT), image_token_index=IMAGE
    )
    return hf.LlavaForConditionalGeneration(config)


def _gemma3() -> hf.PreTrainedModel:
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**_VISION),
        text_config=hf.Gemma3TextConfig(**{**_TEXT, "head_dim": 8}),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _qwen2_vl() -> hf.PreTrainedModel:
    config = hf.Qwen2VLConfig(
        text_config={**_TEXT, **_SECTIONS},
        vision_config=_QWEN_VISION,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        video_token_id=8,
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def _idefics3() -> hf.PreTrainedModel:
    config = hf.Idefics3Config(
        vision_config=_VISION,
        text_config=hf.LlamaConfig(**_TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return hf.Idefics3ForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[[], hf.PreTrainedModel], str, int]] = {
    "llava": (_llava, "model.language_model.layers", 4),
    "gemma3": (_gemma3, "model.language_model.layers", 4),
    "qwen2_vl": (_qwen2_vl, "model.language_model.layers", 4),
    "idefics3": (_idefics3, "model.text_model.layers", 1),
}
"""Name → how it is made, the text model's blocks, tokens of one image."""


def vision_model(name: str) -> hf.PreTrainedModel:
    """Random weights, in eval mode; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name][0]().eval()


def image_batch(name: str, *, padding: int = 0) -> dict[str, Tensor]:
    """Two prompts `[2, 12]` with an image each, from the third token on; the second has padding on its left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(9, VOCABULARY, (2, PROMPT), generator=generator)
    ids[:, 1], ids[:, 2 : 2 + MODELS[name][2]], ids[:, 6] = START, IMAGE, END
    if padding:
        ids[1] = torch.cat([torch.zeros(padding, dtype=torch.long), ids[1, : PROMPT - padding]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if name == "qwen2_vl":
        batch["pixel_values"] = torch.randn(2 * 16, 3 * 2 * 4 * 4, generator=generator)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        batch["mm_token_type_ids"] = (ids == IMAGE).int()
    elif name == "idefics3":
        batch["pixel_values"] = torch.randn(2, 1, 3, 8, 8, generator=generator)
    else:
        batch["pixel_values"] = torch.randn(2, 3, 8, 8, generator=generator)
    if name == "gemma3":
        batch["token_type_ids"] = (ids == IMAGE).long()
    return batch
