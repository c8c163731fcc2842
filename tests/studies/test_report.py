"""Tables say what the runs say: scores, fronts, paired differences, predictions; figures come out the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.forgetting import __main__ as forgetting_command
from benchmarks.forgetting.compare import Comparison, adjusted, compare, comparisons
from benchmarks.forgetting.kl import equal_accuracy, left_out, predictions
from benchmarks.forgetting.plan import Arm
from benchmarks.forgetting.report import markdown as forgetting_table
from benchmarks.forgetting.scores import scores, scores_of
from benchmarks.quality import __main__ as quality_command
from benchmarks.quality.report import REFERENCE, block_sets, front, lines, markdown, told
from benchmarks.study import runs
from benchmarks.study.options import BATCH, SIZES, STEPS
from benchmarks.study.provenance import provenance
from benchmarks.study.runs import append


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "machine", lambda: {"device": "a processor"})


USUAL = {"steps": STEPS, "batch": BATCH, "sizes": list(SIZES)}


def quality(method: str, skill: str, seed: int, accuracy: float, parameters: int) -> dict[str, Any]:
    settings = {"study": "quality", "method": method, "skill": skill, "seed": seed, "rate": 1e-3}
    result = {"accuracy": accuracy, "parameters": parameters, "loss": 1.0, "kl": 0.1, "seconds": 2.0}
    return {
        "settings": {**settings, **USUAL, "identity": "a", "base": "wide"},
        "result": {**result, "text loss rise": 0.05 * parameters},
    }


QUALITY = [
    quality(method, skill, seed, level + 0.01 * seed + 0.1 * (skill == "b"), parameters)
    for method, level, parameters in (("loreft r4", 0.5, 10), (REFERENCE, 0.6, 100), ("full", 0.55, 1000))
    for skill in ("a", "b")
    for seed in range(4)
]


def test_lines_are_means_over_blocks_and_differences_are_paired() -> None:
    made = {line.method: line for line in lines(QUALITY)}
    assert made["full"].accuracy[0] == pytest.approx(0.55 + 0.015 + 0.05)
    difference = made["full"].difference
    assert difference is not None
    assert difference == pytest.approx((-0.05, -0.05, -0.05))  # the blocks' own level is gone
    assert made["full"].p == pytest.approx(2 * 2 / 2**8)
    assert made[REFERENCE].difference is made[REFERENCE].p is None
    assert [line.method for line in lines(QUALITY)] == [REFERENCE, "full", "loreft r4"]


def test_methods_are_compared_over_blocks_that_all_of_them_have() -> None:
    """A method of an easier skill alone, and one that was run more often, move nobody's mean."""
    easier = [quality(name, "b", seed, 0.9, 5) for name in ("ia3", "road", "red") for seed in (0, 1)]
    more = [quality("full", "c", 9, 0.0, 1000)]
    runs = [*QUALITY, *easier, *more]
    small, whole = frozenset({("b", 0), ("b", 1)}), frozenset({(skill, seed) for skill in "ab" for seed in range(4)})
    assert block_sets(runs) == [small, whole]
    assert block_sets(QUALITY) == [whole]
    assert {line.method for line in lines(runs, small)} == {"ia3", "road", "red", "full", "loreft r4", REFERENCE}
    over = {line.method: line for line in lines(runs, whole)}
    assert over.keys() == {"full", "loreft r4", REFERENCE}
    assert over["full"].blocks == 8
    assert over["full"].accuracy[0] == pytest.approx(0.55 + 0.015 + 0.05)
    assert told(small) == "b 0, 1"


def test_the_front_has_what_no_smaller_method_reaches() -> None:
    assert [line.method for line in front(lines(QUALITY))] == ["loreft r4", REFERENCE]
    text = markdown(lines(QUALITY))
    assert "| **loreft r4** | 10 |" in text
    assert "| full | 1,000 |" in text
    assert "8 blocks" in text
    assert "1.16 standard deviations" in text


