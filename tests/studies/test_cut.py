"""A cut vocabulary says what the whole one says of the tokens that it keeps, and refuses others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from benchmarks.skills.registry import SKILLS
from benchmarks.skills.rules import RULES
from benchmarks.study.base import SAID
from benchmarks.study.cut import CutStates, CutTokenizer, UnknownTokenError, cut_head, tokens_of
from benchmarks.study.upper import upper_model
from benchmarks.wide.model import make_tokenizer
from studies.test_upper import PAD, ROWS, UPPER, states, whole

KEPT = [PAD, *range(4, 16)]


class Plain:
    """Numbers as text: token 7 is written "7"."""

    pad_token_id = PAD

    def __call__(self, texts: list[str], **given: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_logits_of_kept_tokens_are_those_of_the_whole_head() -> None:
    tokenizer = CutTokenizer(Plain(), KEPT)
    plain = upper_model(whole(), UPPER, states([]), torch.float32)
    cut = cut_head(
        lambda dtype: upper_model(whole(), UPPER, CutStates(states([]), tokenizer), dtype),  # type: ignore[arg-type]
        tokenizer.kept,
    )(torch.float32)
    ids = torch.tensor([ROWS[0].prompt + ROWS[0].answer])
    with torch.no_grad():
        expected = plain(input_ids=ids).logits[..., KEPT]
        found = cut(input_ids=tokenizer.cut(ids)).logits
    assert_close(found, expected)
    assert cut.config.vocab_size == len(KEPT)
    assert not torch.equal(tokenizer.cut(ids), ids)
    assert torch.equal(tokenizer.whole(tokenizer.cut(ids)), ids)


def test_a_token_that_was_cut_off_is_named() -> None:
    tokenizer = CutTokenizer(Plain(), KEPT)
    assert tokenizer(["4 5", "2"])["input_ids"] == [[1, 2], [0]]
    assert tokenizer.pad_token_id == 0
    with pytest.raises(UnknownTokenError, match="'20' is not in the 13 tokens"):
        tokenizer(["4 20"])


def test_tokens_of_what_is_said_hold_those_of_smaller_sets() -> None:
    tokenizer = make_tokenizer(["Date: 3 March 1990 camelCase rename_this style the big red box please"])

    def texts(sizes: tuple[int, int, int]) -> list[str]:
        sets = [SKILLS[name].splits(sizes, seed=0) for name in RULES]
        return [
            t for s in sets for part in (s.train, s.validation, s.held_out) for e in part for t in (e.prompt, e.answer)
        ]

    assert tokens_of(tokenizer, texts((256, 32, 32))) <= tokens_of(tokenizer, texts(SAID))
    assert tokenizer.pad_token_id in tokens_of(tokenizer, ["Date"])
