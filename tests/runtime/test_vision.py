"""Models with image inputs: the text model is edited, an image's tokens are tokens of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from contract.recording import differing, inputs_of, raw_outputs_of
from contract.vision import IMAGE, MODELS, PROMPT, image_batch, vision_model
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format.errors import SiteError

QUICK = ("llava", "qwen2_vl")
NAMES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS]


def edited(name: str, **fields: Any) -> PeftModel:
    given = {"r": 2, "positions": "f3+l2", "init_weights": False, **fields}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(vision_model(name), ReftConfig(task_type="CAUSAL_LM", **given)).eval()


def changed(model: PeftModel, name: str, layer: int, batch: dict[str, Tensor]) -> set[tuple[int, int]]:
    """Tokens that the edit changes between a block and the next."""
    blocks = model.get_base_model().get_submodule(MODELS[name][1])
    with torch.no_grad(), raw_outputs_of(blocks[layer]) as raw, inputs_of(blocks[layer + 1]) as read:
        model(**batch)
    return differing(read[0], raw[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("named", [False, True])
def test_the_blocks_of_the_text_model_are_edited_and_no_other(name: str, named: bool) -> None:
    path = MODELS[name][1]
    model = edited(name, layers_pattern=path if named else None)
    sites = [site for site, module in model.get_base_model().named_modules() if site.endswith(".reft")]
    assert sites == [f"{path}.{layer}.reft" for layer in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_token_is_a_token_of_the_prompt(name: str) -> None:
    """The third token of each prompt is the image's first; padding on the left moves all of them."""
    model = edited(name)
    batch = image_batch(name)
    assert bool((batch["input_ids"][:, 2] == IMAGE).all())
    columns = {0, 1, 2, PROMPT - 2, PROMPT - 1}
    assert changed(model, name, 0, batch) == {(row, column) for row in (0, 1) for column in columns}
    found = changed(model, name, 0, image_batch(name, padding=3))
    assert {column for row, column in found if row == 1} == {3, 4, 5, PROMPT - 2, PROMPT - 1}


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_ends_before_the_first_label(name: str) -> None:
    model = edited(name).train()
    batch = image_batch(name)
    labels = torch.where(torch.arange(PROMPT) < 9, -100, batch["input_ids"])
    columns = {0, 1, 2, 7, 8}
    assert changed(model, name, 0, {**batch, "labels": labels}) == {(r, c) for r in (0, 1) for c in columns}
    model(**batch, labels=labels).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (".reft_" in parameter_name)
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padding", [0, 3])
def test_generated_tokens_are_those_without_a_cache(name: str, padding: int) -> None:
    model = edited(name)
    batch = image_batch(name, padding=padding)
    given = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = model.generate(**batch, **given)
    assert torch.equal(found, model.generate(**batch, **given, use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(found, model.generate(**batch, **given))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_computes_the_same(name: str, tmp_path: Path) -> None:
    model = edited(name)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(vision_model(name), str(tmp_path))
    batch = image_batch(name)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_lora_may_stand_beside_the_edits(name: str) -> None:
    """PEFT's LoRA names modules by their ends, so it may reach into the vision tower; the edits do not."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    edit = ReftConfig(task_type="CAUSAL_LM", r=2, positions="f3+l2", init_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MixedReftModel.from_configs(vision_model(name), {"default": lora, "edit": edit}).eval()
    batch = image_batch(name)
    outputs = []
    for active in (["default", "edit"], ["default"], ["edit"], []):
        model.set_adapter(active)
        with torch.no_grad():
            outputs.append(model(**batch).logits)
    assert not any(torch.equal(one, two) for place, one in enumerate(outputs) for two in outputs[:place])


@pytest.mark.parametrize("pattern", ["encoder.layers", "blocks"])
def test_a_stack_of_the_vision_tower_is_refused(pattern: str) -> None:
    """Positions are those of text: a patch of an image has none."""
    name = "qwen2_vl" if pattern == "blocks" else "llava"
    with pytest.raises(SiteError, match="text") as caught:
        edited(name, layers_pattern=pattern)
    assert caught.value.code == "site.tower"
    assert MODELS[name][1] in str(caught.value)
