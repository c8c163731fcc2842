"""A vocabulary cut to what is said: a head of the tokens that occur, so that a step does not pay for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .upper import States

__all__ = ["CutStates", "CutTokenizer", "UnknownTokenError", "cut_head", "tokens_of"]


class UnknownTokenError(ValueError):
    """A text has a token that the cut vocabulary lacks."""


class CutTokenizer:
    """Gives numbers of the kept tokens where the whole tokenizer gives its own.

    Args:
        tokenizer: the whole one, with a token of padding.
        kept: its tokens that stay, rising; the token of padding is one of them.
    """

    def __init__(self, tokenizer: Any, kept: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.kept = torch.tensor(list(kept))
        self.places = {token: place for place, token in enumerate(self.kept.tolist())}
        self.pad_token_id = self.places[tokenizer.pad_token_id]

    def __call__(self, texts: list[str], **given: Any) -> dict[str, list[list[int]]]:
        """`input_ids` of each text.

        Raises:
            UnknownTokenError: a text has a token that was cut off.
        """
        return {"input_ids": [self._cut(row) for row in self.tokenizer(texts, **given)["input_ids"]]}

    def whole(self, ids: Tensor) -> Tensor:
        """The whole tokenizer's numbers of these, of any shape."""
        return self.kept[ids]

    def cut(self, ids: Tensor) -> Tensor:
        """The kept numbers of the whole tokenizer's, long `[rows, length]`."""
        return torch.tensor([self._cut(row) for row in ids.tolist()])

    def _cut(self, row: list[int]) -> list[int]:
        lacking = [token for token in row if token not in self.places]
        if lacking:
            raise UnknownTokenError(
                f"{self.tokenizer.decode(lacking[:1])!r} is not in the {len(self.kept)} tokens of this base: "
                "learn this skill on a base with the whole vocabulary"
            )
        return [self.places[token] for token in row]


class CutStates:
    """What enters upper blocks, asked for by the kept numbers."""

    def __init__(self, states: States, tokenizer: CutTokenizer) -> None:
        self.states = states
        self.tokenizer = tokenizer

    def of(self, ids: Tensor) -> Tensor:
        """`[batch, seq]` → `[batch, seq, hidden]`."""
        return self.states.of(self.tokenizer.whole(ids))


def tokens_of(tokenizer: Any, texts: Iterable[str]) -> set[int]:
    """The tokens that occur in texts, and that of padding."""
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return {tokenizer.pad_token_id, *(token for row in rows for token in row)}


def cut_head(make: Callable[[torch.dtype], Any], kept: Tensor) -> Callable[[torch.dtype], Any]:
    """Models whose head, which stands apart from their embedding, tells of these tokens alone."""

    def made(dtype: torch.dtype) -> Any:
        model = make(dtype)
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach()[kept].clone())
        head.out_features = model.config.vocab_size = len(kept)
        return model

    return made
