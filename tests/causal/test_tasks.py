"""MIB's tasks: what their causal models say against the prompts' texts alone, and what a reader makes of a prompt."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from peft_reft.causal import Answers, CausalModel, Pair
from peft_reft.causal.tasks import TASKS, Task, TaskReader
from peft_reft.hub_format.errors import CausalModelError
from tools.base_model import ensure_base_model, package_gaps

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)


def ioi_by_text(text: str) -> dict[str, Any]:
    """The name that stands there once, and whether it is the first of the two."""
    _, *names = re.findall(r"[A-Z][a-z]+", text)  # the sentence's first word is no name
    (alone,) = [name for name in names if names.count(name) == 1]
    return {"position": int(names.index(alone) == 1), "token": alone, "answer": alone}


def mcqa_by_text(text: str) -> dict[str, Any]:
    colour = re.search(r" is (\w+)\.", text)
    lines = re.findall(r"^([A-Z])\. (\w+)$", text, re.MULTILINE)
    assert colour is not None
    assert len(lines) == 4
    pointer = [told for _, told in lines].index(colour[1])
    return {"pointer": pointer, "answer": lines[pointer][0]}


def arithmetic_by_text(text: str) -> dict[str, Any]:
    one, two = map(int, re.findall(r"(\d+)\+(\d+)=$", text)[0])
    for shot, told in re.findall(r"^(\d+\+\d+)=(\d+)$", text, re.MULTILINE):
        assert sum(map(int, shot.split("+"))) == int(told)
    return {"carry": int((one + two) // 10 != one // 10 + two // 10), "answer": int(str(one + two)[0])}


BY_TEXT = {"ioi": ioi_by_text, "mcqa": mcqa_by_text, "arithmetic": arithmetic_by_text}


@every_task
def test_the_causal_model_says_what_the_text_says(task: Task) -> None:
    found = set()
    for values in task.inputs(200, seed=3):
        run, told = task.causal_model.run(values), BY_TEXT[task.name](task.prompt(values))
        assert told.items() <= run.items()
        assert run[task.causal_model.output] in task.answers
        found.add(run[task.causal_model.output])
    assert len(found) > len(task.answers) / 2
    assert set(task.variables) <= set(task.causal_model.functions)


@every_task
def test_what_is_drawn_follows_the_seed(task: Task) -> None:
    assert task.inputs(20, seed=1) == task.inputs(20, seed=1) != task.inputs(20, seed=2)
    bases, variable = task.inputs(20, seed=1), next(iter(task.variables))
    for name in task.counterfactuals:
        pairs = [task.pairs(variable, bases, counterfactual=name, seed=seed) for seed in (1, 1, 2)]
        assert pairs[0] == pairs[1]
        assert [pair.base for pair in pairs[0]] == bases
        assert (pairs[0] == pairs[2]) == (name in ("order", "subject"))  # these draw nothing


SAME = {
    ("ioi", "order"): {"position": False, "token": True},
    ("ioi", "subject"): {"position": False, "token": False},
    ("ioi", "names"): {"position": True, "token": False},
    ("mcqa", "position"): {"pointer": False, "answer": False},
    ("mcqa", "letters"): {"pointer": True, "answer": False},
    ("mcqa", "both"): {"pointer": False, "answer": False},
    ("arithmetic", "carry"): {"carry": False, "tens": True},
}
"""Counterfactual → whether base and source agree in each variable."""


@pytest.mark.parametrize(("name", "counterfactual"), SAME)
def test_a_counterfactual_changes_what_it_says(name: str, counterfactual: str) -> None:
    task = TASKS[name]
    for variable in task.variables:
        for pair in task.pairs(variable, task.inputs(60, seed=4), counterfactual=counterfactual, seed=5):
            base, source = (task.causal_model.run(each) for each in (pair.base, pair.sources[variable]))
            assert (base[variable] == source[variable]) == SAME[name, counterfactual][variable]


def test_the_letters_stay_where_the_right_choice_moves() -> None:
    task = TASKS["mcqa"]
    for pair in task.pairs("pointer", task.inputs(30, seed=4), counterfactual="position", seed=5):
        label = pair.label(task.causal_model)
        assert label == task.causal_model.run(pair.sources["pointer"])["answer"]
        letters = [[each[f"letter{n}"] for n in range(4)] for each in (pair.base, pair.sources["pointer"])]
        assert letters[0] == letters[1]
        colours = [sorted(each[f"choice{n}"] for n in range(4)) for each in (pair.base, pair.sources["pointer"])]
        assert colours[0] == colours[1]


def test_the_position_of_a_source_points_at_a_name_of_the_base() -> None:
    task = TASKS["ioi"]
    for pair in task.pairs("position", task.inputs(40, seed=6), counterfactual="random", seed=7):
        names = [pair.base["first"], pair.base["second"]]
        wanted = names[task.causal_model.run(pair.sources["position"])["position"]]
        assert pair.label(task.causal_model) == wanted


def test_an_unknown_name_is_refused() -> None:
    task = TASKS["ioi"]
    with pytest.raises(CausalModelError, match="position, token"):
        task.pairs("answer", task.inputs(1, seed=0), counterfactual="order", seed=0)
    with pytest.raises(CausalModelError, match="random, order, subject, names"):
        task.pairs("token", task.inputs(1, seed=0), counterfactual="flip", seed=0)
    with pytest.raises(CausalModelError, match="last, subject, asked"):
        TaskReader(task, LlamaForCausalLM(CONFIG), tokenizer_of(task), place="first")


CONFIG = LlamaConfig(
    vocab_size=120, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
)


def tokenizer_of(task: Task) -> PreTrainedTokenizerFast:
    """Words, signs and digits are tokens."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    texts = [*map(task.prompt, task.inputs(300, seed=0)), *task.answers.values()]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["<pad>", *words])}, unk_token="<pad>"))
    raw.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")


