"""`pipeline("text-generation")`, whatever model it is given, gives the tokens of step-by-step decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from .batching import prompts
from .folders import numbers, saved_adapter, saved_base, spoken, word_tokenizer, words
from .stepwise import greedy

STEPS = 5
SPECS = ("f2+l2", "l4", "g[:2]")


@pytest.fixture(scope="module", params=SPECS)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The spec, the folder of the base, that of the adapter, the model that was saved."""
    folder = tmp_path_factory.mktemp("saved")
    model = saved_adapter(folder / "adapter", saved_base(folder / "base"), request.param)
    return request.param, folder / "base", folder / "adapter", model


def pipe_on(kind: str, saved: Any) -> Any:
    """On the PEFT model, on the base that transformers loaded an adapter into, or on the adapter's folder."""
    _, base, adapter, model = saved
    if kind == "PEFT model":
        return hf.pipeline("text-generation", model=model, tokenizer=word_tokenizer())
    if kind == "load_adapter":
        loaded = hf.AutoModelForCausalLM.from_pretrained(base)
        loaded.load_adapter(str(adapter))
        return hf.pipeline("text-generation", model=loaded, tokenizer=word_tokenizer())
    return hf.pipeline("text-generation", model=str(adapter))


@pytest.mark.parametrize("kind", ["PEFT model", "load_adapter", "folder"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_texts_alone_and_in_a_padded_batch(kind: str, batch_size: int, saved: Any) -> None:
    spec, model = saved[0], saved[3]
    outputs = pipe_on(kind, saved)(
        [words(prompt) for prompt in prompts()],
        batch_size=batch_size,
        max_new_tokens=STEPS,
        do_sample=False,
        return_full_text=False,
    )
    found = [numbers(output[0]["generated_text"]) for output in outputs]
    assert found == [spoken(greedy(model, spec, prompt, STEPS)) for prompt in prompts()]


@pytest.mark.parametrize("kind", ["PEFT model", "load_adapter", "folder"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_chats(kind: str, batch_size: int, saved: Any) -> None:
    """The whole conversation, as the template renders it, is the prompt."""
    spec, model = saved[0], saved[3]
    chats = [
        [{"role": "user", "content": "w9 w8 w7"}],
        [
            {"role": "system", "content": "w20"},
            {"role": "user", "content": "w11 w12 w13"},
            {"role": "assistant", "content": "w30 w31"},
            {"role": "user", "content": "w14"},
        ],
    ]
    outputs = pipe_on(kind, saved)(chats, batch_size=batch_size, max_new_tokens=STEPS, do_sample=False)
    for chat, output in zip(chats, outputs, strict=True):
        prompt = [number for turn in chat for number in (4, *numbers(turn["content"]), 5)]
        answer = output[0]["generated_text"][-1]
        assert answer["role"] == "assistant"
        assert numbers(answer["content"]) == spoken(greedy(model, spec, torch.tensor(prompt), STEPS))
