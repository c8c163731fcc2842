"""Data that says little of its prompts: plain text, prompts of one token, cut documents, several turns."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close
from trl import SFTTrainer

from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.integrations import ReftSFTTrainer

from .reading import LAYOUTS, documents_of, edited_tokens
from .tiny_sft import PAIRS, encoded, first_batch, losses, pairs, reft, tokenizer, trainer_for


def assert_learns(trainer: SFTTrainer) -> None:
    found = losses(trainer)
    assert found[-1] < found[0]


@pytest.mark.parametrize("plain", ["completion_only_loss", "text"])
def test_without_a_boundary_suffixes_are_refused_and_prefixes_train(tmp_path: Path, plain: str) -> None:
    fields: dict[str, Any] = {"completion_only_loss": False} if plain == "completion_only_loss" else {}
    data = pairs() if fields else Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in PAIRS])
    for spec in ("l1", "f1+l1", "prompt", "p[0:2]"):
        with pytest.raises(PromptBoundaryError, match="completion-only loss"):
            losses(trainer_for(tmp_path, data, config=reft(positions=spec), **fields))
    for layout in LAYOUTS.values():
        trainer = trainer_for(
            tmp_path, data, config=reft(positions="f3", layers_to_transform=[0]), **{**fields, **layout}
        )
        batch = first_batch(trainer)
        starts = {(row, at + column) for row, at, _ in documents_of(batch) for column in range(3)}
        assert edited_tokens(trainer.model, batch) == starts
        assert_learns(trainer)
    trainer = trainer_for(tmp_path, data, config=reft(positions="all", layers_to_transform=[0]), **fields)
    batch = first_batch(trainer)
    assert edited_tokens(trainer.model, batch) == {tuple(at) for at in batch["attention_mask"].nonzero().tolist()}


def test_a_prompt_of_one_token_is_refused_when_packed(tmp_path: Path) -> None:
    """TRL masks the first label of every packed document, so one unsupervised token says nothing."""
    rows = [{"prompt": "tell", "completion": " me one thing"}, *PAIRS]
    losses(trainer_for(tmp_path, pairs(rows), config=reft(positions="l1")))
    for layout in ("padding_free", "packed"):
        with pytest.raises(PromptBoundaryError, match="one token counts as none"):
            losses(trainer_for(tmp_path, pairs(rows), config=reft(positions="l1"), **LAYOUTS[layout]))


def test_documents_longer_than_a_packed_row_keep_their_prompts(tmp_path: Path) -> None:
    """bfd cuts the end off; a document that is all prompt then trains nothing and is no error."""
    trainer = trainer_for(
        tmp_path, config=reft(positions="f1+l2", layers_to_transform=[0]), packing=True, max_length=7
    )
    assert any(set(labels) == {-100} for labels in trainer.train_dataset["labels"])
    for batch in trainer.get_train_dataloader():
        starts = batch["cu_seq_lens_q"].tolist()
        expected = set()
        for at, end in pairwise(starts):
            ids = batch["input_ids"][0, at:end].tolist()
            length = min(next(length for whole, length in encoded() if whole[: end - at] == ids), end - at)
            expected |= {(0, at), (0, at + length - 1), (0, at + length - 2)}
        assert edited_tokens(trainer.model, dict(batch)) == expected
    losses(trainer)


def test_keep_start_leaves_prompts_whole(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, config=reft(positions="f1+l2", layers_to_transform=[0]), max_length=8)
    batch = first_batch(trainer)
    assert len(batch["input_ids"]) == 3  # the prompt of 8 leaves nothing to train on: TRL drops the row
    expected = set()
    for row, ids in enumerate(batch["input_ids"].tolist()):
        length = next(length for whole, length in encoded() if whole[:8] == ids)
        expected |= {(row, 0), (row, length - 1), (row, length - 2)}
    assert edited_tokens(trainer.model, batch) == expected


def test_keep_end_counts_from_what_remains(tmp_path: Path) -> None:
    fields = {"max_length": 9, "truncation_mode": "keep_end"}
    trainer = trainer_for(tmp_path, config=reft(positions="f1+l2", layers_to_transform=[0]), **fields)
    batch = first_batch(trainer)
    expected = set()
    for row, ids in enumerate(batch["input_ids"].tolist()):
        whole, length = next((whole, length) for whole, length in encoded() if whole[-9:] == [i for i in ids if i])
        remains = length - max(0, len(whole) - 9)
        expected |= {(row, 0), (row, remains - 1), (row, remains - 2)}
    assert edited_tokens(trainer.model, batch) == expected
    with pytest.raises(PromptBoundaryError, match="need a prompt"):  # six tokens are left of 4 + 7: no prompt
        losses(trainer_for(tmp_path, config=reft(positions="l1"), max_length=6, truncation_mode="keep_end"))


def test_of_several_assistant_turns_the_first_ends_the_prompt(tmp_path: Path) -> None:
    turns = ["what is red ?", "apple", "and green ?", "leaf and grass"]
    roles = ["user", "assistant"] * 2
    data = Dataset.from_list([{"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]}])
    trainer = trainer_for(
        tmp_path, data, config=reft(positions="f1+l2", layers_to_transform=[0]), assistant_only_loss=True
    )
    batch = first_batch(trainer)
    words = tokenizer().convert_ids_to_tokens(batch["input_ids"][0])
    supervised = [word for word, label in zip(words, batch["labels"][0].tolist(), strict=True) if label != -100]
    assert supervised == ["apple", "<|end|>", "leaf", "and", "grass", "<|end|>"]
    end = words.index("apple")
    assert words[end - 1] == "<|assistant|>"
    assert edited_tokens(trainer.model, batch) == {(0, 0), (0, end - 2), (0, end - 1)}
    assert_learns(trainer)


TURNS = [
    ["what is red ?", "apple", "and green ?", "leaf and grass"],
    ["name one thing that is white", "snow and milk", "and one that is pink", "rose", "what is grey ?", "a stone"],
    ["tell me the colour of coal", "black"],
]


def talks() -> Dataset:
    """Conversations of two, three and one turn."""
    roles = ["user", "assistant"] * 3
    return Dataset.from_list(
        [
            {"messages": [{"role": role, "content": text} for role, text in zip(roles, talk, strict=False)]}
            for talk in TURNS
        ]
    )


def answers_of(talk: list[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids of a conversation, where every answer starts and stops), made without TRL."""
    ids: list[int] = []
    answers = []
    for number, text in enumerate(talk):
        words = ["<|assistant|>" if number % 2 else "<|user|>", *text.split(), "<|end|>"]
        if number % 2:
            answers.append((len(ids) + 1, len(ids) + len(words)))
        ids += tokenizer().convert_tokens_to_ids(words)
    return ids, answers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("turns", ["first", "each"])
