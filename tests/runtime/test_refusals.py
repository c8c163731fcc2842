"""What cannot be told is an error that names the fix, and what is said wrongly is never taken for something else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import Tensor

from contract.recording import edited_by
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import LocationError, PositionError, PromptBoundaryError, ReftError

IDS = token_ids(2, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
BATCH = {"input_ids": IDS * MASK, "attention_mask": MASK}
NEEDS_END = ("l2", "f2+l2", "prompt", "p[-2:]", "p[1:]", "generated", "all-l1")
NEEDS_NO_END = ("f2", "p[:3]", "all", "f1+p[2:4]")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("spec", NEEDS_END)
def test_training_without_labels_is_refused_where_the_end_matters(name: str, spec: str) -> None:
    model = reft_model(name, positions=spec).train()
    with pytest.raises(PromptBoundaryError, match="labels, prompt_mask or prompt_lengths"):
        model(**BATCH)
    model(**BATCH, prompt_lengths=torch.tensor([3, 2]))
    model(**BATCH, prompt_mask=MASK)
    model(**BATCH, intervention_locations=torch.tensor([[[3]], [[2]]]))
    model.eval()
    model(**BATCH)


@pytest.mark.parametrize("spec", NEEDS_NO_END)
def test_training_without_labels_is_fine_elsewhere(spec: str) -> None:
    reft_model("llama", positions=spec).train()(**BATCH)


def test_training_without_labels_is_fine_where_there_is_no_completion() -> None:
    """A classifier, and a base whose forward takes no labels."""
    reft_model("bert", positions="l2").train()(**BATCH)
    backbone = get_peft_model(base_model("llama").model, ReftConfig(positions="l2")).train()
    backbone(**BATCH)
    config = base_model("llama").config
    config.num_labels = 3
    classifier = hf.LlamaForSequenceClassification(config)
    get_peft_model(classifier, ReftConfig(task_type="SEQ_CLS", positions="l2")).train()(**BATCH)


def test_generating_in_training_mode_is_fine() -> None:
    """As online trainers do."""
    model = reft_model("llama", positions="f2+l2")
    expected = model.generate(**BATCH, max_new_tokens=3, do_sample=False)
    assert torch.equal(model.train().generate(**BATCH, max_new_tokens=3, do_sample=False), expected)


def labels_from(first: int) -> Tensor:
    rank = MASK.cumsum(1) - 1
    return torch.where(MASK.bool() & (rank >= first), IDS, -100)


@pytest.mark.parametrize("spec", ["l2", "f2+l2", "prompt", "p[1:]", "all-l1"])
def test_labels_from_the_first_token_leave_no_prompt(spec: str) -> None:
    model = reft_model("llama", positions=spec)
    with pytest.raises(PromptBoundaryError, match="need a prompt"):
        model(**BATCH, labels=labels_from(0))
    model(**BATCH, labels=labels_from(1))


def test_a_prefix_without_a_prompt_counts_from_the_start() -> None:
    model = reft_model("llama", positions="f2")
    found = edited_by(model, "llama", 0, lambda: model(**BATCH, labels=labels_from(0)))
    assert found == {(0, 0), (0, 1), (1, 2), (1, 3)}


WRONG_LOCATIONS: dict[str, tuple[Any, str]] = {
    "two dimensions": (torch.zeros(2, 1, dtype=torch.long), r"\[batch, terms, k\]"),
    "another batch": (torch.zeros(3, 1, 1, dtype=torch.long), r"\[batch, terms, k\]"),
    "too many terms": (torch.zeros(2, 2, 1, dtype=torch.long), "term"),
    "no integers": (torch.zeros(2, 1, 1), "LongTensor"),
    "bools": (torch.zeros(2, 1, 1, dtype=torch.bool), "LongTensor"),
    "no tensor": ([[[0]], [[2]]], "LongTensor"),
    "past the end": (torch.tensor([[[6]], [[2]]]), "0 to 5"),
    "before the start": (torch.tensor([[[-2]], [[2]]]), "-1|−1"),
    "on padding": (torch.tensor([[[0]], [[1]]]), "padding"),
    "an unknown adapter": ({"defualt": torch.tensor([[[0]], [[2]]])}, "defualt"),
    "a stack that is not there": ({"encoder": torch.tensor([[[0]], [[2]]])}, "encoder"),
    "a stack and an adapter": ({"default": torch.tensor([[[0]], [[2]]]), "encoder": torch.zeros(2, 1, 1)}, "encoder"),
}


@pytest.mark.parametrize("verb", ["forward", "generate"])
@pytest.mark.parametrize("wrong", WRONG_LOCATIONS)
def test_wrong_locations_are_refused(wrong: str, verb: str) -> None:
    locations, message = WRONG_LOCATIONS[wrong]
    model = reft_model("llama", positions="f1+l1")
    call = model if verb == "forward" else model.generate
    with pytest.raises(LocationError, match=message):
        call(**BATCH, intervention_locations=locations)


WRONG_PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "mask too short": ({"prompt_mask": MASK[:, :5]}, "prompt_mask"),
    "mask too long": ({"prompt_mask": torch.cat([MASK, MASK], 1)}, "prompt_mask"),
    "mask of another batch": ({"prompt_mask": MASK[:1]}, "prompt_mask"),
    "mask on padding": ({"prompt_mask": torch.ones_like(MASK)}, "padding"),
    "mask a list": ({"prompt_mask": MASK.tolist()}, "prompt_mask"),
    "lengths of another batch": ({"prompt_lengths": torch.tensor([3])}, "prompt_lengths"),
    "lengths not integers": ({"prompt_lengths": torch.tensor([3.0, 2.0])}, "prompt_lengths"),
    "lengths of two dimensions": ({"prompt_lengths": torch.tensor([[3], [2]])}, "prompt_lengths"),
    "lengths a list": ({"prompt_lengths": [3, 2]}, "prompt_lengths"),
    "length beyond the row": ({"prompt_lengths": torch.tensor([3, 5])}, "5"),
    "mask and lengths": ({"prompt_lengths": torch.tensor([3, 2]), "prompt_mask": MASK}, "both"),
    "length negative": ({"prompt_lengths": torch.tensor([3, -1])}, "-1"),
}


@pytest.mark.parametrize("verb", ["forward", "generate"])
@pytest.mark.parametrize("wrong", WRONG_PROMPTS)
def test_a_wrongly_stated_prompt_is_refused(wrong: str, verb: str) -> None:
    said, message = WRONG_PROMPTS[wrong]
    model = reft_model("llama", positions="f1+l1")
    call = model if verb == "forward" else model.generate
    with pytest.raises(LocationError, match=message):
        call(**BATCH, **said)


def test_a_stated_empty_prompt_is_no_prompt() -> None:
    said = {"prompt_lengths": torch.tensor([3, 0])}
    reft_model("llama", positions="f2")(**BATCH, **said)
    with pytest.raises(PromptBoundaryError, match="need a prompt"):
        reft_model("llama", positions="l2")(**BATCH, **said)


def test_lengths_cannot_speak_of_several_sequences_in_a_row() -> None:
    """One number per row, several prompts per row: `prompt_mask` says it."""
    model = reft_model("llama", positions="l1", layers_to_transform=[0])
    packed = {"input_ids": token_ids(1, 7), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    with pytest.raises(LocationError, match="prompt_mask"):
        model(**packed, prompt_lengths=torch.tensor([2]))
    said = torch.tensor([[1, 1, 0, 0, 1, 0, 0]])
    assert edited_by(model, "llama", 0, lambda: model(**packed, prompt_mask=said)) == {(0, 1), (0, 4)}


@pytest.mark.parametrize("spec", ["l2", "f2", "generated", "p[1:3]"])
def test_several_tokens_on_a_cache_are_refused(spec: str) -> None:
    """They may be prompt or completion."""
    model = reft_model("llama", positions=spec)
    ids = token_ids(1, 8)
    cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(PromptBoundaryError, match="prompt_lengths"):
        model(input_ids=ids[:, 5:], past_key_values=cache)


def test_several_tokens_on_a_cache_are_edited_where_it_is_said() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f6+l1")
    ids = token_ids(1, 8)
    with torch.no_grad():
        whole = model(input_ids=ids, prompt_lengths=torch.tensor([7])).logits
        nowhere = torch.tensor([[[0, 1, 2, 3, 4]]])
        cache = model(input_ids=ids[:, :5], use_cache=True, intervention_locations=nowhere).past_key_values
        rest = model(input_ids=ids[:, 5:], past_key_values=cache, prompt_lengths=torch.tensor([7])).logits
    torch.testing.assert_close(rest, whole[:, 5:])


def test_a_single_token_on_a_cache_is_a_generated_one() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2+l2")
    ids = token_ids(2, 8)
    with torch.no_grad():
        whole = model(input_ids=ids, prompt_lengths=torch.tensor([7, 7])).logits
        cache = model(input_ids=ids[:, :7], use_cache=True).past_key_values
        step = model(input_ids=ids[:, 7:], past_key_values=cache).logits
    torch.testing.assert_close(step, whole[:, 7:])


def test_locations_may_speak_of_adapters_that_are_not_active() -> None:
    model = reft_model("llama", positions="f1")
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="f1", init_weights=False))
    locations = {"default": torch.tensor([[[1]], [[2]]]), "second": torch.tensor([[[3]], [[3]]])}
    found = edited_by(model, "llama", 0, lambda: model(**BATCH, intervention_locations=locations))
    assert found == {(0, 1), (1, 2)}


@pytest.mark.parametrize(
    "how", [{"guidance_scale": 1.5}, {"generation_config": hf.GenerationConfig(guidance_scale=2.0)}]
)
def test_guidance_is_refused(how: dict[str, Any]) -> None:
    model = reft_model("llama", positions="l2")
    with pytest.raises(PromptBoundaryError, match="guidance_scale"):
        model.generate(IDS[:1], max_new_tokens=2, **how)
    with model.disable_adapter():
        model.generate(IDS[:1], max_new_tokens=2, **how)
    model.generate(IDS[:1], max_new_tokens=2, guidance_scale=1.0)


@pytest.mark.parametrize("spec", ["l2", "all", "g[:2]"])
def test_a_state_that_does_not_say_how_long_it_is(spec: str) -> None:
    """Outside of `generate` a single token on it is a generated one; for anything else its place is not known."""
    model = reft_model("mamba", positions=spec)
    with torch.no_grad():
        state = model(input_ids=IDS, use_cache=True).cache_params
    if spec == "l2":
        plain = model(input_ids=IDS[:, :1], cache_params=copy.deepcopy(state)).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS[:, :1], cache_params=copy.deepcopy(state)).logits, plain)
        more: list[dict[str, Any]] = [{"input_ids": IDS[:, :2]}]
    else:
        more = [{"input_ids": IDS[:, :1]}, {"input_ids": IDS[:, :2]}]
    for given in more:
        with pytest.raises(PromptBoundaryError, match="does not say how many"):
            model(**given, cache_params=state)
    with pytest.raises(PromptBoundaryError, match="does not say how many"):
        model.generate(input_ids=IDS, cache_params=state, max_new_tokens=2)


def test_every_refusal_is_of_the_one_family() -> None:
    assert issubclass(LocationError, ReftError)
    assert issubclass(PromptBoundaryError, ReftError)
    assert issubclass(ReftError, ValueError)


@pytest.mark.parametrize("positions", ["tok(<s>)", "all-tok(<s>)"])
def test_a_special_token_without_a_tokenizer_is_an_error_when_the_model_is_made(positions: str) -> None:
    with pytest.raises(PositionError, match="bound to no tokenizer"):
        reft_model("llama", positions=positions)