def sequence(arm: Arm, seed: int, kept: float, kl: float, learnt: float = 1.0) -> dict[str, Any]:
    """Three skills, each learnt to `learnt`; of a former one `kept` is left after each further skill."""
    accuracy = [[learnt * kept ** (i - j) if j <= i else 0.1 for j in range(3)] for i in range(3)]
    settings = {"study": "forgetting", "method": arm.method, "regime": arm.regime, "remedy": arm.remedy}
    result = {
        "accuracy": accuracy,
        "loss": [[1 - value for value in row] for row in accuracy],
        "start": {"accuracy": [0.05] * 3, "loss": [1.0] * 3},
        "kl": [kl] * 3,
        "text loss rise": [0.1, 0.2, 0.3 + 0.01 * seed],
        "seconds": [1.0] * 3,
        "parameters": [1] * 3,
    }
    place = {"order": ["a", "b", "c"], "seed": seed, "identity": "a", "base": "wide", "rate": 1.0}
    return {"settings": {**settings, **USUAL, **place}, "result": result}


def test_scores_are_those_of_the_papers() -> None:
    told = scores_of(sequence(Arm("full"), 0, kept=0.5, kl=2.0)["result"])
    assert told.learnt == 1
    assert told.final == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert told.forgetting == told.share == pytest.approx((0.75 + 0.5) / 2)
    assert told.backward == pytest.approx(-(0.75 + 0.5) / 2)
    assert told.forward == pytest.approx(0.05)
    assert told.loss_rise == pytest.approx((0.75 + 0.5) / 2)
    assert told.gain_kept == pytest.approx((0.25 + 0.5) / 2)
    assert (told.kl, told.text, told.seconds) == (2.0, 0.3, 3.0)
    better_later = {
        "accuracy": [[0.4, 0], [0.8, 0.5]],
        "loss": [[1, 1], [1, 1]],
        "start": {"accuracy": [0, 0], "loss": [2, 2]},
    }
    rest = {"kl": [1, 1], "text loss rise": [0, 0], "seconds": [1, 1], "parameters": [1, 1]}
    told = scores_of({**better_later, **rest})
    assert told.forgetting == told.share == 0
    half = scores_of(sequence(Arm("full"), 0, kept=0.5, kl=2.0, learnt=0.5)["result"])
    assert half.forgetting == pytest.approx(0.3125)
    assert half.share == pytest.approx(0.625)  # less was learnt, and as much of it lost
    assert told.backward == pytest.approx(0.4)
    with pytest.raises(ValueError, match="two skills"):
        scores_of({"accuracy": [[1.0]], "loss": [[1.0]]})


def test_tables_in_which_nothing_was_learnt_say_so() -> None:
    assert "say nothing" not in markdown(lines(QUALITY))
    nothing = [{**run, "result": {**run["result"], "accuracy": 0.01}} for run in QUALITY]
    assert "say nothing" in markdown(lines(nothing))
    assert "say nothing" not in forgetting_table(scores(LAWFUL))
    blank = [sequence(Arm("full"), seed, kept=1.0, kl=1.0, learnt=0.0) for seed in range(2)]
    assert "say nothing" in forgetting_table(scores(blank))


METHODS = ("loreft r4", "lora r1 qv", "lora r8 linear", "full")
LAWFUL = [
    sequence(Arm(method), seed, kept=1 - 0.1 * place, kl=math.exp((1 - (1 - 0.1 * place) ** 2 + 0.1 * place) / 2))
    for place, method in enumerate(METHODS)
    for seed in range(3)
]
"""Forgetting is the logarithm of KL, exactly."""


def test_a_table_says_what_its_runs_were() -> None:
    machines = [{"torch": "2.0"}, {"torch": "2.1"}]
    text = provenance([{**run, "machine": machines[n % 2]} for n, run in enumerate(LAWFUL)])
    assert "12 runs" in text
    assert "seeds 0 / 1 / 2" in text
    assert "full 1; lora r1 qv 1;" in text
    assert "torch: 2.0 / 2.1" in text
    assert "orders: a, b, c" in text
    assert "parameters trained: full 1; lora r1 qv 1" in text