def test_suffixes_of_turns_stand_before_answers(tmp_path: Path, turns: str, layout: str) -> None:
    check_turns(tmp_path, turns, layout)


def check_turns(folder: Path, turns: str, layout: str) -> None:
    """`f1+l2` edits the ends of the first prompt, or of the user's part of every turn."""
    fields = {"assistant_only_loss": True, **LAYOUTS[layout]}
    config = reft(positions="f1+l2", turns=turns, layers_to_transform=[0])
    trainer = trainer_for(folder, talks(), config=config, **fields)
    batch = first_batch(trainer)
    known = {tuple(ids): answers for ids, answers in map(answers_of, TURNS)}
    expected, documents = set(), 0
    for row, line in enumerate(batch["input_ids"].tolist()):
        for ids, answers in known.items():
            for at in (at for at in range(len(line)) if tuple(line[at : at + len(ids)]) == ids):
                documents += 1
                starts = [0, *(stop for _, stop in answers[:-1])]
                for start, (stop, _) in list(zip(starts, answers, strict=True))[: 1 if turns == "first" else None]:
                    expected |= {(row, at + column) for column in (start, stop - 2, stop - 1)}
    assert documents == len(TURNS)
    assert edited_tokens(trainer.model, batch) == expected
    found = losses(trainer_for(folder, talks(), config=config, **fields))
    assert found[-1] < found[0]


@pytest.mark.parametrize("kind", [SFTTrainer, ReftSFTTrainer])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_every_turn_are_those_of_the_conversations_one_by_one(
    tmp_path: Path, layout: str, kind: type[SFTTrainer]
) -> None:
    """The reference: one conversation a forward, without labels, positions by hand."""
    fields = {"assistant_only_loss": True, **LAYOUTS[layout]}
    config = reft(positions="f1+l2", turns="each", share_weights=False, layers_to_transform=[0, 1])
    trainer = trainer_for(tmp_path, talks(), kind=kind, config=config, **fields)
    model = trainer.model.train()
    loss = trainer.compute_loss(model, first_batch(trainer))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = [answers_of(talk) for talk in TURNS]
    total = sum(stop - start for _, answers in rows for start, stop in answers)
    expected: Any = 0
    for ids, answers in rows:
        starts = [0, *(stop for _, stop in answers[:-1])]
        ends = [column for start, _ in answers for column in (start - 2, start - 1)]
        where = torch.tensor([[starts + [-1] * (len(ends) - len(starts)), ends]])
        scores = model(input_ids=torch.tensor([ids]), intervention_locations=where).logits[0].log_softmax(-1)
        for start, stop in answers:
            expected = expected - scores[start - 1 : stop - 1].gather(1, torch.tensor(ids[start:stop])[:, None]).sum()
    assert_close(loss, expected / total, rtol=1e-5, atol=1e-6)
    (expected / total).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 1e-7, name
            assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)
