"""`generate`, however it is run, gives the tokens that step-by-step decoding without a cache gives."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

import peft_reft.runtime.operands
import peft_reft.runtime.planning
import peft_reft.runtime.site_edit
from contract.features import NO_END
from contract.tiny import VOCABULARY, base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import PromptBoundaryError

from .stepwise import beams, greedy, locations_for, rows_of

STEPS = 5
LENGTHS = (9, 6, 2)
"""Real tokens of the rows of a batch, padded on the left to the longest."""
NAMES = ("llama", "gpt2")
SPECS = ("f2+l2", "l4", "f3+l5", "p[1:-1]", "all", "g[:2]", "all-f1")


@cache
def model_for(name: str, spec: str, task_type: str | None = "CAUSAL_LM") -> PeftModel:
    return reft_model(name, dtype=torch.float64, positions=spec, task_type=task_type)


def batch() -> dict[str, Tensor]:
    width = max(LENGTHS)
    mask = torch.stack([(torch.arange(width) >= width - length).long() for length in LENGTHS])
    return {"input_ids": token_ids(len(LENGTHS), width, seed=3) * mask, "attention_mask": mask}


@cache
def expected_for(name: str, spec: str) -> list[list[int]]:
    given = batch()
    return [
        greedy(model_for(name, spec), spec, row, STEPS) for row in rows_of(given["input_ids"], given["attention_mask"])
    ]


def generated(model: Any, given: dict[str, Any], **how: Any) -> list[list[int]]:
    """The new tokens of every row."""
    if "prompt_lookup_num_tokens" in how:
        how["eos_token_id"] = NO_END
    ids = model.generate(**given, **{"max_new_tokens": STEPS, "do_sample": False, **how})
    start = given["input_ids"].shape[1] if "input_ids" in given else 0
    return ids[:, start:].tolist()


def whole_batch(**how: Any) -> Callable[[PeftModel], list[list[int]]]:
    return lambda model: generated(model, batch(), **how)


def without_mask(**how: Any) -> Callable[[PeftModel], list[list[int]]]:
    return lambda model: generated(model, {"input_ids": batch()["input_ids"]}, **how)


def row_by_row(**how: Any) -> Callable[[PeftModel], list[list[int]]]:
    def run(model: PeftModel) -> list[list[int]]:
        given = batch()
        rows = rows_of(given["input_ids"], given["attention_mask"])
        return [generated(model, {"input_ids": row[None]}, **how)[0] for row in rows]

    return run


def from_embeddings(model: PeftModel) -> list[list[int]]:
    given = batch()
    embeddings = model.get_input_embeddings()(given.pop("input_ids")).detach()
    return generated(model, {"inputs_embeds": embeddings, **given})


def from_embeddings_beside_ids(model: PeftModel) -> list[list[int]]:
    """The embeddings are the prompt; the ids, here its last two, only head the output."""
    given = batch()
    embeddings = model.get_input_embeddings()(given["input_ids"]).detach()
    return generated(model, {**given, "input_ids": given["input_ids"][:, -2:], "inputs_embeds": embeddings})


def with_an_assistant(model: PeftModel) -> list[list[int]]:
    assistant = base_model("gpt2" if "GPT2" in type(model.get_base_model()).__name__ else "llama", dtype=torch.float64)
    return row_by_row(assistant_model=assistant)(model)


WAYS: dict[str, Callable[[PeftModel], list[list[int]]]] = {
    "rows alone": row_by_row(),
    "left padding": whole_batch(),
    "left padding, mask inferred": without_mask(),
    "positional": lambda model: model.generate(
        batch()["input_ids"], attention_mask=batch()["attention_mask"], max_new_tokens=STEPS, do_sample=False
    )[:, max(LENGTHS) :].tolist(),
    "no cache": whole_batch(use_cache=False),
    "no cache, mask inferred": without_mask(use_cache=False),
    "chunks of 2": whole_batch(prefill_chunk_size=2),
    "chunks of 4": whole_batch(prefill_chunk_size=4),
    "chunks of 8": whole_batch(prefill_chunk_size=8),
    "chunks of 2, mask inferred": without_mask(prefill_chunk_size=2),
    "chunks of 4, mask inferred": without_mask(prefill_chunk_size=4),
    "static cache": whole_batch(cache_implementation="static", disable_compile=True),
    "static cache, rows alone": row_by_row(cache_implementation="static", disable_compile=True),
    "static cache, mask inferred": without_mask(cache_implementation="static", disable_compile=True),
    "static cache, chunks of 4": whole_batch(
        cache_implementation="static", disable_compile=True, prefill_chunk_size=4
    ),
    "prompt lookup": row_by_row(prompt_lookup_num_tokens=3),
    "embeddings": from_embeddings,
    "embeddings beside ids": from_embeddings_beside_ids,
    "assistant": with_an_assistant,
    "its own base as assistant": lambda model: row_by_row(assistant_model=model.get_base_model())(model),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_stepwise_decoding(name: str, spec: str, way: str) -> None:
    assert WAYS[way](model_for(name, spec)) == expected_for(name, spec)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompts_tell_the_specs_apart(name: str) -> None:
    """Else the comparison above would prove nothing."""
    model = model_for(name, "f2+l2")
    with model.disable_adapter():
        plain = whole_batch()(model)
    seen = [expected_for(name, spec) for spec in SPECS]
    assert plain not in seen
    assert len({str(tokens) for tokens in seen}) == len(seen)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "l4", "all"])
def test_beams(name: str, spec: str) -> None:
    model, given = model_for(name, spec), batch()
    wanted = [beams(model, spec, row, STEPS, 3) for row in rows_of(given["input_ids"], given["attention_mask"])]
    for use_cache in (True, False):
        assert generated(model, given, num_beams=3, use_cache=use_cache) == [best[0] for best in wanted]
        every = generated(model, given, num_beams=3, num_return_sequences=3, use_cache=use_cache)
        assert every == [ids for best in wanted for ids in best]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "all"])
def test_several_returned_sequences(name: str, spec: str) -> None:
    """Sampling among one candidate is greedy."""
    found = generated(model_for(name, spec), batch(), do_sample=True, top_k=1, num_return_sequences=3)
    assert found == [row for row in expected_for(name, spec) for _ in range(3)]


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2", "gpt_neox", "opt", "phi"])
@pytest.mark.parametrize("way", ["left padding", "no cache", "chunks of 4", "static cache", "embeddings"])
def test_other_architectures(name: str, way: str) -> None:
    """Sliding windows (of 8, shorter than the prompt), masks by kind of layer, learned positions."""
    model, spec, given = reft_model(name, positions="f2+l2"), "f2+l2", batch()
    rows = rows_of(given["input_ids"], given["attention_mask"])
    assert WAYS[way](model) == [greedy(model, spec, row, STEPS) for row in rows]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cached", [1, 3, 6])
def test_a_cache_of_the_prompts_head_is_continued(name: str, cached: int) -> None:
    """A prefix adapter's cache holds its edits; full ids are passed."""
    model, spec = model_for(name, "f4"), "f4"
    row = token_ids(1, 9, seed=5)
    head = model(input_ids=row[:, :cached], use_cache=True).past_key_values
    assert generated(model, {"input_ids": row}, past_key_values=head) == [greedy(model, spec, row[0], STEPS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "l4", "p[1:-1]", "g[:2]", "all"])
