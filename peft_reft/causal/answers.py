"""A language model as what a causal model describes: one answer out of a few, read off its logits at one position."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError

from .columns import columns_at, real_tokens
from .inputs import call_model
from .losses import Loss, class_loss

__all__ = ["Answers"]


class Answers(nn.Module):
    """Logits `[batch, values]` of the answers' tokens, instead of a language model's `[batch, seq, vocabulary]`.

    The model inside is the same object, and layers of a `Site` are counted as in it; a `module` path starts with
    `"model."`.

    Args:
        model: a model whose output has `logits`.
        tokens: value of the causal model's output → id of the token that says it.
        position: where the answer is read: index among a row's real tokens, negatives from the end.

    Raises:
        ConfigError: fewer than two answers, or two with one token.
    """

    def __init__(self, model: nn.Module, tokens: Mapping[Hashable, int], *, position: int = -1) -> None:
        super().__init__()
        self.tokens: dict[Hashable, int] = {value: int(token) for value, token in tokens.items()}
        if len(self.tokens) < 2 or len(set(self.tokens.values())) != len(self.tokens):
            raise ConfigError(
                f"tokens={self.tokens!r}", value=self.tokens, rule="two or more answers, each with a token of its own"
            )
        self.model = model
        self.position = position

    @classmethod
    def from_tokenizer(
        cls, model: nn.Module, tokenizer: Any, answers: Mapping[Hashable, str], *, position: int = -1
    ) -> Answers:
        """Answers in words, each one token: mind the space, `{"Anna": " Anna"}`.

        Args:
            model: as in the class.
            tokenizer: of the model.
            answers: value of the causal model's output → the word that says it.
            position: as in the class.

        Returns:
            The model, read off at these answers.

        Raises:
            ConfigError: a word of no token or of several.
        """
        tokens = {}
        for value, text in answers.items():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise ConfigError(
                    f"the answer {text!r} is {len(ids)} tokens",
                    value=text,
                    rule="an answer is one token",
                    fix="choose another word, mind the space before it, or name the first token with tokens=",
                )
            tokens[value] = ids[0]
        return cls(model, tokens, position=position)

    @property
    def config(self) -> Any:
        """The model's own: its blocks are found by it."""
        return getattr(self.model, "config", None)

    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """Called as the model is; `[batch, values]` in the order of `tokens`."""
        given: Any = inputs if not args else args[0] if len(args) == 1 else args
        logits = call_model(self.model, given, []).logits
        role = "decoder" if getattr(self.config, "is_encoder_decoder", False) else "only"
        real = real_tokens(given, logits.shape[0], logits.shape[1], role=role, device=logits.device)
        columns = columns_at(self.position, given, real, role=role)[:, 0]
        rows = logits[torch.arange(len(logits), device=logits.device), columns]
        scores: Tensor = rows[:, list(self.tokens.values())]
        return scores

    def loss(self, *, kl: bool = False) -> Loss:
        """`class_loss` over the answers, for `AlignmentSearch`.

        Args:
            kl: KL(label ‖ network) instead of cross-entropy.

        Returns:
            (output, labels) → scalar.
        """
        return class_loss(list(self.tokens), logits=lambda scores: scores, kl=kl)

    def decode(self, scores: Tensor) -> list[Any]:
        """The answer with the highest score in each row, for `interchange_accuracy`.

        Args:
            scores: what `forward` gives, `[batch, values]`.

        Returns:
            For each row, a value of the causal model's output.
        """
        values = list(self.tokens)
        return [values[place] for place in scores.argmax(-1).tolist()]
