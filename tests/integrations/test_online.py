"""Stock `GRPOTrainer` and `RLOOTrainer`: what generates, what is trained and the reference edit the same tokens."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runtime.batching import Segments
from runtime.stepwise import greedy
from torch import Tensor, nn
from torch.testing import assert_close
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from contract.features import paged
from contract.recording import Tokens
from peft_reft.hub_format.errors import PromptBoundaryError

from .preferences import POLICIES, ROUTINE, edits_of_passes, history
from .tiny_sft import PAIRS, base_model, reft, tokenizer, trainable

KINDS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}
TOKENS = 6


def reward(completions: list[str], **columns: Any) -> list[float]:
    """Something that differs between answers."""
    return [len(set(answer)) / 10 + answer.count("e") for answer in completions]


def online_trainer(kind: str, folder: Path, model: nn.Module, *, given: Any = None, **fields: Any) -> Any:
    """Three steps of two prompts with four sampled answers each, against a reference."""
    settings, trainer = KINDS[kind]
    args = settings(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": TOKENS,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "beta": 0.1,
            **({"loss_type": "grpo"} if kind == "grpo" else {}),
            **ROUTINE,
            **fields,
        }
    )
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS])
    return trainer(
        model=model,
        args=args,
        train_dataset=data,
        reward_funcs=reward,
        processing_class=tokenizer(),
        **(given or {}),
    )


def generated(trainer: Any) -> dict[str, Any]:
    """A batch as `compute_loss` gets it: prompts on the left, sampled answers on the right, advantages."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    return dict(trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))


@pytest.mark.parametrize("policy", ["new", *POLICIES])
@pytest.mark.parametrize("kind", KINDS)
def test_a_short_run_trains_the_policy_alone(tmp_path: Path, kind: str, policy: str) -> None:
    fields: dict[str, Any] = {"given": {"peft_config": reft()}} if policy == "new" else {}
    trainer = online_trainer(kind, tmp_path, base_model() if policy == "new" else POLICIES[policy](), **fields)
    before = trainable(trainer.model)
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    first, *later = history(trainer, "kl")
    assert (abs(first) < 1e-6) is (policy != "new")
    assert all(abs(kl) > 1e-6 for kl in later)
    assert trainable(trainer.model).keys() == before.keys()
    assert all(not torch.equal(before[name], after) for name, after in trainable(trainer.model).items())
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if name in frozen)


@pytest.mark.parametrize("policy", ["new", *POLICIES])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_policy_and_reference_edit_the_ends_of_every_prompt(tmp_path: Path, kind: str, policy: str) -> None:
    edit = {"positions": "f1+l2", "layers_to_transform": [0]}
    fields: dict[str, Any] = {"given": {"peft_config": reft(**edit)}} if policy == "new" else {}
    model = base_model() if policy == "new" else POLICIES[policy](**edit)
    trainer = online_trainer(kind, tmp_path, model, **fields)
    with edits_of_passes(trainer.model) as passes:
        batch = generated(trainer)
        trainer.compute_loss(trainer.model, batch)
    expected = _ends(batch["prompt_mask"])
    assert len(_by_row(expected)) == 2  # two prompts, not of one length
    steps = batch["completion_ids"].shape[1] - 1
    prefill, decoding, rest = passes[0], passes[1 : steps + 1], passes[steps + 1 :]
    ends, nothing = _by_row(expected), Counter()  # by row: the answers are shuffled after they are generated
    assert _by_row(prefill) == ends
    assert decoding == [set()] * steps
    by_reference = nothing if policy == "new" else ends
    sampled = [] if kind == "grpo" else [ends]  # RLOO asks the policy again for what it sampled
    assert [_by_row(found) for found in rest] == [*sampled, by_reference, ends]
    assert rest[-1] == expected


def _ends(prompt_mask: Tensor) -> Tokens:
    """`f1+l2` of prompts that end where the columns do."""
    width = prompt_mask.shape[1]
    starts = [width - int(length) for length in prompt_mask.sum(1)]
    return {(row, column) for row, start in enumerate(starts) for column in (start, width - 2, width - 1)}


def _by_row(tokens: Tokens) -> Counter[tuple[int, ...]]:
    rows: dict[int, list[int]] = {}
    for row, column in sorted(tokens):
        rows.setdefault(row, []).append(column)
    return Counter(tuple(columns) for columns in rows.values())


