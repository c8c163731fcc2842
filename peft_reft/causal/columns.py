"""Positions of a site → columns of the rows, counted among real tokens as the tuner counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_reft.hub_format.errors import LocationError, PositionError
from peft_reft.hub_format.positions import Special, parse_positions
from peft_reft.positions import layout_of, prompt_before, sequence_starts, shifted_right, term_masks

from .inputs import named
from .site import Column, Position

__all__ = ["columns_at", "real_tokens"]


def real_tokens(inputs: Any, batch: int, length: int, *, role: str, device: torch.device) -> Tensor:
    """Bool `[batch, length]`: where the attention mask of the inputs is 1; everywhere if there is none of that shape.

    A decoder whose tokens the model makes of the encoder's, shifted, gets no mask: the encoder's, shifted, says it.

    Args:
        inputs: what the model is called with.
        batch, length: of the activation.
        role: of the stack; a decoder beside an encoder has its own mask.
        device: of the activation.
    """
    given = named(inputs)
    mask = given.get("decoder_attention_mask" if role == "decoder" else "attention_mask")
    if role == "decoder" and mask is None and not _has_own_tokens(given):
        mask, labels = given.get("attention_mask"), given.get("labels")
        if isinstance(labels, Tensor) and tuple(labels.shape) == (batch, length) and not labels.is_floating_point():
            return ((labels != -100).flip(1).cumsum(1).flip(1) > 0).to(device)  # what follows the last is padding
        mask = shifted_right(mask) if isinstance(mask, Tensor) and mask.dim() == 2 else None
    if isinstance(mask, Tensor) and mask.dim() == 3:  # [batch, choices, seq], of multiple choice
        mask = mask.flatten(0, 1)
    if isinstance(mask, Tensor) and tuple(mask.shape) == (batch, length):
        return mask.to(device).bool()
    return torch.ones(batch, length, dtype=torch.bool, device=device)


def _has_own_tokens(given: Mapping[str, Any]) -> bool:
    return any(given.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))


def columns_at(position: Position, inputs: Any, real: Tensor, *, role: str, completes: bool = True) -> Tensor:
    """Columns `[batch, k]` of a position; −1 where a row has fewer than another (specs only).

    Args:
        position: not None.
        inputs: what the model is called with.
        real: bool `[batch, seq]`.
        role: of the stack: labels say nothing of an encoder's prompt, and in a decoder beside it they stand at the
            tokens that predict them.
        completes: whether the model writes on: elsewhere labels say nothing of a prompt.

    Raises:
        LocationError: a row has no such token.
        PositionError: a spec that needs a tokenizer, or a column that the inputs do not have.
    """
    if isinstance(position, str):
        return _spec_columns(position, inputs, real, role if completes else "encoder")
    if isinstance(position, Column):
        ranks = _from_inputs(position, inputs, real)
    else:
        listed = [position] if isinstance(position, int) else list(position or ())
        ranks = torch.tensor(listed, device=real.device).expand(real.shape[0], -1)
    return _ranked_columns(ranks, real)


def _ranked_columns(ranks: Tensor, real: Tensor) -> Tensor:
    """Columns of the real tokens with these ranks; both `[batch, k]`."""
    counts = real.sum(1, keepdim=True)
    wanted = torch.where(ranks < 0, ranks + counts, ranks)
    outside = (wanted < 0) | (wanted >= counts)
    if bool(outside.any()):
        row = int(outside.any(1).nonzero()[0])
        raise LocationError(
            f"row {row} has no token {int(ranks[row][outside[row]][0])}",
            value=ranks[row].tolist(),
            rule=f"it has {int(counts[row])} real tokens; positions count among them, negatives from the end",
        )
    hits = real[:, None, :] & ((real.cumsum(1) - 1)[:, None, :] == wanted[:, :, None])
    return hits.long().argmax(2)


def _spec_columns(spec: str, inputs: Any, real: Tensor, role: str) -> Tensor:
    positions = parse_positions(spec)
    if any(isinstance(term, Special) for term in (*positions.terms, *positions.exclusions)):
        raise PositionError(
            f"position={spec!r} names a special token",
            value=spec,
            rule="a site knows no tokenizer",
            fix="give each row its positions: position=Column('at'), and a key 'at' in the inputs",
        )
    start = sequence_starts(real)
    labels = named(inputs).get("labels")
    prompt = real
    if role != "encoder" and isinstance(labels, Tensor) and labels.shape == real.shape:
        prompt = prompt_before(labels.to(real.device) != -100, real, start, shifted=role == "decoder")
    layout = layout_of(real, start, prompt, packed=False, supervised=None, sequences=1)
    mask = torch.stack(term_masks(positions, layout)).any(0)
    width = int(mask.sum(1).max())
    if width == 0:
        raise LocationError(f"position={spec!r} names no token of any row", value=spec)
    order = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), mask.shape[1]).sort(1).values
    return torch.where(order < mask.shape[1], order, -1)[:, :width]


def _from_inputs(column: Column, inputs: Any, real: Tensor) -> Tensor:
    values = named(inputs).get(column.key)
    if not isinstance(values, Tensor) or values.dim() not in (1, 2) or values.shape[0] != real.shape[0]:
        given = f"of shape {list(values.shape)}" if isinstance(values, Tensor) else "missing"
        raise PositionError(
            f"the inputs' {column.key!r} is {given}",
            value=column.key,
            rule=f"a LongTensor [{real.shape[0]}] or [{real.shape[0]}, k] says the positions of each row",
        )
    return values.to(real.device, torch.long).reshape(real.shape[0], -1)