def reader_of(task: Task, place: str = "last") -> TaskReader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(CONFIG).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.4)
    return TaskReader(task, model, tokenizer_of(task), place=place, batch_size=7)


@every_task
def test_a_row_says_where_a_place_is(task: Task) -> None:
    (values,) = task.inputs(1, seed=8)
    run = task.causal_model.run(values)
    expected = {
        "ioi": {"last": "to", "subject": values.get("again"), "asked": run.get("token")},
        "mcqa": {"last": ":", "letter": run.get("answer")},
        "arithmetic": {"last": "=", "second": str(values.get("ones2")), "first": str(values.get("ones1"))},
    }[task.name]
    assert set(expected) == set(task.places)
    for place, word in expected.items():
        reader = reader_of(task, place)
        row = reader.row(values)
        assert reader.tokenizer.decode([row["input_ids"][row["at"]]]) == word
        if place == "subject":
            assert row["at"] == max(n for n, t in enumerate(row["input_ids"]) if t == row["input_ids"][row["at"]])


@every_task
def test_pairs_are_kept_where_base_and_source_are_answered_rightly(task: Task) -> None:
    reader, inputs = reader_of(task), task.inputs(160, seed=9)
    tokens = {value: reader.tokenizer(text)["input_ids"] for value, text in task.answers.items()}

    def answer(values: Any) -> Any:
        """Alone, without padding: the likeliest of the answers' tokens."""
        with torch.no_grad():
            logits = reader.network.model(torch.tensor([reader.tokenizer(task.prompt(values))["input_ids"]])).logits
        return max(tokens, key=lambda value: float(logits[0, -1, tokens[value][0]]))

    wanted = [answer(values) == BY_TEXT[task.name](task.prompt(values))["answer"] for values in inputs]
    assert reader.right(inputs) == wanted
    assert any(wanted)
    assert not all(wanted)
    variable = next(iter(task.variables))
    pairs = [Pair(base, {variable: source}) for base, source in zip(inputs[:80], inputs[80:], strict=True)]
    pairs.append(Pair(inputs[wanted.index(True)], {variable: inputs[wanted.index(True)]}))
    good = [*(one and other for one, other in zip(wanted[:80], wanted[80:], strict=True)), True]
    kept = reader.kept(pairs)
    assert kept == [pair for pair, right in zip(pairs, good, strict=True) if right]
    assert reader.kept([]) == []
    (item, *_) = reader.dataset(kept[-1:])
    assert item["base"] == reader.row(kept[-1].base)
    assert item["label"] == kept[-1].label(task.causal_model)


def test_a_reader_takes_answers_as_they_are_and_a_task_of_ones_own() -> None:
    model = CausalModel({"V": lambda P: P}, inputs={"P": (0, 1)})
    own = Task("own", model, {"V": "P"}, lambda v: f"{v['P']} =", {0: "0", 1: "1"}, {"last": lambda v, t: len(t)},
               lambda generator: {"P": generator.randrange(2)}, {"same": lambda generator, base: base})  # fmt: skip
    network = Answers(LlamaForCausalLM(CONFIG), {0: 5, 1: 6})
    reader = TaskReader(own, network, tokenizer_of(own))
    assert reader.network is network
    assert reader.row({"P": 1})["at"] == 1


@pytest.mark.slow
def test_smollm_names_the_indirect_object_and_a_search_finds_it_at_the_last_token() -> None:
    tasks = pytest.importorskip("examples.causal.tasks")
    if package_gaps():
        pytest.skip(f"the small base model is not here: {package_gaps()}")
    source = ensure_base_model()
    whole, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    upper = tasks.Upper(whole, TASKS["ioi"], tokenizer, 28)
    inputs = TASKS["ioi"].inputs(24, seed=12)
    right = upper.reader.right(inputs)
    assert right == TaskReader(TASKS["ioi"], whole, tokenizer).right(inputs)  # the blocks below are the same
    assert sum(right) >= 20
    bases = [values for values, good in zip(inputs, right, strict=True) if good]
    found = tasks.by_ways(upper, 28, "token", tasks.split(upper, "token", bases))
    assert found["nothing"] < 0.5
    assert found["whole vector"] > 0.8
