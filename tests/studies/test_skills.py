"""Skills: the same data for the same seed, sets without a common prompt, an exact metric, measured overlap."""

from __future__ import annotations

import datetime
import json
import random
import re
import tarfile
from pathlib import Path

import pytest

from benchmarks.skills import bigbench
from benchmarks.skills.contamination import contamination, ngrams, overlap
from benchmarks.skills.registry import SKILLS, skill
from benchmarks.skills.rules import CODE_NAMES, RULES
from benchmarks.skills.skill import Example, SkillError, Splits, draw_splits, share_splits
from benchmarks.skills.words import ANIMALS
from benchmarks.wide.primer import EXERCISES

SIZES = (40, 10, 20)


def camel(text: str) -> str:
    first, *rest = text.removeprefix("Rename: ").split("_")
    return first + "".join(word[0].upper() + word[1:] for word in rest)


def clock(text: str) -> str:
    return datetime.datetime.strptime(text, "Clock: %I:%M %p").strftime("%H:%M")


def loud(text: str) -> str:
    words = text.removeprefix("Loud: ").split()
    words[1::2] = [word.upper() for word in words[1::2]]
    return " ".join(words)


def code_names(text: str) -> str:
    return re.sub(r"\w+", lambda found: CODE_NAMES.get(found[0], found[0]), text.removeprefix("Code: "))


def inventory(text: str) -> str:
    parts = [part.split(" ") for part in text.removeprefix("List: ").split(", ")]
    return "; ".join(f"{thing}: {number}" for number, thing in parts[::-1])


def prefix(text: str) -> str:
    a, first, b, second, c = re.fullmatch(r"Prefix: \((\w) (.) (\w)\) (.) (\w)", text).groups()  # type: ignore[union-attr]
    return " ".join((second, first, a, b, c))


AGAIN = {
    "date": lambda text: datetime.datetime.strptime(text, "Date: %d %B %Y").strftime("%Y-%m-%d"),
    "clock": clock,
    "camel": camel,
    "prefix": prefix,
    "code_names": code_names,
    "polite": lambda text: f"Would you {text.removeprefix('Style: ')}, please?",
    "loud": loud,
    "inventory": inventory,
}
"""Every rule a second time, from the prompt alone."""


def test_every_rule_has_its_second_formulation() -> None:
    assert set(AGAIN) == set(RULES)
    assert set(CODE_NAMES) == set(ANIMALS)
    assert len(set(CODE_NAMES.values())) == len(ANIMALS)


@pytest.mark.parametrize("name", RULES)
def test_answers_follow_from_prompts_by_the_rule(name: str) -> None:
    splits = skill(name).splits(SIZES, seed=3)
    for example in (*splits.train, *splits.validation, *splits.held_out):
        assert example.answer == AGAIN[name](example.prompt)


@pytest.mark.parametrize("name", RULES)
def test_sets_have_their_sizes_share_no_prompt_and_are_those_of_the_seed(name: str) -> None:
    state = random.getstate()
    one, again, other = (skill(name).splits(SIZES, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert random.getstate() == state
    assert (len(one.train), len(one.validation), len(one.held_out)) == SIZES
    prompts = [example.prompt for part in (one.train, one.validation, one.held_out) for example in part]
    assert len(set(prompts)) == sum(SIZES)


@pytest.mark.parametrize("name", [name for name, one in SKILLS.items() if one.source == "reasoning-gym"])
def test_tasks_of_reasoning_gym_take_their_own_answers_and_no_others(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    state = random.getstate()
    assert len(skill(name).splits((300, 20, 20), seed=2).train) == 300  # of more than one set
    splits = skill(name).splits((12, 4, 4), seed=1)
    assert random.getstate() == state
    assert splits == skill(name).splits((12, 4, 4), seed=1)
    for example in splits.held_out:
        assert skill(name).score(example.answer, example) == 1
        assert skill(name).score(f"{example.answer}9", example) == 0


def test_a_rule_takes_its_answer_with_blanks_at_the_ends_and_nothing_else() -> None:
    example = Example("Date: 3 March 1990", "1990-03-03")
    score = skill("date").score
    assert score(" 1990-03-03\n", example) == 1
    assert [score(text, example) for text in ("1990-3-3", "1990-03-03.", "")] == [0, 0, 0]


def test_exercises_of_the_wide_model_are_no_skills() -> None:
    generator = random.Random(0)
    asked = [make(generator)[0] for make in EXERCISES.values() for _ in range(20)]
    beginnings = tuple(f"{skill(name).splits((1, 1, 1)).train[0].prompt.split(':')[0]}:" for name in RULES)
    assert not [text for text in asked if text.startswith(beginnings)]


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(SkillError, match="is no skill"):
        skill("juggling")
    with pytest.raises(SkillError, match="sizes"):
        skill("date").splits((1, 0, 1))
    with pytest.raises(SkillError, match="3 were drawn"):
        draw_splits("few", (Example(str(n % 3), "") for n in range(10_000)), (2, 1, 1))
    with pytest.raises(SkillError, match="ask for fewer"):
        share_splits("few", [Example("a", "1"), Example("a", "2")], (1, 1, 1), 0)


def test_overlap_is_counted_on_prompts_answers_and_n_grams() -> None:
    train = [Example("Say one two", "three"), Example("other", "words here")]
    asked = [Example("say  one two", "three"), Example("new", "Three"), Example("x y z", "w")]
    assert overlap(train, asked) == {
        "prompts": pytest.approx(1 / 3),
        "answers": pytest.approx(2 / 3),
        "ngrams": pytest.approx((1 + 0 + 0) / 3),
    }
    assert ngrams("A b, c", 2) == [("a", "b"), ("b", ","), (",", "c")]


def test_rule_made_skills_hold_nothing_of_each_others_prompts() -> None:
    splits = {name: skill(name).splits((100, 10, 40)) for name in RULES}
    found = contamination(splits)
    assert len(found) == len(RULES) ** 2
    assert all(one["prompts"] == 0 for one in found.values())
    same = {"a": Splits((Example("p", "q"),), (), (Example("p", "q"),))}
    assert contamination(same)["a", "a"]["prompts"] == 1


def test_big_bench_tasks_are_read_from_their_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = {
        "name": "made up",
        "example_input_prefix": "\nQ: ",
        "example_output_prefix": "\nA: ",
        "examples": [{"input": f"word {n}", "target": [f"answer {n}", "other"]} for n in range(8)]
        + [{"input": f"choose {n}", "target_scores": {"yes": 0, "no": 1}} for n in range(4)],
    }
    folder = tmp_path / bigbench.RELEASE / "bigbench" / "benchmark_tasks" / "tense"
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps(task))
    (tmp_path / "downloads").mkdir()
    with tarfile.open(tmp_path / "downloads" / bigbench.ARCHIVE, "w:gz") as archive:
        archive.add(tmp_path / bigbench.RELEASE, bigbench.RELEASE)
    monkeypatch.setattr(bigbench, "cache_folder", lambda: tmp_path)
    splits = skill("tense").splits((6, 3, 3), seed=2)
    found = {example.prompt: example.answer for part in vars(splits).values() for example in part}
    assert found["Q: word 3\nA:"] == "answer 3"
    assert found["Q: choose 2\nchoice: no\nchoice: yes\nA:"] == "no"
    assert len(found) == 12
    with pytest.raises(SkillError, match="holds no"):
        skill("hyperbaton").splits((1, 1, 1))
    with pytest.raises(SkillError, match="no target"):
        bigbench.examples_of({"examples": [{"input": "x"}]})
