"""`TaskReader`: a task's prompts as a language model reads them, and which of them it answers rightly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from peft_reft.causal.accuracy import answered
from peft_reft.causal.answers import Answers
from peft_reft.causal.dataset import InterchangeDataset
from peft_reft.causal.model import Values
from peft_reft.causal.padding import PadRows
from peft_reft.causal.pairs import Pair
from peft_reft.causal.site import Column, Site
from peft_reft.hub_format.errors import CausalModelError

from .task import Task

__all__ = ["TaskReader"]

AT = "at"


class TaskReader:
    """Tokens of a task's prompts, with the place of one of its tokens in each row.

    Args:
        task: one of `TASKS`, or one's own.
        model: a language model, or `Answers` of one, whose values are the task's answers.
        tokenizer: a fast one, of the model; every answer is one token in it.
        place: of the task's `places`: the token at which variables are sought.
        batch_size: prompts per forward.

    Attributes:
        network: the model, read off at the task's answers (`Answers`).
        encode: rows → a batch.
        position: for a `Site`.

    Raises:
        CausalModelError: a place that the task does not have.
        ConfigError: an answer that is no single token.
    """

    def __init__(
        self, task: Task, model: nn.Module, tokenizer: Any, *, place: str = "last", batch_size: int = 16
    ) -> None:
        if place not in task.places:
            raise CausalModelError(
                f"place={place!r} of the task {task.name!r}",
                code="causal.task",
                value=place,
                rule=f"it is one of {', '.join(task.places)}",
            )
        self.task: Task = task
        self.tokenizer: Any = tokenizer
        self.place: str = place
        self.batch_size: int = batch_size
        self.network: Answers = (
            model if isinstance(model, Answers) else Answers.from_tokenizer(model, tokenizer, task.answers)
        )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.encode: PadRows = PadRows(int(pad), padding_side="right")
        self.position: Column = Column(AT)

    def row(self, values: Values) -> dict[str, Any]:
        """The tokens of a prompt, and the number of the one at the place.

        Args:
            values: inputs of the causal model.

        Returns:
            `input_ids`, a list, and `at`.
        """
        text = self.task.prompt(values)
        told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        end = self.task.places[self.place](values, text)
        at = next(number for number, (_, stop) in enumerate(told["offset_mapping"]) if stop >= end)
        return {"input_ids": list(told["input_ids"]), AT: at}

    def right(self, inputs: Sequence[Values]) -> list[bool]:
        """Which inputs the model answers rightly: the answer's token is the likeliest of the task's answers.

        Args:
            inputs: of the causal model.

        Returns:
            For each, whether it does.
        """
        first = next(iter(self.task.variables))
        return answered(
            self.network,
            self.task.causal_model,
            inputs,
            encode=lambda rows: self.encode([self.row(values) for values in rows]),
            decode=self.network.decode,
            alignment={first: Site(layer=0, position=self.position)},
            batch_size=self.batch_size,
        )

    def kept(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of some pairs of which the model answers the base and every source rightly.

        A model that does not do a task cannot do it in the causal model's way: pairs are filtered before anything is
        sought, as MIB does.

        Args:
            pairs: of `Task.pairs`.

        Returns:
            They, in their order.
        """
        listed = [values for pair in pairs for values in (pair.base, *pair.sources.values())]
        right = iter(self.right(listed) if listed else [])
        good = []
        for pair in pairs:
            own = [next(right) for _ in range(1 + len(pair.sources))]
            good.append(all(own))
        return [pair for pair, kept in zip(pairs, good, strict=True) if kept]

    def dataset(self, pairs: Sequence[Pair]) -> InterchangeDataset:
        """The pairs as rows of tokens.

        Args:
            pairs: one or more.

        Returns:
            The dataset, with the causal model's labels.
        """
        return InterchangeDataset.from_pairs(self.task.causal_model, pairs, row=self.row)
