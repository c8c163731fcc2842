"""Which tokens continuous batching edits, read from activations; and that taking a guard out is noticed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

import peft_reft.generation.requests
import peft_reft.runtime.operands
import peft_reft.runtime.site_edit
from contract.recording import differing, inputs_of, raw_outputs_of, reader_of
from contract.tiny import BY_NAME, reft_model
from peft_reft.generation.requests import Batch
from positions.reference import edited_tokens

from .batching import (
    LENGTHS,
    STEPS,
    Segments,
    batched,
    check_tokens,
    prompts,
)
from .test_generation import model_for, spy_on

pytestmark = pytest.mark.usefixtures("quick_collection")


def random_spec(draw: random.Random) -> str:
    terms = [
        f"f{draw.randint(1, 6)}",
        f"l{draw.randint(1, 6)}",
        f"p[{draw.randint(0, 3)}:{draw.choice([-2, -1, 4, 9])}]",
        f"g[{draw.randint(0, 2)}:{draw.randint(3, 5)}]",
        "prompt",
        "all",
    ]
    spec = "+".join(draw.sample(terms[:4], draw.randint(1, 3))) if draw.random() < 0.8 else draw.choice(terms[4:])
    return spec + draw.choice(["", "", "-f1", "-l1"] if spec not in ("f1", "l1") else [""])


def check_edited(spec: str, seed: int, layer: int = 1, **settings: Any) -> None:
    """Every token that a forward computes is edited if the spec says so of its request, and else not."""
    model, given = reft_model("llama", positions=spec), prompts(seed=seed)
    base = model.get_base_model()
    block = base.get_submodule(f"{BY_NAME['llama'].blocks['only']}.{layer}")
    with (
        Segments(base) as forwards,
        raw_outputs_of(block) as raw,
        inputs_of(reader_of(model, "llama", layer)) as read,
    ):
        outputs = batched(model, given, **settings)
    whole = [prompt.tolist() + output for prompt, output in zip(given, outputs, strict=True)]
    told, edits = 0, 0
    for segments, before, after in zip(forwards, raw, read, strict=True):
        found, column = differing(after, before), 0
        for first, tokens in segments:
            flags = {
                tuple(meant(spec, len(prompt), len(row))[first : first + len(tokens)])
                for prompt, row in zip(given, whole, strict=True)
                if row[first : first + len(tokens)] == tokens
            }
            assert flags, "a forward computes tokens of no request"
            if len(flags) == 1:  # else two requests say the same here
                told += 1
                here = tuple((0, column + number) in found for number in range(len(tokens)))
                assert here == next(iter(flags))
                edits += sum(here)
            column += len(tokens)
    assert told > len(given) * STEPS * 0.8
    assert edits or spec.endswith("-f1") or spec.endswith("-l1")


def meant(spec: str, prompt: int, total: int) -> list[bool]:
    edited = set().union(*edited_tokens(spec, [[True] * total], width=prompt))
    return [(0, token) in edited for token in range(total)]


@pytest.mark.parametrize("seed", range(10))
def test_the_tokens_that_the_spec_means_are_edited(seed: int) -> None:
    draw = random.Random(seed)
    settings = {"page_size": draw.choice([4, 8]), "max_batch_tokens": draw.randint(3, 20)}
    check_edited(random_spec(draw), 100 * seed, **settings)


def test_a_decode_only_batch_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's adapter resolves no positions and calls no unit once every request of the batch decodes."""
    model = model_for.__wrapped__("llama", "f2+l2")  # a new one: R is kept in one that has run
    log: list[str] = []
    spy_on(monkeypatch, peft_reft.generation.requests, "slot_masks", log)
    spy_on(monkeypatch, peft_reft.runtime.site_edit, "edit_affine", log)
    spy_on(monkeypatch, peft_reft.runtime.operands, "orthonormal_rows", log)
    base = model.get_base_model()
    handle = base.register_forward_pre_hook(lambda *args: log.append("forward"), prepend=True)
    try:
        with Segments(base) as forwards:
            batched(model, prompts()[:3], num_blocks=64, max_batch_tokens=64)
    finally:
        handle.remove()
    names = {"forward": "|", "edit_affine": "e", "slot_masks": "m", "orthonormal_rows": "r"}
    work = "".join(names[entry] for entry in log).split("|")[1:]
    decodes = [all(len(tokens) == 1 and first >= 2 for first, tokens in segments) for segments in forwards]
    assert decodes == [False, *[True] * (STEPS - 1)]
    assert work == ["mreee", *[""] * (STEPS - 1)]


def requests_changed(change: Callable[[Batch], Batch]) -> Callable[[pytest.MonkeyPatch], None]:
    original = Batch.of.__func__  # type: ignore[attr-defined]

    def mutate(patch: pytest.MonkeyPatch) -> None:
        def of(cls: Any, processor: Any, call: Any) -> Any:
            batch = original(cls, processor, call)
            return batch if batch is None else change(batch)

        patch.setattr(Batch, "of", classmethod(of))

    return mutate


def each(change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return requests_changed(lambda batch: replace(batch, requests=tuple(map(change, batch.requests))))


def reversed_order(batch: Batch) -> Batch:
    """Each request's prompt and place are taken for another's."""
    swapped: Sequence[Any] = [
        replace(own, prompt=other.prompt, past=other.past)
        for own, other in zip(batch.requests, reversed(batch.requests), strict=True)
    ]
    return replace(batch, requests=tuple(swapped))


def requeued_prompts_grow(patch: pytest.MonkeyPatch) -> None:
    """What a request said before it was put back counts as its prompt."""
    original = Batch.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, processor: Any, call: Any) -> Any:
        batch = original(cls, processor, call)
        states = [future.state for future in processor.inputs_and_outputs.requests_in_batch]
        lengths = [len(state.initial_tokens) for state in states]
        requests = [replace(own, prompt=n) for own, n in zip(batch.requests, lengths, strict=True)]
        return replace(batch, requests=tuple(requests))

    patch.setattr(Batch, "of", classmethod(of))


def check_llama(spec: str) -> None:
    check_tokens(model_for("llama", spec), spec)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = [
    (requeued_prompts_grow, lambda: check_llama("l4")),
    (requeued_prompts_grow, lambda: check_edited("l2", 0)),
    (each(lambda request: replace(request, past=0)), lambda: check_llama("f2+l2")),
    (each(lambda request: replace(request, past=0)), lambda: check_edited("f3", 0)),
    (each(lambda request: replace(request, prompt=max(LENGTHS))), lambda: check_llama("l4")),
    (requests_changed(reversed_order), lambda: check_llama("f2+l2")),
    (requests_changed(reversed_order), lambda: check_edited("f2+l2", 0)),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_a_mutant_is_caught(mutant: Callable[..., None], check: Callable[[], None]) -> None:
    check()
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises(AssertionError):
            check()
