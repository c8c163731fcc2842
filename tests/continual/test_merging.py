"""`merge_skills`: the weighted sum of adapters that loses least on validation data."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.testing import assert_close

from continual.skills import SKILLS, answered, two_skills
from contract.tiny import base_model
from peft_reft import MixedReftModel, ReftConfig, scale_adapter
from peft_reft.continual import merge_skills
from peft_reft.hub_format.errors import ConfigError, MergeError

VALIDATION = {skill: [answered(skill, 1), answered(skill, 2)] for skill in SKILLS}


@torch.no_grad()
def losses(model: PeftModel) -> list[float]:
    return [sum(model(**b).loss.item() for b in batches) / len(batches) for batches in VALIDATION.values()]


def _mean_loss(model: PeftModel, batches: list[dict[str, torch.Tensor]]) -> float:
    with torch.no_grad():
        return sum(model(**batch).loss.item() for batch in batches) / len(batches)


def test_the_sum_is_that_of_the_weights_and_no_grid_point_of_two_beats_it() -> None:
    model = two_skills()
    told = merge_skills(model, VALIDATION, "both", grid=(0.0, 0.5, 1.0), rounds=3)
    assert model.active_adapters == ["both"]
    assert_close(losses(model), list(told.losses.values()), rtol=1e-4, atol=1e-4)
    model.base_model.set_adapter(list(SKILLS))
    found = {}
    for weights in product((0.0, 0.5, 1.0), repeat=2):
        for name, weight in zip(SKILLS, weights, strict=True):
            scale_adapter(model, name, weight)
        found[weights] = sum(losses(model)) / 2
    chosen = sum(told.losses.values()) / 2
    assert chosen <= found[0.5, 0.5] + 1e-5
    neighbours = [w for w in found if sum(a != b for a, b in zip(w, told.weights.values(), strict=True)) == 1]
    assert all(chosen <= found[w] + 1e-5 for w in neighbours)


def test_each_skill_is_told_with_its_own_adapter_alone() -> None:
    model = two_skills()
    told = merge_skills(model, VALIDATION, "both", rounds=1)
    for place, skill in enumerate(SKILLS):
        model.set_adapter(skill)
        assert losses(model)[place] == pytest.approx(told.alone[skill], rel=1e-4)


def test_the_adapters_keep_their_factors_their_mode_and_what_is_trained() -> None:
    model = two_skills()
    scale_adapter(model, "other", 0.7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factors = [layer.reft.scaling["other"] for layer in model.get_base_model().model.layers]
    merge_skills(model, VALIDATION, "both", rounds=1)
    assert [layer.reft.scaling["other"] for layer in model.get_base_model().model.layers] == factors
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_kinds_without_a_sum_are_refused_and_nothing_is_left_behind() -> None:
    model = two_skills(act_fn="relu")
    before = set(model.peft_config)
    with pytest.raises(MergeError):
        merge_skills(model, VALIDATION, "both")
    assert set(model.peft_config) == before


def test_what_is_not_allowed_is_refused() -> None:
    model = two_skills()
    for changed, told in (
        ({"validation": {}}, "no batches"),
        ({"validation": {**VALIDATION, "nobody": VALIDATION["other"]}}, "nobody"),
        ({"adapters": ["default"]}, "two or more"),
        ({"grid": (-1.0,)}, "grid"),
        ({"grid": ()}, "grid"),
        ({"rounds": 0}, "rounds"),
    ):
        given = {"validation": VALIDATION, "name": "both", **changed}
        with pytest.raises(ConfigError, match=told):
            merge_skills(model, **given)
    blank = answered("other", 1)
    blank["labels"] = torch.full_like(blank["labels"], -100)
    with pytest.raises(ConfigError, match="supervises nothing"):
        merge_skills(model, {**VALIDATION, "other": [blank]}, "both")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"grid": (value for value in (0.0, 1.0))}, "grid="),
        ({"grid": "01"}, "grid="),
        ({"grid": [None]}, "grid="),
        ({"grid": [10**400]}, "grid="),
        ({"grid": torch.tensor([0.0, 1.0])}, "grid="),
        ({"adapters": 5}, "adapters=5"),
        ({"adapters": [["default"], "other"]}, "adapters="),
        ({"adapters": {"default": 1, "other": 2}}, "adapters="),
        ({"validation": None}, "validation is None"),
        ({"validation": {"default": [None], "other": [1]}}, "validation is"),
        ({"validation": {skill: iter(given) for skill, given in VALIDATION.items()}}, "validation is"),
        ({"validation": {skill: given[0] for skill, given in VALIDATION.items()}}, "validation is"),
        ({"validation": {s: [{"labels": g[0]["labels"]}] for s, g in VALIDATION.items()}}, "input_ids"),
        ({"validation": {s: [{**g[0], "labels": g[0]["labels"][0]}] for s, g in VALIDATION.items()}}, "labels"),
        ({"name": ["both"]}, "the adapter name is"),
    ],
)
def test_what_is_gone_over_once_or_holds_other_things_is_refused_and_changes_nothing(changed: Any, told: str) -> None:
    model = two_skills()
    before = list(model.active_adapters), set(model.peft_config)
    with pytest.raises(ConfigError, match=told):
        merge_skills(model, **{"validation": VALIDATION, "name": "both", "rounds": 1, **changed})
    assert (list(model.active_adapters), set(model.peft_config)) == before


def test_the_edits_of_a_mixed_model_are_merged_beside_its_lora() -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    edits = {skill: ReftConfig(task_type="CAUSAL_LM", r=2, init_weights=False) for skill in ("dates", "names")}
    model = MixedReftModel.from_configs(base_model("llama"), {"default": lora, **edits}).eval()
    validation = {"dates": VALIDATION["default"], "names": VALIDATION["other"]}
    before = model.active_adapters
    told = merge_skills(model, validation, "both", grid=(0.0, 0.5, 1.0))
    assert model.active_adapters == ["default", "both"]  # the LoRA is a part of what was measured
    found = [_mean_loss(model, batches) for batches in validation.values()]
    assert found == pytest.approx(list(told.losses.values()), rel=1e-4)
    for skill, batches in validation.items():
        model.set_adapter(["default", skill])
        assert _mean_loss(model, batches) == pytest.approx(told.alone[skill], rel=1e-4)
    assert set(before) <= set(model.peft_config)


def test_a_lora_is_no_skill_to_be_merged() -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    edits = {"edit": ReftConfig(task_type="CAUSAL_LM", r=2, init_weights=False)}
    model = MixedReftModel.from_configs(base_model("llama"), {"default": lora, **edits})
    with pytest.raises(ConfigError, match="default"):
        merge_skills(model, {"default": VALIDATION["default"], "edit": VALIDATION["other"]}, "both")
    assert set(model.peft_config) == {"default", "edit"}
