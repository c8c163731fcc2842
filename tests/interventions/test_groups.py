"""`interventions=[…]`: several groups of sites in one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig

GROUPS: list[dict[str, Any]] = [
    {"layers_to_transform": [0, 1], "r": 2, "positions": "f2+l2", "share_weights": False},
    {"layers_to_transform": [1, 2], "intervention": "bias", "positions": "all", "component": "mlp_output"},
    {"layers_to_transform": [2], "intervention": "noreft", "act_fn": "tanh", "options": {"add_bias": True}},
    {"layers_to_transform": [1], "intervention": "bias", "component": "head_output[2]", "positions": "prompt"},
]


def logits_of(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def test_groups_are_made_saved_and_loaded(tmp_path: Path) -> None:
    model, ids = reft_model("llama", interventions=GROUPS), token_ids(2, 7)
    shapes = {n.split("layers.")[1]: tuple(p.shape) for n, p in model.named_parameters() if "reft_" in n}
    assert shapes["0.reft.reft_0.default.weight"] == shapes["1.reft.reft_1.default.weight"] == (2, 32)
    assert shapes["2.mlp.reft.reft_2.default.shift"] == (32,)
    assert shapes["2.reft.reft_3.default.projection_bias"] == (4,)
    assert shapes["1.self_attn.o_proj.reft.reft_4.default.shift"] == (8,)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert again.peft_config["default"].interventions == GROUPS
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))


def test_groups_at_one_site_add_as_adapters_do() -> None:
    """Both are computed from the same unedited h: the sum of one adapter's groups is that of two adapters."""
    ids, layer = token_ids(2, 7), {"layers_to_transform": [1]}
    pair = [{"r": 2, "positions": "f3", **layer}, {"intervention": "bias", "positions": "f2", **layer}]
    model = reft_model("llama", interventions=pair)
    other = reft_model("llama", **pair[0])
    other.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", **pair[1]))
    state = {name.split("reft.reft_")[-1]: p.detach() for name, p in model.named_parameters() if "reft_" in name}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "reft_" in name:
                tensor = name.rpartition(".")[2]
                parameter.copy_(state[f"1.default.{tensor}" if ".second." in name else f"0.default.{tensor}"])
    other.base_model.set_adapter(["default", "second"])
    assert_close(logits_of(other, ids), logits_of(model, ids))


def test_encoder_and_decoder_apart() -> None:
    groups: list[dict[str, Any]] = [
        {"layers_pattern": "encoder.block", "layers_to_transform": [-1], "positions": "f2+l2"},
        {"layers_pattern": "decoder.block", "intervention": "bias", "positions": "all", "layers_to_transform": 0},
    ]
    model = reft_model("t5", interventions=groups)
    sites = {
        n.split(".reft.")[0].removeprefix("base_model.model.") for n, _ in model.named_parameters() if "reft_" in n
    }
    assert sites == {"encoder.block.2", "decoder.block.0"}
    ids, after = token_ids(2, 6), token_ids(2, 5, seed=1)
    with torch.no_grad():
        both = model(input_ids=ids, decoder_input_ids=after).logits
        base = base_model("t5")(input_ids=ids, decoder_input_ids=after).logits
        generated = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert not torch.allclose(both, base)
    assert generated.shape == (2, 5)


def test_top_level_fields_are_the_defaults() -> None:
    config = ReftConfig(r=3, positions="f1", dropout=0.1, interventions=[{}, {"r": 5, "positions": "l1"}])
    first, second = config.groups()
    assert (first.r, str(first.positions), first.dropout) == (3, "f1", 0.1)
    assert (second.r, str(second.positions), second.dropout) == (5, "l1", 0.1)


@pytest.mark.parametrize(
    "groups",
    [[], "loreft", [3], [{"rank": 3}], [{"r": 0}], [{"init_weights": True}], [{"positions": "x7"}], [{}] * 65],
)
def test_wrong_groups_are_refused(groups: Any) -> None:
    with pytest.raises(ValueError, match=r"interventions|positions|r=0"):
        ReftConfig(interventions=groups)


def test_explicit_locations_count_terms_over_the_groups() -> None:
    ids = token_ids(1, 6)
    pair = [{"positions": "f1"}, {"positions": "f1+l1", "share_weights": False}]
    model = reft_model("llama", interventions=pair, layers_to_transform=[1])
    said = torch.tensor([[[0], [0], [5]]])
    expected = logits_of(model, ids)
    with torch.no_grad():
        assert_close(model(input_ids=ids, intervention_locations=said).logits, expected)
