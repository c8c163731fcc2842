"""Which lists of modules are the blocks of a model, where it has several; paths are those of its modelling code."""

from __future__ import annotations

from typing import Any

import pytest
from architectures.classes import FAMILIES, Subject, subjects
from architectures.models import made

from peft_reft.hub_format.errors import SiteError
from peft_reft.sites import find_stacks


def model_of(name: str) -> Any:
    subject: Subject = next(one for family in FAMILIES for one in subjects(family) if one.name == name)
    return made(subject).model


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("GitForCausalLM", ["git.encoder.layer"]),
        ("Phi4MultimodalForCausalLM", ["model.layers"]),
        ("EvollaForProteinText2Text", ["model.layers"]),
        ("T5Gemma2ForConditionalGeneration", ["model.encoder.text_model.layers", "model.decoder.layers"]),
        ("SeamlessM4TForTextToText", ["text_encoder.layers", "text_decoder.layers"]),
    ],
)
def test_the_text_s_stacks_are_found_beside_towers(name: str, paths: list[str]) -> None:
    stacks = find_stacks(model_of(name))
    assert [stack.path for stack in stacks] == paths
    assert [stack.role for stack in stacks] == (["only"] if len(paths) == 1 else ["encoder", "decoder"])


def test_a_tower_beside_the_text_is_refused_by_name() -> None:
    with pytest.raises(SiteError, match="not in the text model") as caught:
        find_stacks(model_of("GitForCausalLM"), "git.image_encoder.vision_model.encoder.layers")
    assert caught.value.code == "site.tower"
    assert "git.encoder.layer" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "named", "pattern"),
    [
        ("XLMWithLMHeadModel", "attentions, layer_norm1, ffns, layer_norm2", "layer_norm2"),
        ("FlaubertWithLMHeadModel", "attentions, layer_norm1, ffns, layer_norm2", "ffns"),
        ("HrmTextForCausalLM", "model.L_module.layers", "H_module.layers"),
    ],
)
def test_several_lists_are_named_in_the_refusal(name: str, named: str, pattern: str) -> None:
    model = model_of(name)
    with pytest.raises(SiteError, match=named) as caught:
        find_stacks(model)
    assert caught.value.code == "site.stack"
    assert "layers_pattern=" in str(caught.value)
    (stack,) = find_stacks(model, pattern)
    assert stack.path.endswith(pattern)
