"""Where SmolLM2-135M-Instruct holds the name that a prompt asks for; a few prompts, and a slow search."""

from __future__ import annotations

from functools import cache

import pytest

from examples.causal import names
from tools.base_model import package_gaps

pytestmark = pytest.mark.skipif(bool(package_gaps()), reason=f"the small base model is not here: {package_gaps()}")


@cache
def found() -> names.Names:
    return names.loaded()


def test_rows_say_where_the_names_are() -> None:
    for again in ("Maria", "Tom"):
        for prompt in (0, 1):
            values = {"X": "Maria", "Y": "Tom", "S": again, "prompt": prompt}
            rows = {word: found().row(values, word) for word in names.WORDS}
            said = {word: found().tokenizer.decode(row["input_ids"][row["at"]]) for word, row in rows.items()}
            other = {"Maria": "Tom", "Tom": "Maria"}[again]
            assert said == {"asked": f" {other}", "other": f" {again}", "again": f" {again}", "last": " to"}
            assert rows["other"]["at"] != rows["again"]["at"]
            assert names.SMOLLM.run(values)["V"] == other


def test_the_name_is_at_its_token_early_and_at_the_last_token_late() -> None:
    solved, share = found().solved(12, seed=3)
    assert share >= 0.9
    pairs = found().pairs(solved, 8, seed=4)
    value = {cell: found().exchanged(*cell, pairs).value for cell in ((0, "asked"), (0, "last"), (27, "last"))}
    assert value[0, "asked"] >= 0.8
    assert value[27, "last"] >= 0.8
    assert value[0, "last"] <= 0.2


@pytest.mark.slow
def test_a_search_finds_it_in_a_few_dimensions_and_not_where_it_is_not() -> None:
    solved, _ = found().solved(48, seed=3)
    training, pairs = found().pairs(solved, 96, seed=5), found().pairs(solved, 32, seed=6)
    value = {
        word: found().searched(24, word, training, pairs, dimension=16, steps=20, seed=0) for word in ("last", "asked")
    }
    assert value["last"].value >= 0.9
    assert value["asked"].value <= value["asked"].chance
