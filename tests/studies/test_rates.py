"""Other learning rates than the search chose: planned, kept apart from the usual tables, and compared with them."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from benchmarks.forgetting.pages import write
from benchmarks.forgetting.plan import Arm, plan
from benchmarks.forgetting.rates import rates
from benchmarks.quality.plan import Grid
from benchmarks.study import runs
from benchmarks.study.options import factor
from benchmarks.study.runs import append, key_of
from studies.test_report import sequence
from studies.test_series import RULE_SKILLS, of, told_in

METHOD, REFERENCE = "loreft r4 all", "lora r8 linear"
GRID = Grid(
    base="slim",
    identity="a",
    methods=(METHOD,),
    skills=tuple(RULE_SKILLS),
    search_skills=("camel",),
    seeds=range(1),
    steps=20,
    batch=8,
    sizes=(256, 32, 32),
)


def made(method: str, kept: float, learnt: float, rate: float, **settings: Any) -> list[dict[str, Any]]:
    several = [
        sequence(Arm(method), seed, kept=kept, kl=1.0, learnt=learnt) for seed in range(settings.pop("seeds", 5))
    ]
    return of(several, rate=rate, **settings)


def rows(text: str) -> dict[tuple[str, ...], list[str]]:
    """(arm,) → its scores and blocks; (arm, other) → differences and blocks."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| lo")]
    return {tuple(cells[:2] if len(cells) == 8 else cells[:1]): cells[2:] for cells in lines}


USUAL = made(METHOD, 0.2, 0.9, 0.006) + made(REFERENCE, 0.4, 0.8, 0.003)
SLOWER = made(METHOD, 0.6, 0.7, 0.002, times="1/3", seeds=3)


@pytest.mark.parametrize(("given", "told"), [("1", "1"), ("3", "3"), ("1/3", "1/3"), ("2/6", "1/3"), ("3/1", "3")])
def test_a_factor_is_told_in_lowest_terms(given: str, told: str) -> None:
    assert factor(given) == told


@pytest.mark.parametrize("given", ["0", "0/3", "1/0", "-1", "0.5", "1/3/5", "", "1e9", "nan", "12345", "1 / 3"])
def test_what_is_no_factor_is_refused(given: str) -> None:
    with pytest.raises(ArgumentTypeError, match="like 3 or 1/3"):
        factor(given)


def test_a_plan_multiplies_the_searched_rate_and_says_so() -> None:
    [usual] = plan(GRID, [Arm(METHOD)], {METHOD: 0.006}, 1)
    [slower] = plan(GRID, [Arm(METHOD, times="1/9")], {METHOD: 0.006}, 1)
    assert (usual["rate"], slower["rate"]) == (0.006, 0.00067)
    assert slower == {**usual, "rate": 0.00067, "times": "1/9"}
    assert key_of(usual) != key_of(slower)
    assert "times" not in usual  # runs of the searched rate keep the keys they have


def test_arms_at_another_rate_are_compared_with_themselves_and_the_reference_over_common_blocks() -> None:
    text = rates(USUAL + SLOWER)
    assert "## wide, a b c\n\nSearched rates: `loreft r4 all` 0.006, `lora r8 linear` 0.003.\n" in text
    slower, own, reference = f"{METHOD}, continue, rate × 1/3", f"{METHOD}, continue", f"{REFERENCE}, continue"
    found = rows(text)
    assert {pair for pair in found if len(pair) == 2} == {(slower, own), (slower, reference)}
    assert found[slower, own][0].startswith("-0.200 ")  # learnt .7 against .9
    assert found[slower, reference][0].startswith("-0.100 ")
    assert {told[-1] for told in found.values()} == {"3"}


def test_a_method_is_compared_with_every_rate_of_the_reference() -> None:
    text = rates(USUAL + SLOWER + made(REFERENCE, 0.9, 0.8, 0.001, times="1/3", seeds=3))
    slower, own = f"{METHOD}, continue, rate × 1/3", f"{METHOD}, continue"
    gentle, reference = f"{REFERENCE}, continue, rate × 1/3", f"{REFERENCE}, continue"
    pairs = {(slower, own), (gentle, reference), (slower, reference), (slower, gentle), (own, gentle)}
    found = rows(text)
    assert {pair for pair in found if len(pair) == 2} == pairs
    assert found[own, gentle][0].startswith("+0.100 ")
    assert {pair for pair in found if len(pair) == 1} == {(slower,), (own,), (gentle,), (reference,)}


def test_without_another_rate_there_is_nothing_to_tell() -> None:
    assert rates(USUAL) == ""


def test_another_rate_changes_nothing_of_the_usual_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "machine", lambda: {"device": "a processor"})
    file = tmp_path / "forgetting.jsonl"
    for run in of(USUAL, order=RULE_SKILLS[:3]):
        append(file, run["settings"], run["result"])
    write(file)
    usual = told_in(tmp_path)
    for run in of(SLOWER, order=RULE_SKILLS[:3]):
        append(file, run["settings"], run["result"])
    write(file)
    both = told_in(tmp_path)
    assert {name: both[name] for name in usual} == usual
    assert set(both) - set(usual) == {"forgetting-rates.md"}
    assert both["forgetting-rates.md"].startswith(b"# Other learning rates\n")
    assert b"\n- 3 runs; learning alone took" in both["forgetting-rates.md"]
