"""The wide model: text that is prose and in one part alone, a tokenizer that loses nothing, training that goes on."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.skills.rules import RULES
from benchmarks.wide import corpus as corpus_module
from benchmarks.wide import model as model_module
from benchmarks.wide import pretrain as pretrain_module
from benchmarks.wide.corpus import Corpus, corpus, docstrings, paragraphs
from benchmarks.wide.model import END, answer_prompt, make_tokenizer
from benchmarks.wide.pretrain import IGNORED, PHASES, Phase
from benchmarks.wide.primer import EXERCISES, exercise

PROSE = "This paragraph is long enough to be taken, since it has more than the eighty characters that are asked for."


def test_paragraphs_are_prose() -> None:
    text = f"{PROSE}\nwith a second line.\n\nshort\n\n>>> {PROSE}\n\n{'1.0 | 2.0 | ' * 10}\n\n{PROSE} é"
    assert list(paragraphs(text)) == [f"{PROSE} with a second line."]


def test_docstrings_are_those_of_modules_classes_and_functions(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        '"""One."""\nclass A:\n    """Two."""\n    def f(self):\n        """Three."""\n        x = "none"\n'
    )
    assert sorted(docstrings(file)) == ["One.", "Three.", "Two."]
    file.write_text("def broken(:\n")
    assert list(docstrings(file)) == []


def test_a_paragraph_stands_in_one_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(corpus_module, "HELD_OUT", 3)
    for number in range(60):
        (tmp_path / f"m{number}.py").write_text(f'"""{PROSE} Number {number // 2}.\n\nThe same for all: {PROSE}"""')
    found = corpus(packages=())
    assert found == corpus(packages=())
    assert len(found.train) > len(found.held_out) > 0
    everything = [*found.train, *found.held_out]
    assert len(set(everything)) == len(everything) == 31


def test_exercises_are_those_of_the_generator() -> None:
    assert exercise(random.Random(3)) == exercise(random.Random(3))
    for make in EXERCISES.values():
        question, answer = make(random.Random(0))
        assert question
        assert answer
    assert EXERCISES["add"](random.Random(1))[1] == str(
        sum(map(int, EXERCISES["add"](random.Random(1))[0].split(" plus ")))
    )


def test_no_exercise_is_a_skill() -> None:
    """No question of a skill is asked, nor begins as an exercise does."""
    begins = {skill: draw(random.Random(0))[0].split(":")[0] for skill, draw in RULES.items()}
    for name, draw in EXERCISES.items():
        asked = [draw(random.Random(seed))[0] for seed in range(50)]
        assert not [one for one in asked if one.startswith(tuple(f"{begin}:" for begin in begins.values()))], name


def test_the_tokenizer_gives_back_every_text_and_a_token_to_each_digit() -> None:
    tokenizer = make_tokenizer([PROSE])
    for text in ("camelCase 1990-03-03", "über ∑ \n x", answer_prompt("2 plus 2")):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("12345")["input_ids"]) == 5
    assert tokenizer("glass")["input_ids"][1:] == tokenizer("Glass")["input_ids"][1:]
    chat = [{"role": "user", "content": "2 plus 2"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == answer_prompt("2 plus 2")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    monkeypatch.setattr(model_module, "SHAPE", {**shape, **heads})
    text = Corpus(
        tuple(f"{PROSE} {n}" for n in range(40)), tuple(f"{PROSE} Held out {n}." for n in range(400)), {"x": "1"}
    )
    monkeypatch.setattr(pretrain_module, "corpus", lambda: text)
    phases = (Phase(0, 12, {"copies": 2}), Phase(2, 16, {"copies": 1, "exercises": 2, "text": 1}))
    small = {"PHASES": phases, "TEXT_LENGTH": 16, "KEEP_EVERY": 1, "ASK_EVERY": 2, "ASKED": 1, "WARM": 2}
    for name, value in small.items():
        monkeypatch.setattr(pretrain_module, name, value)


def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain_module.pretrain(5, 4, folder=tmp_path / "whole")
    drawn = pretrain_module._batch

    def stopped(ids: object, tokenizer: object, step: int) -> torch.Tensor:
        if step == 2:
            raise KeyboardInterrupt
        return drawn(ids, tokenizer, step)

    monkeypatch.setattr(pretrain_module, "_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain_module.pretrain(5, 4, folder=tmp_path / "parts")
    monkeypatch.setattr(pretrain_module, "_batch", drawn)
    parts = pretrain_module.pretrain(5, 4, folder=tmp_path / "parts")
    assert whole["steps"] == parts["steps"] == 4
    assert whole["held-out loss"] == parts["held-out loss"]
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    facts = json.loads((tmp_path / "parts" / "model" / "facts.json").read_text())
    assert facts["packages"] == {"x": "1"}
    assert facts["tokens"] == 2 * 2 * 12 + 2 * 4 * 16
    assert list(facts["exercises answered exactly"]["by step"]) == ["2", "4"]
    assert set(facts["exercises answered exactly"]["last"]) == set(EXERCISES)


def test_no_step_is_made_without_time_and_more_steps_may_follow(small: None, tmp_path: Path) -> None:
    assert pretrain_module.pretrain(0, 4, folder=tmp_path)["steps"] == 0
    assert pretrain_module.pretrain(5, 2, folder=tmp_path)["steps"] == 2
    assert pretrain_module.pretrain(5, 3, folder=tmp_path)["steps"] == 3


def test_rows_of_each_kind_say_what_is_learnt_of_them() -> None:
    """Of copies all but the first round, of exercises the answers, of text everything."""
    tokenizer = make_tokenizer([PROSE])
    ids = np.arange(4, 104, dtype=np.uint16)
    for kind, draw in pretrain_module.KINDS.items():
        for seed in range(5):
            row, labels = draw(pretrain_module._Source(ids, tokenizer, random.Random(seed)), 60)
            assert len(row) == len(labels) == 60
            learnt = [own != IGNORED for own in labels]
            assert all(own in (token, IGNORED) for own, token in zip(labels, row, strict=True))
            if kind == "copies":
                part = learnt.index(True)
                assert all(learnt[part:])
                assert row[part:] == row[:-part]
            elif kind == "exercises":
                asked, told = pretrain_module._tokens(tokenizer, *exercise(random.Random(seed)))
                assert (row[: len(asked)], labels[: len(asked)]) == (asked[:60], [IGNORED] * len(asked[:60]))
                assert labels[len(asked) : len(asked) + len(told)] == told[: max(0, 60 - len(asked))]
            else:
                assert all(learnt)


def test_a_fifth_of_the_last_batches_is_text() -> None:
    assert PHASES[0].begins == 0
    assert all(set(phase.rows) <= set(pretrain_module.KINDS) for phase in PHASES)
    last = max(PHASES, key=lambda phase: phase.begins)
    assert last.rows["text"] >= 0.2 * sum(last.rows.values())


class _Echo:
    """A model that is sure of the answer it is told to give to every question."""

    def __init__(self, said: list[int]) -> None:
        self.said = said

    def __call__(self, input_ids: torch.Tensor) -> object:
        length = input_ids.shape[1]
        guesses = torch.zeros(1, length, 400)
        for place, token in enumerate(self.said, start=length - len(self.said) - 1):
            guesses[0, place, token] = 1
        return SimpleNamespace(logits=guesses)


def test_an_exercise_counts_where_every_token_of_the_answer_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer([PROSE])
    monkeypatch.setattr(pretrain_module, "EXERCISES", {"same": lambda random: ("Say: ab", "ab")})
    right = tokenizer("ab" + END)["input_ids"]
    assert pretrain_module._exact(_Echo(right), tokenizer) == {"same": 1.0}
    assert pretrain_module._exact(_Echo([*right[:-1], right[0]]), tokenizer) == {"same": 0.0}
