"""Adapters on and off, several at once, scaled, deleted, unloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from contract.recording import edited_by, inputs_of, raw_outputs_of, reader_of
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig, scale_adapter
from peft_reft.hub_format.errors import ReftError

NAMES = ("llama", "gpt2", "bert", "t5")


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything on a model that an adapter could leave behind."""
    return {
        name: (
            sorted(key for key in vars(module) if key not in ("_parameters", "_buffers", "_modules")),
            [len(hooks) for key, hooks in sorted(vars(module).items()) if "hooks" in key and hooks is not None],
            module.training,
            type(module),
        )
        for name, module in model.named_modules()
    }


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    decoder = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    return model(input_ids=ids, **decoder).logits


def with_adapters(name: str = "llama", **specs: str) -> PeftModel:
    """A model with an adapter per keyword, in float64."""
    (first, spec), *others = specs.items()
    model = reft_model(name, dtype=torch.float64, positions=spec)
    if first != "default":
        raise ValueError("the first adapter of PEFT is called default")
    for number, (other, spec) in enumerate(others):
        with torch.random.fork_rng():
            torch.manual_seed(100 + number)
            model.add_adapter(other, ReftConfig(task_type="CAUSAL_LM", init_weights=False, positions=spec))
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_disabled_adapter_gives_the_bits_of_the_base(name: str) -> None:
    ids = token_ids(2, 7)
    base = base_model(name)
    expected = logits_of(base, ids)
    model = reft_model(name, positions="f2+l2", base=base)
    edited = logits_of(model, ids)
    assert not torch.equal(edited, expected)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, ids), expected)
        model.train()  # a disabled adapter asks for no labels
        assert torch.equal(logits_of(model, ids), expected)
        model.eval()
    assert torch.equal(logits_of(model, ids), edited)


def test_a_disabled_adapter_leaves_generate_to_the_base() -> None:
    ids = token_ids(2, 7)
    base = base_model("llama")
    expected = base.generate(ids, max_new_tokens=4, do_sample=False)
    model = reft_model("llama", positions="f2+l2", base=base)
    with model.disable_adapter():
        assert torch.equal(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False), expected)


@pytest.mark.parametrize("name", NAMES)
def test_unload_leaves_no_trace(name: str) -> None:
    ids = token_ids(2, 7)
    base = base_model(name)
    expected, before, keys = logits_of(base, ids), traces(base), list(base.state_dict())
    model = reft_model(name, positions="f2+l2", base=base)
    with torch.no_grad():
        logits_of(model, ids)
    assert traces(base) != before
    assert model.unload() is base
    after = traces(base)
    assert {key: value for key, value in after.items() if value != before.get(key)} == {}
    assert list(after) == list(before)
    assert list(base.state_dict()) == keys
    assert torch.equal(logits_of(base, ids), expected)
    again = reft_model(name, positions="f2+l2", base=base)
    assert not torch.equal(logits_of(again, ids), expected)


@torch.no_grad()
def shift_of(model: PeftModel, ids: Tensor, layer: int = 0) -> Tensor:
    """What the active adapters add to a block's output."""
    block = model.get_base_model().model.layers[layer]
    with raw_outputs_of(block) as raw, inputs_of(reader_of(model, "llama", layer)) as read:
        model(input_ids=ids)
    return read[0] - raw[0]