def test_a_generation_is_continued(name: str, spec: str) -> None:
    """Prompt and answer go in again with the cache; `prompt_lengths` says what of it is prompt."""
    model, row = model_for(name, spec), token_ids(1, 7, seed=5)
    wanted = greedy(model, spec, row[0], 8)
    first = model.generate(input_ids=row, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert first.sequences[0, 7:].tolist() == wanted[:4]
    for past in (first.past_key_values, None):
        again = {"input_ids": first.sequences, "prompt_lengths": torch.tensor([7]), "past_key_values": past}
        assert generated(model, again, max_new_tokens=4) == [wanted[4:]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "l4", "all-f1"])
def test_a_padded_batch_is_continued(name: str, spec: str) -> None:
    model, given = model_for(name, spec), batch()
    first = model.generate(**given, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    again = {
        "input_ids": first.sequences,
        "attention_mask": torch.cat([given["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1),
        "prompt_lengths": torch.tensor(LENGTHS),
        "past_key_values": first.past_key_values,
    }
    assert generated(model, again, max_new_tokens=2) == [row[3:] for row in expected_for(name, spec)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "l2"])
def test_only_the_new_tokens_are_passed_with_a_cache(name: str, spec: str) -> None:
    """The mask tells how long the prompt is; the cached head carries no edit of its own end."""
    model, row = model_for(name, spec), token_ids(1, 9, seed=5)
    head = model(
        input_ids=row[:, :6],
        use_cache=True,
        intervention_locations=locations_for("f2" if spec[0] == "f" else "g[:1]", 6, 6),
    ).past_key_values
    given = {"input_ids": row[:, 6:], "attention_mask": torch.ones(1, 9, dtype=torch.long), "past_key_values": head}
    assert generated(model, given) == [greedy(model, spec, row[0], STEPS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["l2", "f2+l2", "prompt", "p[-2:]", "generated"])
@pytest.mark.parametrize("source", ["forward", "tuple", "generate"])
def test_a_cache_with_edits_of_another_prompts_end_is_refused(name: str, spec: str, source: str) -> None:
    """As a chat does it: what was edited as the end of the first prompt stands in the middle of the second."""
    model, row = model_for(name, spec), token_ids(1, 12, seed=5)
    if source == "generate":
        first = model.generate(input_ids=row[:, :6], max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        held = first.past_key_values
    else:
        with torch.no_grad():
            output = model(input_ids=row[:, :6], use_cache=True, return_dict=source == "forward")
        held = output.past_key_values if source == "forward" else output[1]
    for past in (held, copy.deepcopy(held)):
        with pytest.raises(PromptBoundaryError, match="prompt_lengths"):
            model.generate(input_ids=row, past_key_values=past, max_new_tokens=2)
    with model.disable_adapter():
        model.generate(input_ids=row, past_key_values=held, max_new_tokens=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["l4", "prompt", "p[:-1]"])
def test_a_cache_that_holds_the_prompts_end_is_refused(name: str, spec: str) -> None:
    """Cached tokens cannot be edited any more; an adapter that is not active does not matter."""
    model, row = reft_model(name, positions=spec), token_ids(1, 9, seed=5)
    with model.disable_adapter(), torch.no_grad():
        held = model(input_ids=row[:, :6], use_cache=True).past_key_values
    with pytest.raises(PromptBoundaryError, match="past_key_values"):
        model.generate(input_ids=row, past_key_values=copy.deepcopy(held), max_new_tokens=2)
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="all"))
    model.set_adapter("second")
    model.generate(input_ids=row, past_key_values=held, max_new_tokens=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "all-f1"])
def test_a_model_without_a_task_type(name: str, spec: str) -> None:
    assert whole_batch()(model_for(name, spec, None)) == expected_for(name, spec)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f2+l2", "all-f1"])
def test_an_adapter_loaded_by_transformers(name: str, spec: str, tmp_path: pathlib.Path) -> None:
    """`load_adapter` puts no PEFT model around the base: its own `generate` knows the prompt."""
    model_for(name, spec).save_pretrained(tmp_path)
    base = base_model(name, dtype=torch.float64)
    base.load_adapter(str(tmp_path))
    base.eval()
    for way in ("left padding", "chunks of 2", "static cache", "no cache", "positional"):
        assert WAYS[way](base) == expected_for(name, spec), way


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    words = Tokenizer(
        WordLevel({"<pad>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}, unk_token="w1")
    )
    words.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", padding_side="left")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_pipeline(name: str, batch_size: int) -> None:
    given, spec = batch(), "f2+l2"
    texts = [
        " ".join(f"w{token}" for token in row.tolist()) for row in rows_of(given["input_ids"], given["attention_mask"])
    ]
    pipe = hf.pipeline("text-generation", model=model_for(name, spec), tokenizer=word_tokenizer())
    outputs = pipe(texts, batch_size=batch_size, max_new_tokens=STEPS, do_sample=False, return_full_text=False)
    found = [[int(word[1:]) for word in output[0]["generated_text"].split()] for output in outputs]
    assert found == expected_for(name, spec)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["left padding", "chunks of 4", "static cache", "prompt lookup", "assistant"])
def test_a_decode_step_does_no_work(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter of the prompt resolves no positions and calls no unit once the cache holds the prompt."""
    model, log = model_for(name, "f2+l2"), []
    spy_on(monkeypatch, peft_reft.runtime.planning, "slot_masks", log)
    spy_on(monkeypatch, peft_reft.runtime.planning, "call_inputs", log)
    spy_on(monkeypatch, peft_reft.runtime.site_edit, "edit_affine", log)
    spy_on(monkeypatch, peft_reft.runtime.operands, "orthonormal_rows", log)
    handle = model.get_base_model().register_forward_pre_hook(lambda *args: log.append("forward"), prepend=True)
    try:
        WAYS[way](model)
    finally:
        handle.remove()
    forwards = "".join({"forward": "|", "edit_affine": "e", "slot_masks": "m"}.get(entry, "r") for entry in log).split(
        "|"
    )
    prefills = [entry for entry in forwards if entry]
    rows = len(LENGTHS) if way in ("prompt lookup", "assistant") else 1
    chunks = 3 if way == "chunks of 4" else 1
    assert len(prefills) == rows * chunks
    assert all(entry.count("e") == 3 for entry in prefills)
    assert len(forwards) > 1 + len(prefills)


def spy_on(patch: pytest.MonkeyPatch, module: Any, name: str, log: list[str]) -> None:
    original = getattr(module, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        log.append(name)
        return original(*args, **kwargs)

    patch.setattr(module, name, spy)
