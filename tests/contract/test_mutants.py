"""Each mutant breaks the resolver in one way, and the check that holds without it must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_reft.generation.session import Session
from peft_reft.runtime import planning, resolve, whole_prompts
from peft_reft.runtime.inputs import Explicit

from .checks import (
    check_generation,
    check_labels,
    check_locations,
    check_mask_form,
    check_other_inputs,
    check_packed,
    check_prefill,
    check_said_in_generate,
    check_said_prompt,
)
from .checks_pairs import check_decoder, check_encoder, check_pair_generation, check_pair_locations


def shifted(patch: pytest.MonkeyPatch) -> None:
    """Every edit one column to the right."""
    patched_masks(patch, lambda masks: {key: replace(unit, mask=unit.mask.roll(1, 1)) for key, unit in masks.items()})


def swapped_units(patch: pytest.MonkeyPatch) -> None:
    """Prefix and suffix change places."""
    patched_masks(patch, lambda masks: dict(zip(masks, reversed(list(masks.values())), strict=True)))


def patched_masks(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    original = resolve.slot_masks
    for module in (planning, whole_prompts):
        patch.setattr(module, "slot_masks", lambda *args: change(original(*args)))


def padding_ignored(patch: pytest.MonkeyPatch) -> None:
    """Every column counts as a real token."""
    original = resolve.real_slots
    patch.setattr(resolve, "real_slots", lambda *args: torch.ones_like(original(*args)))


def labels_ignored(patch: pytest.MonkeyPatch) -> None:
    """Every real token counts as prompt."""
    patch.setattr(resolve, "_supervised", lambda *args: None)


def packing_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A row is one sequence."""
    original = resolve.sequence_starts
    patch.setattr(resolve, "sequence_starts", lambda real, *rest: original(real))


def decoding_edited(patch: pytest.MonkeyPatch) -> None:
    """Every forward of a generation is taken for a prefill of all that it sees."""
    original = Session.situation
    patch.setattr(Session, "is_decoding", lambda *args: False)
    patch.setattr(
        Session,
        "situation",
        lambda self, call, situation: replace(
            original(self, call, situation), prompt_width=call.past + call.length, prompt_real=None
        ),
    )


def statements_ignored(patch: pytest.MonkeyPatch) -> None:
    """What the caller states is dropped."""
    original = Explicit.take
    patch.setattr(Explicit, "take", classmethod(lambda cls, kwargs: (cls(), original(kwargs)[1])))


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[..., None], tuple[Any, ...]]] = [
    (shifted, check_prefill, ("llama", "f2", "left")),
    (shifted, check_prefill, ("bert", "l2", "right")),
    (shifted, check_labels, ("gpt2", "l2", "right")),
    (shifted, check_packed, ("llama", "f2", "cu_seq_lens")),
    (shifted, check_generation, ("gpt2", "l2", True)),
    (shifted, check_locations, ("llama",)),
    (shifted, check_encoder, ("t5", "f2", "left")),
    (shifted, check_decoder, ("t5", "f2")),
    (shifted, check_pair_generation, ("t5", "f2+l2", "encoder", True)),
    (shifted, check_pair_generation, ("t5", "f2+l2", "decoder", False)),
    (shifted, check_mask_form, ("llama", "square")),
    (padding_ignored, check_mask_form, ("llama", "square float")),
    (shifted, check_other_inputs, ("llama", "embeddings")),
    (padding_ignored, check_other_inputs, ("gpt2", "positional")),
    (shifted, check_pair_locations, ("bart", "bare", "decoder")),
    (statements_ignored, check_pair_locations, ("t5", "dict", "encoder")),
    (swapped_units, check_prefill, ("llama", "f2+l2", "left")),
    (swapped_units, check_locations, ("gpt2",)),
    (padding_ignored, check_prefill, ("llama", "f2", "left")),
    (padding_ignored, check_prefill, ("bert", "l2", "right")),
    (padding_ignored, check_labels, ("gpt2", "f2", "left")),
    (padding_ignored, check_said_prompt, ("llama", "f1+l2", "prompt_lengths", False)),
    (padding_ignored, check_encoder, ("t5", "l2", "right")),
    (padding_ignored, check_decoder, ("bart", "all")),
    (labels_ignored, check_labels, ("llama", "l2", "right")),
    (labels_ignored, check_packed, ("gpt2", "l2", "position_ids")),
    (labels_ignored, check_decoder, ("t5", "l2")),
    (packing_forgotten, check_packed, ("llama", "f2", "cu_seq_lens")),
    (packing_forgotten, check_packed, ("gpt2", "l2", "position_ids")),
    (decoding_edited, check_generation, ("llama", "l2", True)),
    (decoding_edited, check_generation, ("gpt2", "l2", False)),
    (decoding_edited, check_generation, ("llama", "generated", True)),
    (shifted, check_generation, ("llama", "g[1:]", False)),
    (decoding_edited, check_pair_generation, ("t5", "l2", "decoder", True)),
    (statements_ignored, check_said_prompt, ("llama", "f1+l2", "prompt_mask", True)),
    (statements_ignored, check_said_prompt, ("llama", "f1+l2", "prompt_lengths", False)),
    (statements_ignored, check_locations, ("llama",)),
    (statements_ignored, check_said_in_generate, ("llama", "prompt_lengths", True)),
    (statements_ignored, check_said_in_generate, ("gpt2", "intervention_locations", False)),
]


@pytest.mark.parametrize(("mutant", "check", "arguments"), MUTANTS)
def test_a_mutant_is_caught(
    mutant: Callable[..., None], check: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    check(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises(AssertionError):
            check(*arguments)
