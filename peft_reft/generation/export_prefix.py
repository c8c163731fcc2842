"""ReFT without ReFT: edits that all lie in a fixed prefix, as a stock prefix of keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import CartridgeConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from peft_reft.hub_format.errors import ConfigError
from peft_reft.lookup import reft_layers
from peft_reft.runtime.state import ModelState, state_of

from .fixed_prefix import check_alone, check_positions, full_attention
from .prompt_cache import prompt_cache

__all__ = ["ExportedPrefix", "export_prefix"]

PROBE = 5
"""Tokens behind the prefix on which both forms are compared."""
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of logits, as a part of the largest: rounding of what is computed in another order, through all layers."""


@dataclass(frozen=True)
class ExportedPrefix:
    """A prefix in PEFT's words.

    Attributes:
        config: of a CARTRIDGE adapter.
        embeddings: what PEFT saves of it, `[tokens, layers · 2 · heads · size]`.
        token_ids: that it stands for; a prompt goes on behind them and does not repeat them.
    """

    config: CartridgeConfig
    embeddings: Tensor
    token_ids: tuple[int, ...]

    @property
    def past_key_values(self) -> DynamicCache:
        """The same as transformers' cache, made anew: whoever uses it extends it."""
        return DynamicCache(self._layers())

    def _layers(self) -> tuple[Tensor, ...]:
        count, heads = len(self.token_ids), self.config.num_attention_heads
        parts = self.embeddings.view(1, count, self.config.num_layers * 2, heads, -1)
        return tuple(part.contiguous() for part in torch.split(parts.permute(2, 0, 3, 1, 4), 2))

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write the folder that `PeftModel.from_pretrained(base, folder)` loads, with a card that says how to use it.

        Raises:
            ConfigError: a file, or a folder that holds another adapter.
        """
        folder = Path(save_directory)
        if folder.is_file() or (folder / "adapter_config.json").exists():
            raise ConfigError(
                f"{folder} is a file, or holds an adapter", value=str(folder), rule="a prefix gets a folder of its own"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(str(folder))
        tensors = {"prompt_embeddings": self.embeddings.contiguous()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "README.md").write_text(_card(self), encoding="utf-8")
        return folder


def export_prefix(model: nn.Module, input_ids: Tensor) -> ExportedPrefix:
    """The edits of a fixed prefix, e.g. a system prompt, as keys and values that stock PEFT and transformers take.

    Attention is all by which later tokens see a prefix. So where every edit lies inside of it, at places counted from
    its start, the edited prefix *is* its keys and values: a CARTRIDGE adapter of PEFT's, loaded without peft_reft and
    exact for every continuation. Both forms are compared on a continuation before anything is returned.

    Args:
        model: a causal language model with ReFT adapters, the active ones of which are exported, in eval mode.
        input_ids: long `[1, seq]` or `[seq]`, the prefix, with its start token if the tokenizer adds one.

    Returns:
        The prefix; its `save_pretrained` writes the adapter, `past_key_values` is a cache for transformers.

    Raises:
        PositionError: edits beyond the prefix, or that depend on where the prompt ends (`l<n>`).
        ConfigError: no active ReFT, another adapter beside it, a model that trains, or one whose cache is no full
            attention of one shape (a sliding window, a state space).

    Example:
        >>> prefix = export_prefix(model, tokenizer(system_prompt, return_tensors="pt").input_ids)
        >>> folder = prefix.save_pretrained("prefix")
        >>> stock = PeftModel.from_pretrained(base, "prefix")
        >>> answer = stock.generate(**tokenizer(question, add_special_tokens=False, return_tensors="pt"))
    """
    reft_layers(model)  # refuses what is no module
    state = next((found for module in model.modules() if (found := state_of(module)) is not None), None)
    if state is None or not state.active_views():
        raise ConfigError("no ReFT adapter is active", rule="the edits of the active ones become the prefix")
    base = state.model
    if base.training:
        raise ConfigError(
            "the model is in training mode", rule="edits are exported as in evaluation", fix="model.eval()"
        )
    ids = input_ids[None] if isinstance(input_ids, Tensor) and input_ids.dim() == 1 else input_ids
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] != 1:
        raise ConfigError(
            f"input_ids has shape {list(getattr(ids, 'shape', []))}", value="input_ids", rule="it is [1, seq] or [seq]"
        )
    check_alone(base)
    for view in state.active_views():
        check_positions(view, ids.shape[1])
    layers = full_attention(prompt_cache(model, ids), base)
    packed = torch.stack([held[0].transpose(0, 1) for pair in layers for held in pair], 1)
    count, parts, heads, size = packed.shape
    config = CartridgeConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.__dict__.get("name_or_path") or None,
        inference_mode=True,
        num_virtual_tokens=count,
        num_frozen_tokens=0,
        num_transformer_submodules=1,
        num_layers=parts // 2,
        num_attention_heads=heads,
        token_dim=heads * size,
    )
    prefix = ExportedPrefix(config, packed.reshape(count, -1).detach().cpu(), tuple(ids[0].tolist()))
    _compare(state, ids, prefix)
    return prefix


@torch.no_grad()
def _compare(state: ModelState, ids: Tensor, prefix: ExportedPrefix) -> None:
    """Refuse a prefix whose continuation is not that of the edits."""
    base: Any = state.model
    vocabulary = base.get_input_embeddings().num_embeddings
    probe = (torch.arange(PROBE, device=ids.device)[None] * 7919 + 3) % vocabulary
    whole = torch.cat([ids, probe], 1)
    wanted = base(input_ids=whole).logits[:, ids.shape[1] :]
    known = inspect.signature(base.forward).parameters
    if "position_ids" in known:
        _check_counting(base, whole, wanted)
    cache = DynamicCache(tuple(part.to(ids.device, wanted.dtype) for part in prefix._layers()))
    given: dict[str, Any] = {"input_ids": probe, "past_key_values": cache}
    if "attention_mask" in known:
        given["attention_mask"] = torch.ones(1, ids.shape[1] + PROBE, dtype=torch.long, device=ids.device)
    with _without_edits(state):
        found = base(**given).logits
    off = _off(found, wanted)
    if not off <= TOLERANCE.get(wanted.dtype, 0.1):
        raise ConfigError(
            f"{type(base).__name__}: behind the exported prefix logits are off by {off:.1e} of the largest",
            code="export.inexact",
            value=off,
            rule="a prefix is exported where it stands for the edits exactly, but for rounding",
            fix="save the adapter itself",
        )


def _check_counting(base: Any, ids: Tensor, wanted: Tensor) -> None:
    """Refuse a base whose forward counts positions otherwise than `generate`, which states them from 0 on (RoBERTa's
    start behind the padding's id): a prefix is exact for one of the two."""
    stated = torch.arange(ids.shape[1], device=ids.device)[None]
    off = _off(base(input_ids=ids, position_ids=stated).logits[:, -wanted.shape[1] :], wanted)
    if not off <= TOLERANCE.get(wanted.dtype, 0.1):
        raise ConfigError(
            f"{type(base).__name__}: its forward counts positions otherwise than generate, which states them from 0",
            code="export.inexact",
            value=off,
            rule="a prefix holds keys of certain positions, and would be exact for one of the two alone",
            fix="save the adapter itself",
        )


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@contextmanager
def _without_edits(state: ModelState) -> Iterator[None]:
    before = {layer: layer._disable_adapters for layer in state.layers.values()}
    try:
        for layer in before:
            layer._disable_adapters = True
        state.changed()
        yield
    finally:
        for layer, disabled in before.items():
            layer._disable_adapters = disabled
        state.changed()


def _card(prefix: ExportedPrefix) -> str:
    base = prefix.config.base_model_name_or_path
    shown = base or "path/to/the/base/model"
    named = [f"base_model: {base}"] if base and not Path(base).exists() else []
    return "\n".join(
        [
            *("---", *named, "library_name: peft", "pipeline_tag: text-generation"),
            *("tags:", "- peft-reft", "- representation-finetuning", "- cartridge", "---", ""),
            "# An edited prefix",
            "",
            f"Keys and values of {len(prefix.token_ids)} tokens, edited by representation finetuning "
            "([ReFT](https://arxiv.org/abs/2404.03592)) and exported by `peft-reft`. Stock PEFT loads them; "
            "`peft-reft` is not needed. A prompt goes on behind these tokens and does not repeat them:",
            "",
            f"    {list(prefix.token_ids)}",
            "",
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{shown}")',
            f'base = AutoModelForCausalLM.from_pretrained("{shown}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
            'rest = tokenizer("and here goes the question", add_special_tokens=False, return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**rest, max_new_tokens=32)[0]))",
            "```",
            "",
        ]
    )
