"""A custom model with blocks, in the place of the models of PEFT's `test_custom_models`, which have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

__all__ = ["Blocks", "BlocksWrapper"]


class Block(nn.Module):
    """h + a feed-forward part of h."""

    def __init__(self, size: int, *, bias: bool) -> None:
        super().__init__()
        self.lin0 = nn.Linear(size, 2 * size, bias=bias)
        self.lin1 = nn.Linear(2 * size, size, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden `[batch, seq, size]`."""
        return hidden + self.lin1(torch.tanh(self.lin0(hidden)))


class Blocks(nn.Module):
    """No model of transformers: tokens `[batch, seq]` → log-probabilities `[batch, 2]`, through some blocks.

    Its linear maps have the names of those in the tests' models, which choose their size.
    """

    def __init__(self, bias: bool = True, blocks: int = 3, size: int = 16) -> None:
        super().__init__()
        self.name_or_path = "blocks"
        self.config = PretrainedConfig(hidden_size=16, num_hidden_layers=blocks, name_or_path="blocks")
        self.emb = nn.Embedding(100, 16)
        self.layers = nn.ModuleList(Block(16, bias=bias) for _ in range(blocks))
        self.lin1 = nn.Linear(16, 2, bias=bias)

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803  # the tests call it by this name
        """X `[batch, seq]`, ids of tokens."""
        hidden = self.emb(X)
        for block in self.layers:
            hidden = block(hidden)
        return torch.log_softmax(self.lin1(hidden.mean(1)), -1)


class BlocksWrapper:
    """What the tests call as they would a class of transformers."""

    @classmethod
    def from_pretrained(cls, model_id: str, dtype: torch.dtype | None = None, **_: Any) -> Blocks:
        """The same model each time."""
        torch.manual_seed(0)
        return Blocks().to(torch.float32 if dtype is None else dtype)
