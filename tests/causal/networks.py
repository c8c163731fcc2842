"""Small networks for the tests of causal tools."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn


class Mlp(nn.Module):
    """`[batch, 4]` → `[batch, 3]`, one hidden layer of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(values)))
        return out


def mlp() -> Mlp:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mlp()


def llama() -> transformers.LlamaForCausalLM:
    """Three layers, hidden 16, vocabulary 40."""
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(batch: int, length: int, seed: int) -> Tensor:
    return torch.randint(1, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


def rotation(rank: int, hidden: int, seed: int = 5) -> Tensor:
    """Rows of an orthogonal matrix, by a QR of another library call than the tuner's."""
    return torch.linalg.qr(numbers(hidden, hidden, seed=seed)).Q.mT[:rank].contiguous()