def test_a_law_in_kl_predicts_methods_that_were_left_out() -> None:
    found = scores(LAWFUL)
    for seen, said in left_out(found).values():
        assert said == pytest.approx(seen, abs=1e-9)
    by_line, by_mean = predictions(found)
    assert by_line < 1e-9 < by_mean
    other = [*LAWFUL, sequence(Arm("loreft r4", "switched"), 0, kept=1.0, kl=9.0)]
    assert left_out(scores(other)).keys() == left_out(found).keys()
    assert all(math.isnan(value) for value in predictions(scores(LAWFUL[:6])))


def test_arms_that_learnt_less_are_not_compared_at_equal_accuracy() -> None:
    found = scores([*LAWFUL, sequence(Arm("bias"), 0, kept=1.0, kl=0.1, learnt=0.5)])
    assert Arm("bias") not in equal_accuracy(found)
    assert equal_accuracy(found)[0] == Arm("loreft r4")


def test_the_table_says_what_cannot_be_seen() -> None:
    text = forgetting_table(scores(LAWFUL))
    assert "With 3 pairs, the most here, p is at least 0.25 before Holm" in text
    assert "| accuracy forgotten | 1 | nan" not in text
    assert "| accuracy forgotten | 1 |" in text
    arms = [row for row in text.split("## Compared")[0].splitlines() if row.startswith(("| l", "| f"))]
    assert len(arms) == 4


def test_arms_are_compared_with_the_reference_of_their_own_remedy_and_with_their_plain_selves() -> None:
    replayed = [sequence(Arm(m, "continue", "replay"), seed, kept=0.9, kl=1.0) for m in METHODS for seed in range(3)]
    found = scores([*LAWFUL, *replayed, sequence(Arm("full", "routed"), 0, kept=1.0, kl=1.0)])
    pairs = comparisons(found)
    plain, remedied = Arm("full"), Arm("full", "continue", "replay")
    assert (plain, Arm(REFERENCE)) in pairs
    assert (remedied, Arm(REFERENCE, "continue", "replay")) in pairs
    assert (remedied, plain) in pairs
    assert (Arm("full", "routed"), plain) in pairs
    assert (Arm(REFERENCE), Arm(REFERENCE)) not in pairs
    one = compare(found, remedied, plain, "forgetting")
    assert one is not None
    by_hand = [found[remedied][block].forgetting - found[plain][block].forgetting for block in found[plain]]
    assert one.difference[0] == pytest.approx(sum(by_hand) / 3)
    assert one.blocks == 3
    assert one.p == pytest.approx(2 / 2**3)
    routed = compare(found, Arm("full", "routed"), plain, "forgetting")
    assert routed is not None
    assert routed.blocks == 1


def test_p_is_corrected_over_what_answers_one_question() -> None:
    none, replay = ((Arm("full", "continue", r), Arm(REFERENCE, "continue", r)) for r in ("none", "replay"))
    made = [
        Comparison(*none, "forgetting", (0.1, 0.0, 0.2), 0.01, 8),
        Comparison(Arm("bias"), none[1], "forgetting", (0.1, 0.0, 0.2), 0.04, 8),
        Comparison(*none, "text", (0.1, 0.0, 0.2), 0.03, 8),
        Comparison(*replay, "forgetting", (0.1, 0.0, 0.2), 0.02, 8),
        Comparison(replay[0], none[0], "forgetting", (0.1, 0.0, 0.2), 0.05, 8),
    ]
    assert adjusted(made) == pytest.approx([0.02, 0.04, 0.03, 0.02, 0.05])


def test_tables_and_figures_are_made_of_the_lines_alone_and_the_same_again(tmp_path: Path) -> None:
    for file, made, write in (
        (tmp_path / "quality.jsonl", QUALITY, quality_command.write),
        (tmp_path / "forgetting.jsonl", LAWFUL, forgetting_command.write),
    ):
        for run in made:
            append(file, run["settings"], run["result"])
        write(file)
        first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        write(file)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    names = {path.name for path in tmp_path.iterdir()}
    assert {"quality-wide.md", "quality-wide.svg"} <= names
    assert {"forgetting-wide-a-b-c.md", "forgetting-wide-a-b-c-loss-rise-kl.svg"} <= names
