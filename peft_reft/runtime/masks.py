"""Attention masks, in whatever form a model was given one → which slots hold real tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inputs import CallInputs
from .situation import Situation

__all__ = ["real_slots"]


def real_slots(call: CallInputs, situation: Situation, supervised: Tensor | None) -> Tensor:
    """Which absolute slots hold real tokens, bool `[batch, slots]`. Slots still to come do: padding comes first."""
    slots = call.slots(situation.prompt_width)
    known = _known_slots(call, situation, supervised)
    known = known if known.shape[1] <= slots else known[:, :slots]
    if known.shape[1] == slots:
        return known
    future = torch.ones(call.batch, slots - known.shape[1], dtype=torch.bool, device=call.device)
    return torch.cat([known, future], 1)


def _known_slots(call: CallInputs, situation: Situation, supervised: Tensor | None) -> Tensor:
    if situation.prompt_real is not None:
        return situation.prompt_real.to(call.device)
    width = call.past + call.length
    mask = call.attention_mask
    if isinstance(mask, dict):  # one mask per kind of attention layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if isinstance(mask, Tensor) and mask.dim() == 2:
        given = mask.to(call.device, torch.bool)
        if given.shape[1] >= width:
            return given if given.shape[1] == width else given[:, :width]
        ones = torch.ones(call.batch, width - given.shape[1], dtype=torch.bool, device=call.device)
        return torch.cat([ones, given], 1)  # a mask without the cached part: that part is real
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return _from_square(mask, call, generating=situation.prompt_width is not None)
    if situation.role == "decoder" and supervised is not None:
        # the decoder's inputs are made from the labels: what follows the last of them is padding
        return supervised.flip(1).cumsum(1).flip(1) > 0
    return torch.ones(call.batch, width, dtype=torch.bool, device=call.device)


def _from_square(mask: Tensor, call: CallInputs, *, generating: bool) -> Tensor:
    """From a 4-D mask `[batch, 1, length, keys]`, which `generate` makes of the 2-D one for a static cache.

    While generating padding stands on the left, and the last token's position id says how many real slots there are;
    elsewhere a real token is one that may attend to itself.
    """
    slots = call.past + call.length
    columns = torch.arange(slots, device=call.device)
    ids: Any = call.position_ids
    if generating and isinstance(ids, Tensor) and ids.dim() == 2:
        first = slots - 1 - ids[:, -1:].expand(call.batch, 1)
        return columns >= first
    own = torch.arange(call.length, device=mask.device)
    allowed = mask[:, 0, own, call.past + own]
    allowed = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
    past = torch.ones(call.batch, call.past, dtype=torch.bool, device=call.device)
    return torch.cat([past, allowed.to(call.device).expand(call.batch, -1)], 1)