CONTINUOUS = {
    "use_transformers_continuous_batching": True,
    # prompts come in pieces, beside others that decode
    "transformers_continuous_batching_config": paged({"page_size": 4, "num_blocks": 32, "max_batch_tokens": 12}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_continuous_batching_edits_the_tokens_that_are_trained(tmp_path: Path, kind: str) -> None:
    """Positions in their own prompts, counted over all forwards of the manager and over the rows of the loss."""
    edit = {"positions": "f1+l2", "layers_to_transform": [0]}
    trainer = online_trainer(kind, tmp_path, POLICIES["reft"](**edit), **CONTINUOUS)
    trainer.model.train()
    with edits_of_passes(trainer.model) as passes, Segments(trainer.model.get_base_model()) as forwards:
        batch = generated(trainer)
        trainer.compute_loss(trainer.model, batch)
    asked: Counter[int] = Counter()
    for found, segments in zip(passes, forwards, strict=False):
        places = [first + offset for first, ids in segments for offset in range(len(ids))]
        asked.update(places[column] for _, column in found)
    assert len(forwards) > len(batch["completion_ids"][0])  # more than one forward for the prompts
    lengths = batch["prompt_mask"].sum(1).tolist()
    assert asked == Counter(place for length in lengths for place in (0, length - 2, length - 1))
    assert passes[-1] == _ends(batch["prompt_mask"])


@pytest.mark.parametrize(("kind", "positions"), [("grpo", "f2"), ("rloo", "f1+l2")])
def test_continuous_batching_samples_from_the_policy_of_every_step(tmp_path: Path, kind: str, positions: str) -> None:
    """Only the likeliest token is sampled: after two steps the answers are those of stepwise decoding."""
    trainer = online_trainer(kind, tmp_path, POLICIES["reft"](positions=positions), top_k=1, max_steps=2, **CONTINUOUS)
    trainer.train()
    assert len(history(trainer, "loss")) == 2
    batch = generated(trainer)
    for row in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
        assert answer == greedy(trainer.model.eval(), positions, prompt, TOKENS)[: len(answer)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, kind: str, policy: str) -> None:
    """After two steps, against a copy of the policy as it was before them."""
    model = POLICIES[policy](layers_to_transform=[0, 1])
    before = deepcopy(model)
    trainer = online_trainer(kind, tmp_path, model, max_steps=2)
    trainer.train()
    batch = generated(trainer)
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    found = _taken_gradients(model)
    expected = torch.zeros(())
    for row, advantage in enumerate(batch["advantages"].flatten()):
        policy_says, reference_says = (_token_log_likelihoods(one, batch, row) for one in (model, before))
        if kind == "grpo":  # arXiv 2402.03300, equations 3 and 4; TRL weighs the divergence by the ratio too
            gap = reference_says.detach() - policy_says
            ratio = torch.exp(policy_says - policy_says.detach())
            expected = expected - (ratio * (advantage - 0.1 * (gap.exp() - gap - 1))).mean() / 8
        else:  # arXiv 2402.14740: the divergence is part of the reward
            expected = expected - torch.exp(policy_says.sum() - policy_says.sum().detach()) * advantage / 8
    assert_close(loss, expected, rtol=1e-3, atol=1e-5)
    expected.backward()
    hand = _taken_gradients(model)
    assert found.keys() == hand.keys()
    for name, gradient in hand.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-2, atol=1e-5)


def _token_log_likelihoods(model: nn.Module, batch: dict[str, Any], row: int) -> Tensor:
    """log p of every token of an answer: one unpadded row, no labels, `f2+l2` given by hand."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
    answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
    where = torch.tensor([[[0, 1, len(prompt) - 2, len(prompt) - 1]]])
    logits = model(input_ids=torch.tensor([prompt + answer]), intervention_locations=where).logits[0]
    return -torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer), reduction="none")


def _taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_answers_that_are_masked_for_being_too_long_change_nothing_else(tmp_path: Path, kind: str) -> None:
    """Their rows have no supervised label: no error, and no edit of the answer that matters."""
    trainer = online_trainer(kind, tmp_path, POLICIES["reft"](), mask_truncated_completions=True)
    trainer.train()
    assert len(history(trainer, "loss")) == 3


def lookup(word: str) -> str:
    """A tool."""
    return word


@pytest.mark.parametrize("way", [{}, CONTINUOUS])
@pytest.mark.parametrize(("positions", "refused"), [("f1+l2", True), ("f2", False)])
def test_turns_after_tools_are_refused_where_they_would_be_edited_as_prompts(
    tmp_path: Path, positions: str, refused: bool, way: dict[str, Any]
) -> None:
    """TRL generates the next turn from prompt, answer and result, and trains it with the first prompt alone."""
    trainer = online_trainer("grpo", tmp_path, POLICIES["reft"](positions=positions), max_steps=1, **way)
    trainer.tools = [lookup]
    trainer.model.train()
    prompts = [[9, 10, 11, 12], [13, 14, 15]]
    if not refused:
        assert len(trainer._generate_single_turn(prompts, None, {}, 1)[0]) == 2
        return
    with pytest.raises(PromptBoundaryError, match="with tools generates for adapter 'default'"):
        trainer._generate_single_turn(prompts, None, {}, 1)