def test_edits_of_active_adapters_add_in_any_order() -> None:
    model, ids = with_adapters(default="f2+l2", second="f4", third="all"), token_ids(2, 7)
    alone = {}
    for name in ("default", "second", "third"):
        model.base_model.set_adapter(name)
        alone[name] = shift_of(model, ids)
        assert alone[name].abs().sum() > 0
    for order in (["default", "second"], ["second", "default"], ["third", "default", "second"]):
        model.base_model.set_adapter(order)
        assert_close(shift_of(model, ids), sum(alone[name] for name in order))
    model.base_model.set_adapter(["default", "second", "third"])
    forth = logits_of(model, ids)
    model.base_model.set_adapter(["third", "second", "default"])
    assert_close(logits_of(model, ids), forth)


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"prefill_chunk_size": 3}])
def test_adapters_of_prompt_and_of_generated_tokens_generate_together(how: dict[str, Any]) -> None:
    """One does nothing in a decode step, the other does; each is told its tokens in the reference."""
    model, ids = with_adapters(default="f2+l2", second="generated", third="all"), token_ids(2, 7)
    model.base_model.set_adapter(["default", "second"])
    tokens = ids
    with torch.no_grad():
        for _ in range(4):
            columns = {"default": [0, 1, 5, 6], "second": list(range(7, tokens.shape[1])) or [-1]}
            said = {name: torch.tensor([[places]] * 2) for name, places in columns.items()}
            logits = model(input_ids=tokens, use_cache=False, intervention_locations=said).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, **how), tokens)


def test_groups_at_one_site_add_like_adapters() -> None:
    """Each group claims tokens for itself, so a token may be edited by two groups."""
    ids = token_ids(2, 7)
    groups: list[dict[str, Any]] = [{"positions": "f2+l2", "r": 2}, {"positions": "f3", "intervention": "direft"}]
    both = reft_model("llama", dtype=torch.float64, interventions=groups)
    expected = torch.zeros_like(shift_of(both, ids))
    for number, group in enumerate(groups):
        alone = reft_model("llama", dtype=torch.float64, **group)
        source, target = (model.get_base_model().model.layers[0].reft for model in (both, alone))
        target.unit(("default", 0)).load_state_dict(source.unit(("default", number)).state_dict())
        expected += shift_of(alone, ids)
    assert_close(shift_of(both, ids), expected)


def test_set_adapter_switches_and_delete_adapter_deletes() -> None:
    model, ids = with_adapters(default="f2", second="l3"), token_ids(2, 7)
    assert edited_by(model, "llama", 0, lambda: model(input_ids=ids)) == {(r, c) for r in range(2) for c in (0, 1)}
    model.set_adapter("second")
    last = {(row, column) for row in range(2) for column in (4, 5, 6)}
    assert edited_by(model, "llama", 0, lambda: model(input_ids=ids)) == last
    model.delete_adapter("default")
    assert edited_by(model, "llama", 0, lambda: model(input_ids=ids)) == last
    assert not any(".default." in name for name, _ in model.named_parameters())


def test_scale_adapter_scales_the_edit() -> None:
    model, ids = with_adapters(default="f2+l2", second="f4"), token_ids(2, 7)
    whole = shift_of(model, ids)
    scale_adapter(model, "default", -0.5)
    assert_close(shift_of(model, ids), -0.5 * whole)
    scale_adapter(model, "default", 0)
    assert torch.equal(shift_of(model, ids), torch.zeros_like(whole))
    scale_adapter(model, "default", 1)
    assert torch.equal(shift_of(model, ids), whole)
    for wrong in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="finite"):
            scale_adapter(model, "default", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="default, second"):
        scale_adapter(model, "third", 1.0)


@pytest.mark.parametrize("name", ["bias", "rotation", "reft_0", "layers", "model", "0", "7"])
def test_a_name_that_peft_would_confuse_with_a_parameters_own_is_refused(name: str) -> None:
    """Saved, such an adapter would lose a tensor."""
    with pytest.raises(ReftError, match="part of the names"):
        get_peft_model(base_model("llama"), ReftConfig(task_type="CAUSAL_LM"), adapter_name=name)
    model = reft_model("llama")
    with pytest.raises(ReftError, match="part of the names"):
        model.add_adapter(name, ReftConfig(task_type="CAUSAL_LM"))
    assert list(model.peft_config) == ["default"]
    model.add_adapter(f"{name}_edit", ReftConfig(task_type="CAUSAL_LM"))
