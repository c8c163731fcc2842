"""Which layer and token of SmolLM2-135M-Instruct hold the name that a prompt asks for.

"When Maria and Tom went to the store, Tom gave a drink to" goes on with " Maria": the name that is not there twice
(arXiv 2211.00593). N is that name. Both orders of the names come, in prompts of two lengths; each row says itself
where its tokens are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_reft.causal import (
    Accuracy,
    AlignmentSearch,
    Answers,
    CausalModel,
    Column,
    InterchangeDataset,
    PadRows,
    Pair,
    Site,
    Sweep,
    answered,
    interchange_accuracy,
    sample_pairs,
    sweep,
)
from tools.base_model import MODEL_ID, ensure_base_model

__all__ = ["LAYERS", "NAMES", "SMOLLM", "WORDS", "Names", "loaded", "swept"]

NAMES = ("Anna", "Tom", "Lisa", "Peter", "Sarah", "David", "Maria", "James")
PROMPTS = (
    "When {X} and {Y} went to the store, {S} gave a drink to",
    "When {X} and {Y} were in the garden this morning, {S} gave a book to",
)
SMOLLM = CausalModel(
    {"N": lambda X, Y, S: Y if S == X else X, "V": lambda N: N},
    inputs={"X": NAMES, "Y": NAMES, "S": NAMES, "prompt": range(len(PROMPTS))},
)
WORDS = ("asked", "other", "again", "last")
"""Positions: the name asked for, the other name, where that comes again, the last token."""
LAYERS = (0, 3, 6, 9, 12, 15, 18, 19, 20, 21, 22, 23, 24, 27, 29)
SEARCHED_LAYERS = (0, 18, 21, 24)
_AT = Column("at")


class Names:
    """The prompts of one tokenizer, and the model that answers them.

    Args:
        model: a language model.
        tokenizer: its own; every name is one token in it.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.network = Answers.from_tokenizer(model, tokenizer, {name: f" {name}" for name in NAMES})
        self.pad = PadRows(tokenizer.eos_token_id, padding_side="left")

    def row(self, values: Any, word: str) -> dict[str, Any]:
        """The tokens of a prompt, and where one of `WORDS` is among them."""
        ids = self.tokenizer(PROMPTS[values["prompt"]].format(**values), add_special_tokens=False)["input_ids"]
        first, second, again = [place for place, token in enumerate(ids) if token in self.network.tokens.values()]
        asked, other = (second, first) if values["S"] == values["X"] else (first, second)
        return {"input_ids": ids, "at": {"asked": asked, "other": other, "again": again, "last": len(ids) - 1}[word]}

    def solved(self, count: int, seed: int) -> tuple[list[Any], float]:
        """Inputs that the model answers rightly, of `count` drawn, and their share."""
        generator = random.Random(seed)
        inputs = [_draw(generator) for _ in range(count)]
        right = answered(
            self.network,
            SMOLLM,
            inputs,
            encode=lambda rows: self.pad([self.row(values, "last") for values in rows]),
            decode=self.network.decode,
            alignment={"N": Site(layer=0, position=_AT)},
            batch_size=16,
        )
        return [values for values, good in zip(inputs, right, strict=True) if good], sum(right) / count

    def pairs(self, inputs: Sequence[Any], count: int, *, seed: int) -> list[Pair]:
        """Pairs of such inputs whose answers differ."""
        listed = list(inputs)
        return sample_pairs(SMOLLM, ["N"], count, seed=seed, changing=1.0, inputs=lambda draw: draw.choice(listed))

    def tokenised(self, pairs: Sequence[Pair], word: str) -> InterchangeDataset:
        """The pairs as rows of tokens with the places of a word."""
        return InterchangeDataset.from_pairs(SMOLLM, pairs, row=lambda values: self.row(values, word))

    def exchanged(self, layer: int, word: str, pairs: Sequence[Pair]) -> Accuracy:
        """The whole vector exchanged that a block gives at a word."""
        return interchange_accuracy(
            self.network,
            SMOLLM,
            {"N": Site(layer=layer, position=_AT)},
            self.tokenised(pairs, word),
            encode=self.pad,
            decode=self.network.decode,
            batch_size=16,
        )

    def searched(
        self,
        layer: int,
        word: str,
        training: Sequence[Pair],
        pairs: Sequence[Pair],
        *,
        dimension: int,
        steps: int,
        seed: int,
    ) -> Accuracy:
        """N sought in some dimensions of that vector, on other pairs than those that measure it."""
        data = self.tokenised(training, word)
        search = AlignmentSearch(
            self.network,
            SMOLLM,
            Site(layer=layer, position=_AT),
            {"N": dimension},
            encode=self.pad,
            loss=self.network.loss(),
            seed=seed,
            example=data[0]["base"],
        )
        search.fit(data, steps=steps, learning_rate=0.02, batch_size=8, seed=seed)
        return search.accuracy(self.tokenised(pairs, word), decode=self.network.decode, batch_size=16)


def loaded() -> Names:
    """With SmolLM2-135M-Instruct, from the Hub or the package that carries it."""
    source = ensure_base_model()
    return Names(AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source))


def swept(names: Names, folder: Path, *, progress: bool) -> tuple[Sweep, Sweep, float]:
    """Whole vectors over layers × words, and 16 dimensions where it may matter; kept in `folder` as they are measured.

    Returns:
        Both sweeps, and the share of prompts that the model answers rightly.
    """
    solved, share = names.solved(96, seed=0)
    pairs, training = names.pairs(solved, 32, seed=1), names.pairs(solved, 128, seed=2)
    told = {"model": MODEL_ID, "prompts": PROMPTS, "names": NAMES, "pairs": len(pairs)}
    whole = sweep(
        lambda layer, word: names.exchanged(layer, str(word), pairs),
        layers=LAYERS,
        positions=WORDS,
        progress=progress,
        path=folder / "names_whole.json",
        settings=told,
    )
    found = sweep(
        lambda layer, word: names.searched(layer, str(word), training, pairs, dimension=16, steps=20, seed=0),
        layers=SEARCHED_LAYERS,
        positions=("asked", "last"),
        progress=progress,
        path=folder / "names_searched.json",
        settings={**told, "dimension": 16, "steps": 20},
    )
    return whole, found, share


def _draw(generator: random.Random) -> dict[str, Any]:
    first, second = generator.sample(NAMES, 2)
    again = generator.choice((first, second))
    return {"X": first, "Y": second, "S": again, "prompt": generator.randrange(len(PROMPTS))}
