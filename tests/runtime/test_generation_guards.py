"""Each guard of generation, taken out: the tokens of step-by-step decoding are missed. With it they are met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationMixin

import peft_reft.generation.generate
import peft_reft.runtime.masks
import peft_reft.runtime.resolve
from contract.tiny import reft_model, token_ids
from peft_reft.generation.session import Session
from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.runtime.inputs import Explicit

from .stepwise import greedy
from .test_generation import (
    NAMES,
    SPECS,
    STEPS,
    WAYS,
    batch,
    expected_for,
    generated,
    model_for,
    test_a_generation_is_continued,
)

Patch = pytest.MonkeyPatch


def square_mask_taken_for_full(patch: Patch) -> None:
    """A 4-D mask says nothing of padding: every slot counts as real."""
    patch.setattr(
        peft_reft.runtime.masks,
        "_from_square",
        lambda mask, call, **rest: torch.ones(call.batch, call.past + call.length, dtype=torch.bool),
    )


def empty_cache_means_prompt(patch: Patch) -> None:
    """The first forward is the prompt, all others are generation."""
    original = Session.situation

    def situation(self: Session, call: Any, given: Any) -> Any:
        known = original(self, call, given)
        width = call.length if call.past == 0 else getattr(self, "first", call.past)
        self.first = width  # type: ignore[attr-defined]
        return replace(known, prompt_width=width, prompt_real=None)

    patch.setattr(Session, "situation", situation)
    patch.setattr(Session, "is_decoding", lambda *args: False)


def prompt_grows(patch: Patch) -> None:
    """Without a cache every forward is a prefill of all that it sees."""
    original = Session.situation
    patch.setattr(
        Session,
        "situation",
        lambda self, call, given: replace(
            original(self, call, given), prompt_width=call.past + call.length, prompt_real=None
        ),
    )


def statements_dropped(patch: Patch) -> None:
    original = Explicit.take
    patch.setattr(Explicit, "take", classmethod(lambda cls, kwargs: (cls(), original(kwargs)[1])))
    patch.setattr(peft_reft.generation.generate, "check_continued", lambda *args, **kwargs: None)


def check_way(name: str, spec: str, way: str) -> None:
    assert WAYS[way](model_for(name, spec)) == expected_for(name, spec)


def check_lookup(name: str, spec: str) -> None:
    """A prompt that repeats itself: its first forward already holds a draft of what follows."""
    model, row = model_for(name, spec), token_ids(1, 4, seed=7).repeat(1, 3)
    lengths: list[int] = []
    handle = model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        found = generated(model, {"input_ids": row}, prompt_lookup_num_tokens=3)
    finally:
        handle.remove()
    assert lengths[0] == row.shape[1] + 3
    assert found == [greedy(model, spec, row[0], STEPS)]


GUARDS: list[tuple[Callable[[Patch], None], Callable[..., None], tuple[Any, ...]]] = [
    (square_mask_taken_for_full, check_way, ("llama", "f2+l2", "static cache, mask inferred")),
    (square_mask_taken_for_full, check_way, ("gpt2", "all-f1", "static cache, mask inferred")),
    (empty_cache_means_prompt, check_lookup, ("llama", "l4")),
    (empty_cache_means_prompt, check_lookup, ("gpt2", "g[:2]")),
    (empty_cache_means_prompt, check_way, ("llama", "l4", "assistant")),
    (empty_cache_means_prompt, check_way, ("gpt2", "f3+l5", "chunks of 4")),
    (prompt_grows, check_way, ("llama", "l4", "no cache")),
    (prompt_grows, check_way, ("gpt2", "g[:2]", "left padding")),
    (statements_dropped, test_a_generation_is_continued, ("llama", "l4")),
    (statements_dropped, test_a_generation_is_continued, ("gpt2", "g[:2]")),
]


@pytest.mark.parametrize(("mutant", "check", "arguments"), GUARDS)
def test_a_guard_is_needed(
    mutant: Callable[..., None], check: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    check(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises(AssertionError):
            check(*arguments)


@pytest.mark.parametrize("spec", ["l2", "f2+l2", "p[-2:]"])
def test_a_cache_of_another_prompt_would_change_tokens(spec: str, monkeypatch: Patch) -> None:
    """Without the refusal that `test_generation` checks."""
    model, row = reft_model("llama", dtype=torch.float64, positions=spec), token_ids(1, 12, seed=5)
    with torch.no_grad():
        held = model(input_ids=row[:, :6], use_cache=True).past_key_values
    monkeypatch.setattr(peft_reft.generation.generate, "check_continued", lambda *args, **kwargs: None)
    assert generated(model, {"input_ids": row}, past_key_values=held) != [greedy(model, spec, row[0], STEPS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", SPECS)
def test_drafts_of_a_prompt_that_repeats_itself(name: str, spec: str) -> None:
    check_lookup(name, spec)


# generate, called on the class


UNBOUND: list[tuple[str, dict[str, Any]]] = [
    ("l4", {"use_cache": False}),
    ("g[:2]", {}),
    ("f2+l2", {"use_cache": False}),
]


@pytest.mark.parametrize(("spec", "how"), UNBOUND)
def test_generate_called_on_the_class_is_refused(spec: str, how: dict[str, Any], monkeypatch: Patch) -> None:
    """It goes past the model's own `generate`, which knows the prompt; without the refusal tokens would differ."""
    model = model_for("llama", spec)
    base = model.get_base_model()

    def run() -> list[list[int]]:
        ids = GenerationMixin.generate(base, **batch(), max_new_tokens=STEPS, do_sample=False, **how)
        return ids[:, batch()["input_ids"].shape[1] :].tolist()

    with pytest.raises(PromptBoundaryError, match=r"call model\.generate"):
        run()
    with model.disable_adapter():
        run()
    monkeypatch.setattr(peft_reft.generation.boundary, "refuse_foreign_generation", lambda *args: None)
    if spec.startswith("g["):  # a second guard: a generation of one's own says how long its prompt is
        with pytest.raises(PromptBoundaryError, match="prompt_lengths"):
            run()
        monkeypatch.setattr(peft_reft.runtime.resolve, "check_boundary", lambda *args: None)
    assert run() != expected_for("llama", spec)


def test_generate_of_a_model_around_is_refused() -> None:
    """A model that holds the one with the adapters, such as one that also sees, runs its own generation."""
    model = model_for("llama", "l4")

    class Around(type(model.get_base_model())):  # type: ignore[misc]
        def forward(self, **kwargs: Any) -> Any:
            return self.inner(**kwargs)

    around = Around(model.get_base_model().config)
    around.inner = model.get_base_model()
    with pytest.raises(PromptBoundaryError, match="the model that generates"):
        around.generate(**batch(), max_new_tokens=STEPS)


def test_a_model_that_another_generation_asks_is_no_part_of_it() -> None:
    """A classifier or a judge that a logits processor calls has its own prompt."""
    judge, model = model_for("llama", "l4"), model_for("gpt2", "l4")
    seen = []

    def ask(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(judge(input_ids=ids.clamp(max=63)).logits)
        return scores

    found = generated(model, batch(), logits_processor=[ask])
    assert found == expected_for("gpt2", "l4")
    assert len(seen) == STEPS
