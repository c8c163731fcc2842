"""A bare forward that may be an evaluator's says so once per model; who knows a prompt's end hears nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.tiny_sft import pairs, trainer_for
from peft import get_peft_model
from transformers import LlamaForSequenceClassification, LlamaModel

import peft_reft
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import PositionWarning, prompt_cache

from .batching import batched, prompts

Model = Any
IDS = token_ids(2, 6)


def told(run: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """The position warnings of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [one for one in caught if issubclass(one.category, PositionWarning)]


@pytest.mark.parametrize("spec", ["l1", "f2+l2", "prompt", "p[1:-1]", "generated", "p[2:]"])
def test_a_bare_forward_says_so_once_per_model(spec: str) -> None:
    model = reft_model("llama", positions=spec)
    (first,) = told(lambda: model(IDS))
    assert "'default'" in str(first.message)
    assert "prompt_lengths" in str(first.message)
    assert first.filename == __file__
    assert not told(lambda: [model(IDS), model(input_ids=IDS[:1])])


def test_a_second_model_at_the_same_line_says_so_too() -> None:
    """Python's default is to show a text once per line."""
    models = [reft_model("llama", positions="l1") for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for model in models:
            model(IDS)
    assert [one.category for one in caught] == [PositionWarning] * 2


def test_it_is_a_user_warning_and_public() -> None:
    assert issubclass(PositionWarning, UserWarning)
    assert "PositionWarning" in peft_reft.__all__


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_other_architectures_and_ways_in(name: str) -> None:
    """By its name, and of a decoder that starts with several tokens."""
    model = reft_model(name, positions="l1")
    given = {"input_ids": IDS} if name == "gpt2" else {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    assert len(told(lambda: model.base_model.model.forward(**given))) == 1


def test_the_decoder_of_an_encoder_alone_is_no_prompt() -> None:
    model = reft_model("t5", positions="l1", layers_pattern="encoder.block")
    assert not told(lambda: model(input_ids=IDS, decoder_input_ids=IDS[:, :3]))


@pytest.mark.parametrize("spec", ["all", "f2", "p[:3]"])
def test_positions_without_the_end_of_the_prompt_are_silent(spec: str) -> None:
    model = reft_model("llama", positions=spec)
    assert not told(lambda: model(IDS))


@pytest.mark.parametrize(
    "stated",
    [
        {"labels": torch.where(torch.arange(6) < 3, -100, IDS)},
        {"prompt_lengths": torch.tensor([3, 4])},
        {"prompt_mask": torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)},
        {"intervention_locations": torch.tensor([[[2]], [[3]]])},
    ],
    ids=lambda stated: next(iter(stated)),
)
def test_what_is_stated_is_silent(stated: dict[str, torch.Tensor]) -> None:
    model = reft_model("llama", positions="l1")
    assert not told(lambda: model(IDS, **stated))


def test_one_token_and_a_disabled_adapter_are_silent() -> None:
    model = reft_model("llama", positions="l1")
    assert not told(lambda: model(IDS[:, :1]))
    with model.disable_adapter():
        assert not told(lambda: model(IDS))
    assert len(told(lambda: model(IDS))) == 1


def test_generation_is_silent() -> None:
    model = reft_model("llama", positions="f2+l2")
    mask = torch.ones_like(IDS)

    def generations() -> None:
        model.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=3)
        model.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=3, num_beams=2, use_cache=False)
        head = prompt_cache(model, IDS[:, :3])
        model.generate(input_ids=IDS, past_key_values=copy.deepcopy(head), max_new_tokens=2)

    assert not told(generations)
    assert not told(lambda: reft_model("t5", positions="l1").generate(input_ids=IDS, max_new_tokens=2))


def test_continuous_batching_is_silent() -> None:
    assert not told(lambda: batched(reft_model("llama", positions="f2+l2"), prompts()[:2]))


@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION"])
def test_tasks_without_a_completion_are_silent(task: str) -> None:
    config = base_model("llama").config
    kind = LlamaForSequenceClassification if task == "SEQ_CLS" else LlamaModel
    model = get_peft_model(kind(config), peft_reft.ReftConfig(task_type=task, positions="l1")).eval()
    assert not told(lambda: model(input_ids=IDS, attention_mask=torch.ones_like(IDS)))
    encoder = reft_model("bert", positions="l1")
    assert not told(lambda: encoder(input_ids=IDS))


def test_a_trainer_that_evaluates_is_silent(tmp_path: Path) -> None:
    """Metrics, predictions and label smoothing run the model without labels."""

    def run() -> None:
        trainer = trainer_for(
            tmp_path,
            given={"eval_dataset": pairs(), "compute_metrics": lambda _: {"n": 1.0}},
            max_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            label_smoothing_factor=0.1,
        )
        trainer.train()
        trainer.evaluate()
        trainer.predict(trainer.eval_dataset)

    assert not told(run)


def test_a_graph_is_silent() -> None:
    model = reft_model("llama", positions="l1")
    compiled = torch.compile(lambda ids: model(ids).logits, backend="eager", fullgraph=True)
    assert not told(lambda: compiled(IDS))
    assert len(told(lambda: model(IDS))) == 1
