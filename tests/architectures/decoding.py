"""Greedy decoding without a cache, one whole forward a step: what `generate` with a cache is compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .models import Batch, Tiny

__all__ = ["STEPS", "can_generate", "generated", "same_tokens", "stepwise"]

STEPS = 5
TIE = 2e-4
"""Two tokens whose logits are nearer than this, relative to the largest, are a tie: rounding decides."""

Around = Callable[[int], AbstractContextManager[Any]]
"""Width of the decoded row → a context in which the forward runs."""


def can_generate(tiny: Tiny) -> bool:
    """Whether the class decodes step by step."""
    return tiny.subject.family in ("causal", "encoder-decoder", "image-text") and bool(
        getattr(tiny.model, "can_generate", lambda: False)()
    )


def generated(tiny: Tiny, model: nn.Module, batch: Batch) -> Tensor:
    """The new tokens that `generate` gives, greedy, with a cache; `model` is the base or the adapted one."""
    given = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    settings = tiny.model.generation_config
    for name in ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "max_length", "suppress_tokens"):
        setattr(settings, name, None)
    if tiny.pair:
        settings.decoder_start_token_id = tiny.start
    settings.pad_token_id = tiny.pad
    with torch.no_grad():
        out: Tensor = model.generate(  # type: ignore[operator]
            **given, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, num_beams=1, use_cache=True
        )
    return out[:, -STEPS:]


def stepwise(tiny: Tiny, batch: Batch, around: Around) -> tuple[Tensor, Tensor]:
    """New tokens `[batch, steps]`, and by how much each was ahead of the next best, relative to the largest logit.

    Every step calls the base model's forward on the whole row, without a cache, inside `around(width)`.
    """
    name = "decoder_input_ids" if tiny.pair else "input_ids"
    ids, mask = batch[name], batch.get("attention_mask")
    new, leads = [], []
    for _ in range(STEPS):
        call: dict[str, Any] = {**batch, name: ids}
        if mask is not None and not tiny.pair:
            call["attention_mask"] = mask
            if tiny.takes("position_ids"):
                call["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if tiny.takes("use_cache"):
            call["use_cache"] = False
        with torch.no_grad(), around(ids.shape[1]):
            logits = tiny.model(**call).logits[:, -1].float()
        best = logits.topk(2).values
        leads.append((best[:, 0] - best[:, 1]) / logits.abs().amax(1))
        new.append(logits.argmax(1, keepdim=True))
        ids = torch.cat([ids, new[-1]], 1)
        if mask is not None and not tiny.pair:
            mask = torch.cat([mask, torch.ones_like(new[-1])], 1)
    return torch.cat(new, 1), torch.stack(leads, 1)


def same_tokens(found: Tensor, wanted: Tensor, leads: Tensor) -> bool:
    """Whether each row is as wanted up to its first tie."""
    if found.shape != wanted.shape:
        return False
    for row in range(len(wanted)):
        for step in range(wanted.shape[1]):
            if leads[row, step] < TIE:
                break
            if found[row, step] != wanted[row, step]:
                return False
    return True
