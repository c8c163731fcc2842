"""Which tokens are edited, read from activations, for every architecture and every way to call a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peft_reft.runtime import plan

from .batches import PADDING, padded_batch
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
from .recording import differing, edited_by, inputs_of, raw_outputs_of, reader_of
from .tiny import BIDIRECTIONAL, BLOCKS, CAUSAL, ENCODER_DECODER, reft_model

SPECS = ["f2", "l2", "f2+l2", "l3+f3", "f3+l5"]
OTHER_SPECS = ["all", "prompt", "generated", "p[1:-1]", "p[-2:]+g[:2]", "g[1:]", "all-f1", "prompt-l1"]
ALL_NAMES = [architecture.name for architecture in (*CAUSAL, *BIDIRECTIONAL)]
CAUSAL_NAMES = [architecture.name for architecture in CAUSAL]
PACKING_NAMES = [architecture.name for architecture in CAUSAL if architecture.packs]
PAIR_NAMES = [architecture.name for architecture in ENCODER_DECODER]
PAIR_LAYERS = [("t5", 0), ("t5", BLOCKS - 1), ("bart", 0), ("bart", 1)]


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("side", PADDING)
def test_a_prefill_edits_the_prompt(name: str, spec: str, side: str) -> None:
    check_prefill(name, spec, side)


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("layer", [0, BLOCKS - 1])
def test_the_first_and_the_last_block_are_edited_alike(name: str, layer: int) -> None:
    check_prefill(name, "f2+l2", "left", layer)


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("spec", SPECS)
def test_labels_end_the_prompt(name: str, spec: str, side: str) -> None:
    check_labels(name, spec, side)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize("spec", OTHER_SPECS)
def test_every_term_means_what_it_says(name: str, spec: str, side: str) -> None:
    check_labels(name, spec, side)


@pytest.mark.parametrize("name", PACKING_NAMES)
@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "with a mask"])
@pytest.mark.parametrize("spec", ["f2", "l2", "f2+l2"])
def test_packed_sequences_have_their_own_prompts(name: str, spec: str, form: str) -> None:
    check_packed(name, spec, form)


@pytest.mark.parametrize("name", CAUSAL_NAMES)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("spec", ["f2", "l2", "f2+l2"])
def test_generation_edits_the_prompt_only(name: str, spec: str, use_cache: bool) -> None:
    check_generation(name, spec, use_cache)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("spec", OTHER_SPECS)
def test_generation_edits_generated_tokens_where_asked(name: str, spec: str, use_cache: bool) -> None:
    check_generation(name, spec, use_cache)


@pytest.mark.parametrize("name", CAUSAL_NAMES)
@pytest.mark.parametrize("way", ["prompt_mask", "prompt_lengths"])
@pytest.mark.parametrize("labels", [False, True])
def test_a_stated_prompt_wins(name: str, way: str, labels: bool) -> None:
    check_said_prompt(name, "f1+l2", way, labels)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_stated_locations_are_edited(name: str) -> None:
    check_locations(name)


@pytest.mark.parametrize("name", CAUSAL_NAMES)
@pytest.mark.parametrize("way", ["prompt_mask", "prompt_lengths", "intervention_locations"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_takes_stated_positions(name: str, way: str, use_cache: bool) -> None:
    check_said_in_generate(name, way, use_cache)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("form", ["bool", "float", "square", "square float"])
def test_a_mask_may_have_any_form(name: str, form: str) -> None:
    check_mask_form(name, form)


@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_there_may_be_a_mask_for_each_kind_of_attention(name: str) -> None:
    check_mask_form(name, "by kind")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("way", ["embeddings", "positional", "backbone", "position ids", "position ids, 1 on padding"])
def test_a_model_may_be_called_in_any_way(name: str, way: str) -> None:
    check_other_inputs(name, way)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("side", PADDING)
@pytest.mark.parametrize(("name", "layer"), PAIR_LAYERS)
def test_an_encoder_is_edited_on_its_attended_input(name: str, spec: str, side: str, layer: int) -> None:
    check_encoder(name, spec, side, layer)


@pytest.mark.parametrize("spec", [*SPECS, "all", "generated"])
@pytest.mark.parametrize("inputs", ["labels", "decoder_input_ids"])
@pytest.mark.parametrize(("name", "layer"), PAIR_LAYERS)
def test_a_decoder_is_edited_on_its_start_and_forced_tokens(name: str, spec: str, inputs: str, layer: int) -> None:
    check_decoder(name, spec, inputs, layer)


@pytest.mark.parametrize("name", PAIR_NAMES)
@pytest.mark.parametrize("form", ["bare", "by adapter", "dict"])
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_locations_speak_of_one_stack_or_both(name: str, form: str, role: str) -> None:
    check_pair_locations(name, form, role)


@pytest.mark.parametrize("name", PAIR_NAMES)
@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_of_an_encoder_decoder(name: str, role: str, use_cache: bool) -> None:
    check_pair_generation(name, "f2+l2", role, use_cache)


WITHOUT_VALUES: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    (check_prefill, ("llama", "f2+l2", "left")),
    (check_prefill, ("bert", "l3+f3", "both")),
    (check_prefill, ("gpt2", "f3+l5", "right")),
    (check_labels, ("llama", "l2", "left")),
    (check_labels, ("gpt2", "p[1:-1]", "both")),
    (check_labels, ("gpt2", "all-f1", "both")),
    (check_packed, ("llama", "f2+l2", "position_ids")),
    (check_packed, ("gpt2", "f2+l2", "cu_seq_lens")),
    (check_packed, ("gpt2", "l2", "with a mask")),
    (check_generation, ("llama", "f2+l2", True)),
    (check_generation, ("gpt2", "g[:2]", False)),
    (check_locations, ("llama",)),
    (check_said_prompt, ("gpt2", "f1+l2", "prompt_mask", True)),
    (check_encoder, ("t5", "f2+l2", "left")),
    (check_decoder, ("bart", "l2")),
]


@pytest.mark.parametrize(("check", "arguments"), WITHOUT_VALUES)
def test_edits_are_the_same_where_values_are_not_looked_at(
    check: Callable[..., None], arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that must not be synchronised: rows come from the width that the spec bounds."""
    monkeypatch.setattr(plan, "_may_read_values", lambda masks: False)
    check(*arguments)


def test_both_ways_to_read_activations_agree() -> None:
    """Adapter on against off, and a block's raw output against the next block's input."""
    batch = padded_batch("left")
    model = reft_model("llama", positions="f2+l2", layers_to_transform=[1])
    block = model.get_base_model().get_submodule("model.layers.1")
    with raw_outputs_of(block) as raw, inputs_of(reader_of(model, "llama", 1)) as read:
        model(**batch)
    assert differing(read[0], raw[0]) == edited_by(model, "llama", 1, lambda: model(**batch))
