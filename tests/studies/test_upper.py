"""Upper blocks alone compute what they compute in the whole model, and what enters them is computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.study.measure import answers
from benchmarks.study.methods import attach, trained
from benchmarks.study.rows import Row
from benchmarks.study.upper import States, upper_model

PAD, BLOCKS, UPPER = 2, 5, 2
ROWS = [Row((4, 5, 6, 7), (8, 9, PAD)), Row((10, 11), (12, PAD)), Row((13, 14, 15, 4, 5), (6, PAD))]


def whole(dtype: torch.dtype = torch.bfloat16) -> Any:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        tie_word_embeddings=True,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval()


def states(made: list[int], file: Path | None = None) -> States:
    model = whole()

    def lower() -> nn.Module:
        found: nn.Module = upper_model(model, UPPER, None, torch.bfloat16)
        found.register_forward_pre_hook(lambda _, args, given: made.append(len(given["input_ids"])), with_kwargs=True)
        return found

    return States(lower, PAD, 64, file)


def upper(dtype: torch.dtype = torch.bfloat16) -> Any:
    return upper_model(whole(), UPPER, states([]), dtype)


def test_the_upper_blocks_answer_as_the_whole_model_does() -> None:
    one, other = answers(upper(), ROWS, PAD, logs=True), answers(whole(), ROWS, PAD, logs=True)
    assert one.logs is not None
    assert other.logs is not None
    assert_close(one.logs, other.logs, rtol=2e-2, atol=3e-2)  # bf16
    assert one.right.tolist() == other.right.tolist()


def test_what_is_learnt_in_the_upper_blocks_is_what_is_learnt_in_them_in_the_whole_model() -> None:
    model, apart = attach("full", whole, 0), attach("full", upper, 0)
    ids = torch.tensor([ROWS[0].prompt + ROWS[0].answer])
    gradients = []
    for one, first in ((model, BLOCKS - UPPER), (apart, 0)):
        one(input_ids=ids, labels=ids).loss.backward()
        gradients.append(one.model.layers[first].mlp.up_proj.weight.grad)
    assert_close(gradients[0], gradients[1], rtol=0.1, atol=2e-3)  # states that enter are bf16
    assert not apart.lm_head.weight.requires_grad  # it is the embedding of the blocks below
    assert {name.split(".")[1] for name, p in apart.named_parameters() if p.requires_grad} == {"layers", "norm"}


def test_adapters_stand_on_upper_blocks_alone() -> None:
    model = attach("loreft r4", upper, 0)
    assert sum(p.numel() for p in trained(model)) == UPPER * (2 * 4 * 64 + 4)


def test_virtual_tokens_stand_before_the_states_that_enter_upper_blocks() -> None:
    model = attach("prompt tuning 8", upper, 0)
    (virtual,) = trained(model)
    assert virtual.shape == (8, 64)
    before = answers(model, ROWS, PAD).loss
    with torch.no_grad():
        virtual.add_(3 * torch.randn(virtual.shape, generator=torch.Generator().manual_seed(1)))
    assert answers(model, ROWS, PAD).loss != before


def test_states_are_computed_once_whatever_the_padding_and_kept_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.study.upper.KEPT_AT", 1)
    made: list[int] = []
    held = states(made, tmp_path / "states.pt")
    ids = torch.tensor([[4, 5, 6, PAD], [7, 8, PAD, PAD], [4, 5, 6, PAD]])
    first = held.of(ids)
    wider = held.of(nn.functional.pad(ids, (0, 3), value=PAD))
    assert made == [2]
    assert torch.equal(wider[:, :3], first[:, :3])
    assert wider[1, 3:].abs().sum() == 0
    again = states(made, tmp_path / "states.pt")
    assert torch.equal(again.of(ids), first)
    assert made == [2]
    with torch.no_grad():
        expected = whole().model(input_ids=ids[:1], output_hidden_states=True).hidden_states[BLOCKS - UPPER]
    assert_close(first[:1, :4], expected, rtol=2e-2, atol=2e-2)
