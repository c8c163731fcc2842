"""Further tables of the studies: one thing changed at a time, what tells forgetting, agreement of bases, routers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.forgetting.agree import agreement
from benchmarks.forgetting.kl import of_kl, predictions
from benchmarks.forgetting.plan import Arm
from benchmarks.forgetting.routes import routes
from benchmarks.forgetting.scores import scores
from benchmarks.forgetting.small import small
from benchmarks.quality.ablation import CHANGES, ablation, effects
from benchmarks.quality.moved import moved
from benchmarks.quality.report import lines
from benchmarks.study.methods import METHODS
from studies.test_report import LAWFUL, quality, sequence


def runs_of(method: str, levels: list[float]) -> list[dict[str, Any]]:
    return [quality(method, skill, seed, level, 10) for skill in "ab" for seed, level in enumerate(levels)]


def test_every_change_names_two_methods_that_there_are() -> None:
    for change in CHANGES:
        assert {change.method, change.against} <= METHODS.keys()
        assert change.method != change.against
    assert len({change.asked for change in CHANGES}) == len(CHANGES)


def test_an_effect_is_the_mean_of_paired_differences_over_common_blocks_alone() -> None:
    made = [
        *runs_of("loreft r4", [0.5, 0.6, 0.9]),
        *runs_of("loreft r4 all", [0.1]),
        *runs_of("loreft r1", [0.4, 0.7]),
    ]
    told = effects(made)
    assert {change.method for change in told} == {"loreft r1"}  # "all" stands against "prompt", which was not run
    (found,) = told.values()
    assert found["accuracy"].difference[0] == pytest.approx((-0.1 + 0.1) / 2)
    assert found["accuracy"].blocks == 4
    assert "rank 1 | loreft r1 | loreft r4 |" in ablation(made)
    assert ablation(runs_of("loreft r1", [0.5])) == ""
    assert effects([]) == {}


def test_p_of_a_change_is_holms_over_all_changes() -> None:
    alone = effects([*runs_of("loreft r4", [0.5, 0.5]), *runs_of("loreft r1", [0.3, 0.4])])
    both = effects(
        [
            *runs_of("loreft r4", [0.5, 0.5]),
            *runs_of("loreft r1", [0.3, 0.4]),
            *runs_of("loreft r16", [0.3, 0.4]),
        ]
    )
    first = next(iter(alone.values()))["accuracy"].p
    assert first == pytest.approx(2 / 2**4)
    assert [found["accuracy"].p for found in both.values()] == pytest.approx([2 * first, 2 * first])


def test_a_law_in_what_was_learnt_is_found_by_that_line_and_not_by_the_others() -> None:
    made = [
        sequence(Arm(method), 0, kept=0.0, kl=kl, learnt=learnt)
        for method, kl, learnt in (("loreft r4", 3, 0.2), ("red", 1, 0.5), ("lora r1 qv", 2, 0.7), ("full", 2.5, 0.9))
    ]
    found = scores(made)
    assert predictions(found, by="learnt")[0] < 1e-9 < predictions(found, by="KL")[0]
    assert math.isnan(predictions(found, by="parameters")[0])  # all train one
    row = next(line for line in of_kl(found).splitlines() if line.startswith("| accuracy forgotten"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == "1"
    assert cells[3] == "unknown"


def test_bases_that_rank_arms_alike_agree_and_reversed_ones_do_not() -> None:
    one, other = scores(LAWFUL), scores(LAWFUL)
    assert "| accuracy forgotten | 1.00 (4 arms) | 1.00 (4 arms) |" in agreement({"upper": one, "slim": other})
    arms = list(one)
    reversed_ = dict(zip(reversed(arms), [one[arm] for arm in arms], strict=True))
    assert "| accuracy forgotten | -1.00 (4 arms)" in agreement({"upper": one, "slim": reversed_})
    assert "both bases: 3." in agreement({"upper": one, "slim": other})
    fewer = {
        arm: {block: blocks[block] for block in list(blocks)[: 1 + (place > 0)]}
        for place, (arm, blocks) in enumerate(one.items())
    }
    assert "both bases: 1." in agreement({"upper": one, "slim": fewer})
    assert agreement({"upper": one}) == agreement({"upper": one, "slim": {arms[0]: one[arms[0]]}}) == ""


def test_routers_are_told_with_what_they_cost() -> None:
    run = sequence(Arm("loreft r4", "switched"), 0, kept=1.0, kl=1.0)
    run["result"]["routed"] = {"router": 0.75, "prefills": 1, "seconds": 0.25}
    run["result"]["merged"] = {"weights": [0.0, 0.5, 1.0]}
    other = {**run, "result": {**run["result"], "merged": {"weights": [1.0, 0.5, 1.0]}}}
    text = routes([run, other])
    assert "| loreft r4 | 3 | 0.750 [0.750, 0.750] | 1 | 0.250 | 0.50, 0.50, 1.00 |" in text
    assert routes(LAWFUL) == ""


def test_the_small_study_is_held_against_the_whole_one() -> None:
    def forgets(arm: Arm, kept: dict[int, float]) -> list[dict[str, Any]]:
        return [
            {**run, "settings": {**run["settings"], "order": order}}
            for seed, level in kept.items()
            for order in (["a", "b", "c"], ["c", "b", "a"])
            for run in [sequence(arm, seed, kept=level, kl=1.0)]
        ]

    reference = forgets(Arm("lora r8 linear"), {0: 0.5, 1: 0.5, 2: 0.5})
    alike = small(scores([*reference, *forgets(Arm("full"), {0: 0.9, 1: 0.9, 2: 0.9})]))
    assert ", 0 contrary" in alike
    row = next(line for line in alike.splitlines() if "accuracy forgotten" in line)
    assert row.endswith("| -0.480, less (6) | -0.480, less (2) |")
    contrary = small(scores([*reference, *forgets(Arm("full"), {0: 0.4, 1: 0.9, 2: 0.9})]))
    assert "| -0.288, less (6) | +0.095, more (2) |" in contrary
    assert small(scores([run for run in reference if run["settings"]["seed"] == 0])) == ""


def test_what_tells_how_far_text_moves_is_told_of_enough_methods() -> None:
    names = ["loreft r4", "loreft r1", "red", "lora r8 linear", "full"]
    made = []
    for place, (name, accuracy) in enumerate(zip(names, (0.5, 0.1, 0.3, 0.2, 0.4), strict=True)):
        run = quality(name, "a", 0, accuracy, 10 ** (place + 1))
        run["result"]["text loss rise"], run["result"]["kl"] = math.log(10.0) * place, 1.0
        made.append(run)
    rows = {row.split(" | ")[0]: row for row in moved(lines(made)).splitlines() if row.startswith("| ")}
    assert rows["| parameters"] == "| parameters | 1.00 | 0.00 | 3.45 |"
    assert rows["| KL"].startswith("| KL | unknown | unknown |")
    assert "| accuracy | -0.10 |" in rows["| accuracy"]
    assert moved(lines(made[:4])) == ""
