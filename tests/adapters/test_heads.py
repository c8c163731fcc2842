"""From all heads to some: LoFiT's selection by the largest scales, JoLA's open heads, and what is then saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import drop_closed_heads, select_heads
from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions.heads import Heads

HEADS = 4


def heads_model(**fields: Any) -> PeftModel:
    options = {"heads": HEADS, "gates": True}
    given = {"intervention": "heads", "component": "heads", "options": options, "positions": "f2+l2", **fields}
    return reft_model("llama", **given)


def units_of(model: PeftModel) -> list[Heads]:
    return [module for module in model.modules() if isinstance(module, Heads)]


def test_the_heads_with_the_largest_scales_are_chosen() -> None:
    model = heads_model(options={"heads": HEADS})
    for block, unit in enumerate(units_of(model)):
        unit.scale.data.copy_(0.01 * torch.ones(32))
        unit.scale.data[8 * block : 8 * block + 8] = -3.0 - block
    unit.scale.data[24:] = 9.0
    config = select_heads(model, 4, positions="all")
    assert config.interventions == [
        {"component": f"head_output[{head}]", "layers_to_transform": layers}
        for head, layers in ((0, [0]), (1, [1]), (2, [2]), (3, [2]))
    ]
    assert (config.intervention, config.positions, config.task_type) == ("bias", "all", "CAUSAL_LM")
    second = get_peft_model(base_model("llama"), config)
    assert sum(p.numel() for p in second.parameters() if p.requires_grad) == 4 * 8


@pytest.mark.parametrize("share", [True, False])
def test_the_open_heads_alone_edit_as_all_did(share: bool, tmp_path: Path) -> None:
    model, ids = heads_model(share_weights=share), token_ids(2, 7)
    for unit in units_of(model):
        unit.scale_gate.data.copy_(torch.tensor([-9.0, 3.0, -9.0, 0.0]))
        unit.shift_gate.data.copy_(torch.tensor([-9.0, -9.0, 0.5, -9.0]))
    expected = model(ids).logits
    drop_closed_heads(model, "default", "open")
    model.set_adapter("open")
    assert_close(model.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path, selected_adapters=["open"])
    tensors = load_file(tmp_path / "open" / "adapter_model.safetensors")
    assert {tuple(held.shape) for held in tensors.values()} == {(8,)}
    assert len(tensors) == 3 * 3 * 2 * (1 if share else 2)  # blocks, open heads, scale and shift, terms
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path / "open")).eval()
    assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_chosen_is_refused() -> None:
    model = heads_model()
    with pytest.raises(ConfigError, match="from 1 to 12"):
        select_heads(model, 13)
    for unit in units_of(model):
        unit.scale_gate.data.fill_(-9.0)
        unit.shift_gate.data.fill_(-9.0)
    with pytest.raises(ConfigError, match="no open head"):
        drop_closed_heads(model, "default", "open")
    other = reft_model("llama", positions="f2")
    with pytest.raises(ConfigError, match="not of the kind 'heads'"):
        select_heads(other, 1)
    with pytest.raises(ConfigError, match="no ReFT adapter"):
        select_heads(model, 1, adapter_name="none")


def test_a_scale_of_all_heads_is_that_of_each() -> None:
    """`heads` is what `head_output[0]` to `head_output[3]` are, one beside the other."""
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    ids = token_ids(2, 7)
    whole = reft_model("llama", intervention="bias", component="heads", positions="all", layers_to_transform=[1])
    groups = [{"component": f"head_output[{n}]"} for n in range(HEADS)]
    parts = reft_model("llama", intervention="bias", positions="all", layers_to_transform=[1], interventions=groups)
    (site,) = [m for n, m in whole.named_parameters() if n.endswith("shift")]
    site.data.copy_(vector)
    for number, (_, held) in enumerate((n, m) for n, m in parts.named_parameters() if n.endswith("shift")):
        held.data.copy_(vector[8 * number : 8 * number + 8])
    assert_close(whole(ids).logits, parts(ids).logits)
