"""The upper blocks of a model as one of their own; what the blocks below make of a text is computed once and kept.

Adapters and full fine-tuning of upper blocks leave the states that enter them as they are. So a run confined to
these blocks computes what it would on the whole model, at the price of the blocks that it trains.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Below", "States", "upper_model"]

BATCH = 32
KEPT_AT = 200
"""New texts after which the file is written anew."""


class States:
    """What enters the upper blocks, for each text that was asked for; kept in a file.

    Args:
        lower: makes the model of the blocks below; called once, where a text is new.
        pad: token of padding; of those at a text's end one counts, since a text may end in it.
        size: of a state.
        file: where states are kept between processes; None keeps them in memory alone.
    """

    def __init__(self, lower: Callable[[], nn.Module], pad: int, size: int, file: Path | None = None) -> None:
        self.lower = lower
        self.pad = pad
        self.size = size
        self.file = file
        self.model: nn.Module | None = None
        self.known: dict[tuple[int, ...], Tensor] = {}
        self.kept = 0
        if file is not None and file.is_file():
            self.known = dict(torch.load(file, weights_only=True))
            self.kept = len(self.known)

    def of(self, ids: Tensor) -> Tensor:
        """States of texts padded on the right: `[batch, seq]` → `[batch, seq, size]`, zero on padding."""
        texts = [self._stripped(row) for row in ids.tolist()]
        self._learn(sorted({text for text in texts if text not in self.known}, key=len))
        found = torch.zeros(*ids.shape, self.size, dtype=torch.bfloat16)
        for row, text in enumerate(texts):
            width = min(len(text), ids.shape[1])
            found[row, :width] = self.known[text][:width]
        return found

    def _stripped(self, row: list[int]) -> tuple[int, ...]:
        end = len(row)
        while end and row[end - 1] == self.pad:
            end -= 1
        return tuple(row[: end + 1])

    @torch.no_grad()
    def _learn(self, texts: Sequence[tuple[int, ...]]) -> None:
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            if self.model is None:
                self.model = self.lower()
            ids = torch.full((len(part), len(part[-1])), self.pad)
            mask = torch.zeros_like(ids)
            for row, text in enumerate(part):
                ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
            states: Tensor = self.model(input_ids=ids, attention_mask=mask)
            for row, text in enumerate(part):
                self.known[text] = states[row, : len(text)].clone()
        if len(self.known) - self.kept >= KEPT_AT and self.file is not None:
            self.kept = len(self.known)
            part_file = self.file.with_suffix(f".{os.getpid()}.part")  # another process may write too
            torch.save(self.known, part_file)
            part_file.replace(self.file)


class Below(nn.Module):
    """Stands where the embedding of tokens stood, gives the states that enter the upper blocks, has no parameters."""

    def __init__(self, states: States, dtype: torch.dtype) -> None:
        super().__init__()
        self.states = states
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """`[batch, seq]` → `[batch, seq, hidden]`."""
        return self.states.of(ids).to(self.dtype)


class _Lower(nn.Module):
    """The blocks below of a whole model, up to the states that leave them."""

    def __init__(self, whole: Any, blocks: int) -> None:
        super().__init__()
        self.model = whole.model
        self.model.layers = self.model.layers[:blocks]
        self.model.norm = nn.Identity()
        self.model.config.num_hidden_layers = blocks

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def upper_model(whole: Any, blocks: int, states: States | None, dtype: torch.dtype) -> Any:
    """The last blocks of a causal Llama with its head, which stands apart from the embedding and is not trained.

    Args:
        whole: the model; it is copied.
        blocks: how many of its last blocks.
        states: of what enters them; None gives the blocks below instead, as `States` takes them.
        dtype: of the weights.
    """
    if states is None:
        return _Lower(copy.deepcopy(whole), whole.config.num_hidden_layers - blocks).eval()
    model = copy.deepcopy(whole).to(dtype)
    model.model.layers = model.model.layers[-blocks:]
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = blocks
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.model.embed_tokens = Below(states, dtype)
    model.upper_blocks_alone = True
    return model.eval()
