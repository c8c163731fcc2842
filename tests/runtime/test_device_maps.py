"""A base whose blocks lie on several devices or on disk (`device_map`) is edited as one in a single place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from peft_reft.runtime.devices import site_device

IDS = token_ids(2, 8)
LABELS = torch.where(torch.arange(8) < 5, -100, IDS)
PLACES = {
    "every block placed": {},
    "part on disk": {"model.layers.1": "disk", "model.norm": "disk"},
    "all blocks on disk": {f"model.layers.{block}": "disk" for block in range(3)},
}
ORDERS = ("adapter first", "adapter last", "adapter loaded")


def config() -> ReftConfig:
    return ReftConfig(task_type="CAUSAL_LM", r=2, positions="f2+l2", init_weights="paper")


def with_adapter(base: nn.Module) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(base, config())


def spread(base: nn.Module, place: str, folder: Path) -> nn.Module:
    """`base` with hooks of accelerate that bring each block's weights where it computes."""
    names = ["model.embed_tokens", *(f"model.layers.{block}" for block in range(3)), "model.norm", "lm_head"]
    device_map = {**dict.fromkeys([*names, "model.rotary_emb"], "cpu"), **PLACES[place]}
    spread_model: nn.Module = dispatch_model(
        base, device_map=device_map, main_device="cpu", offload_dir=str(folder / "weights"), force_hooks=True
    )
    return spread_model


def model_on(place: str, order: str, folder: Path) -> PeftModel:
    if order == "adapter first":
        model = with_adapter(base_model("llama"))
        spread(model.get_base_model(), place, folder)
        return model
    base = spread(base_model("llama"), place, folder)
    if order == "adapter last":
        return with_adapter(base)
    with_adapter(base_model("llama")).save_pretrained(str(folder / "adapter"))
    given: dict[str, Any] = {"offload_dir": str(folder / "again"), "is_trainable": True}
    return PeftModel.from_pretrained(base, str(folder / "adapter"), **given)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", PLACES)
def test_logits_and_tokens_are_those_of_one_place(place: str, order: str, tmp_path: Path) -> None:
    model, whole = model_on(place, order, tmp_path).eval(), with_adapter(base_model("llama")).eval()
    given = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, whole(input_ids=IDS).logits)
        assert torch.equal(model.generate(input_ids=IDS, **given), whole.generate(input_ids=IDS, **given))
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS).logits, base_model("llama")(input_ids=IDS).logits)


@pytest.mark.parametrize("place", PLACES)
def test_an_adapter_trains_on_a_base_that_is_spread(place: str, tmp_path: Path) -> None:
    model, whole = model_on(place, "adapter last", tmp_path).train(), with_adapter(base_model("llama")).train()
    found: list[dict[str, Tensor]] = []
    for each in (model, whole):
        each(input_ids=IDS, labels=LABELS).loss.backward()
        found.append({name: p.grad for name, p in each.named_parameters() if p.requires_grad})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[1].items():
        assert gradient.any()
        assert torch.equal(found[0][name], gradient), name


def test_what_was_trained_on_a_spread_base_is_saved_whole(tmp_path: Path) -> None:
    model = model_on("part on disk", "adapter last", tmp_path)
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)


def test_an_adapter_is_made_where_its_block_computes(tmp_path: Path) -> None:
    """Weights on disk are on the meta device; the hook knows where they will be brought."""
    base = spread(base_model("llama"), "all blocks on disk", tmp_path)
    assert all(p.is_meta for p in base.model.layers[1].parameters())
    model = with_adapter(base)
    layers = model.get_base_model().model.layers
    assert site_device(layers[1]) == torch.device("cpu")
    for module in base.model.layers[1].modules():
        if hasattr(module, "_hf_hook"):
            module._hf_hook.execution_device = "cuda:1"
    assert site_device(layers[1]) == torch.device("cuda:1")
    assert site_device(layers[0]) == torch.device("cpu")
