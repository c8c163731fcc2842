"""What a router sees of a prompt: where the base has it, or how much each adapter would change what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, shown
from peft_reft.runtime.row_choice import BASE

from .former import evaluating

__all__ = ["divergences", "features", "representations"]

LEAST = 1e-6
"""Nats: what is added to a divergence before its logarithm is taken."""


def features(
    model: PeftModel, prompts: Mapping[str, Tensor], *, by: str, adapters: Sequence[str], layer: int
) -> Tensor:
    """One row `[batch, size]` for each prompt, float32 on the CPU.

    Args:
        model: with the adapters.
        prompts: `input_ids` and `attention_mask`, each `[batch, seq]`, padded on any side.
        by: `"representation"` or `"divergence"`.
        adapters: whose divergence is asked; representations do not depend on them.
        layer: whose output a representation is; divergences do not depend on it.

    Raises:
        ConfigError: prompts that are no such tensors, a prompt without tokens, a layer that is not there.
    """
    ids = prompts.get("input_ids") if isinstance(prompts, Mapping) else None
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel() or ids.dtype not in (torch.long, torch.int):
        raise ConfigError(
            f"a batch of prompts is {shown(prompts)}",
            value=type(prompts).__name__,
            rule="it is a dict with input_ids, a tensor of token ids [batch, seq], and attention_mask of that shape",
            fix='e.g. {"input_ids": ids, "attention_mask": mask}, in a list of such batches',
        )
    mask = prompts.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if not isinstance(mask, Tensor):
        raise ConfigError(f"attention_mask is {shown(mask)}", value=mask, rule="a tensor [batch, seq]")
    if mask.shape != ids.shape or not bool(mask.any(-1).all()):
        raise ConfigError("a prompt has no tokens, or a mask of another shape", value=list(ids.shape))
    with torch.no_grad(), evaluating(model):
        if by == "representation":
            return representations(model, ids, mask, layer).cpu()
        return divergences(model, ids, mask, adapters).cpu()


def representations(model: PeftModel, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    """Mean and last of the base's hidden states after a block, adapters off: `[batch, 2 · hidden]`. One prefill."""
    with model.disable_adapter():
        states: Any = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise ConfigError(
            f"layer={layer}", value=layer, rule=f"from {-len(states)} to {len(states) - 1}: 0 is the embedding"
        )
    hidden, real = states[layer].float(), mask[..., None].float()
    mean = (hidden * real).sum(1) / real.sum(1)
    return torch.cat([mean, hidden[torch.arange(len(ids)), _last(mask)]], -1)


def divergences(model: PeftModel, ids: Tensor, mask: Tensor, adapters: Sequence[str]) -> Tensor:
    """log KL(adapter ‖ base) of the token after the prompt, for each adapter: `[batch, adapters]`.

    One prefill of a batch in which every prompt stands once for each adapter and once without: its rows' adapters are
    their own.
    """
    names = [name for name in (BASE, *adapters) for _ in range(len(ids))]
    repeated = len(adapters) + 1
    logits = model(
        input_ids=ids.repeat(repeated, 1), attention_mask=mask.repeat(repeated, 1), adapter_names=names
    ).logits
    rows = torch.arange(len(names))
    logs = logits[rows, _last(mask).repeat(repeated)].float().log_softmax(-1).view(repeated, len(ids), -1)
    found: Tensor = (logs[1:].exp() * (logs[1:] - logs[:1])).sum(-1)
    logarithms: Tensor = (found.clamp(min=0) + LEAST).log()
    return logarithms.mT


def _last(mask: Tensor) -> Tensor:
    """Column of each row's last real token."""
    return (mask.long() * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
