"""`rotated_interchange` sets a variable to a value; `set_value` to another one, which is then saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, set_subspaces, set_value
from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import intervention_class, orthonormal_rows

OPTIONS: dict[str, Any] = {"variable": "S1", "values": [0, 1, 2], "value": 0}
TWO: list[dict[str, Any]] = [
    {"options": {"variable": "A", "values": ["x", "y"], "value": None}, "r": 2},
    {"options": {"variable": "B", "values": [1.5], "value": 1.5}, "r": 1},
    {"intervention": "bias", "positions": "f1", "options": None},
]


def model_with(**changes: Any) -> PeftModel:
    given = {"intervention": "rotated_interchange", "r": 3, "options": OPTIONS, "positions": "l2"}
    return reft_model("llama", **{**given, "layers_to_transform": [1], **changes})


def unit_of(model: PeftModel, number: int = 0, adapter: str = "default") -> Any:
    return model.get_base_model().model.layers[1].reft.unit((adapter, number))


def logits(model: Any, **further: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_ids(2, 6), **further).logits
    return found


def test_every_value_is_its_own_point_in_the_subspace() -> None:
    model = model_with()
    unit, hidden = unit_of(model), torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).double()
    rows = orthonormal_rows(unit.rotation.detach().double())
    for place, value in enumerate(OPTIONS["values"]):
        set_value(model, "default", "S1", value)
        edited = hidden + unit(hidden)
        assert_close(edited @ rows.T, unit.points[place].double().expand(4, -1), check_dtype=False)
        rest = torch.eye(32) - rows.T @ rows
        assert_close(edited @ rest, hidden @ rest)


def test_none_keeps_every_bit_of_h() -> None:
    model = model_with(positions="all")
    set_value(model, "default", "S1", None)
    assert torch.equal(logits(model), logits(base_model("llama")))
    delta = unit_of(model)(torch.tensor([-0.0] * 32))
    assert torch.equal(torch.signbit(torch.tensor([-0.0] * 32) + delta), torch.ones(32, dtype=torch.bool))


def test_generation_follows_the_value_without_a_reload() -> None:
    model = model_with()
    with torch.no_grad():
        unit_of(model).points.mul_(20)
    given = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    found = {}
    for value in (0, 1, 0):
        set_value(model, "default", "S1", value)
        ids = model.generate(input_ids=token_ids(1, 6), **given)
        assert torch.equal(found.setdefault(value, ids), ids)
        uncached = model.generate(input_ids=token_ids(1, 6), use_cache=False, **given)
        assert torch.equal(ids, uncached)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("value", [2, None])
def test_an_adapter_is_saved_with_the_value_it_has(value: Any, tmp_path: Path) -> None:
    model = model_with()
    set_value(model, "default", "S1", value)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert torch.equal(logits(again), expected)
    assert again.peft_config["default"].options == {**OPTIONS, "value": value}
    set_value(again, "default", "S1", 1)
    set_value(model, "default", "S1", 1)
    assert torch.equal(logits(again), logits(model))


def test_a_variable_is_set_in_its_own_group_only(tmp_path: Path) -> None:
    model = model_with(interventions=TWO)
    before = logits(model)
    set_value(model, "default", "A", "y")
    assert (unit_of(model, 0).value, unit_of(model, 1).value) == ("y", 1.5)
    after = logits(model)
    assert not torch.equal(before, after)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert torch.equal(logits(again), after)
    assert TWO[0]["options"]["value"] is None  # the caller's own dicts stay as they were


def test_a_group_that_inherits_its_options_gets_its_own(tmp_path: Path) -> None:
    model = model_with(interventions=[{"positions": "f1"}, {"intervention": "loreft", "options": None}])
    set_value(model, "default", "S1", 2)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()), expected)


def test_a_value_that_one_of_two_sites_lacks_changes_neither() -> None:
    groups = [{"options": OPTIONS}, {"options": {**OPTIONS, "values": [0, 1]}, "positions": "f1"}]
    model = model_with(interventions=groups)
    with pytest.raises(ConfigError, match="its values are: 0, 1"):
        set_value(model, "default", "S1", 2)
    assert [unit_of(model, number).value for number in (0, 1)] == [0, 0]
    set_value(model, "default", "S1", 1)
    assert [entry["options"]["value"] for entry in model.peft_config["default"].interventions] == [1, 1]


def test_a_variable_at_several_sites_is_set_at_all_of_them() -> None:
    model = model_with(layers_to_transform=None, share_weights=False, positions="f1+l1")
    set_value(model, "default", "S1", 2)
    layers = model.get_base_model().model.layers
    assert {layer.reft.unit(("default", number)).value for layer in layers for number in (0, 1)} == {2}


def test_options_left_to_their_defaults_can_be_set_and_are_saved() -> None:
    model = model_with(options=None)
    set_value(model, "default", "V", False)
    assert model.peft_config["default"].options == {"value": False}
    assert unit_of(model).value is False


def test_a_value_equal_to_a_listed_one_is_that_one() -> None:
    model = model_with()
    set_value(model, "default", "S1", True)
    assert model.peft_config["default"].options["value"] == 1
    assert model.peft_config["default"].options["value"] is not True


def test_rows_of_a_batch_have_their_adapters_values() -> None:
    """Adapters of one structure are stacked; one whose value was set since must not lend it to the others."""
    model = model_with()
    for name in ("second", "third"):
        model.add_adapter(name, ReftConfig(**{**vars_of(model), "options": dict(OPTIONS)}))
    model.eval()

    def alone(name: str) -> torch.Tensor:
        model.set_adapter(name)
        return logits(model)

    names = ["default", "second"]
    for value in (0, 2, 0, None):
        for changed in names:
            set_value(model, changed, "S1", value)
            together = logits(model, adapter_names=names)
            for row, name in enumerate(names):
                assert torch.equal(together[row], alone(name)[row])
            apart = logits(model, adapter_names=["second", "third"])
            assert torch.equal(apart[1], alone("third")[1])


def test_rows_of_a_batch_have_their_adapters_subspaces() -> None:
    model = model_with(subspaces={"first": [0, 1], "rest": [1, 3]})
    model.add_adapter("second", ReftConfig(**{**vars_of(model), "options": dict(OPTIONS)}))
    model.eval()
    set_subspaces(model, "default", ["rest"])
    together = logits(model, adapter_names=["default", "second"])
    assert_close(together[0], logits(model)[0])


def vars_of(model: PeftModel) -> dict[str, Any]:
    config = model.peft_config["default"]
    names = ("task_type", "r", "intervention", "positions", "layers_to_transform")
    return {**{name: getattr(config, name) for name in names}, "init_weights": False}


@pytest.mark.parametrize("value", [2, None])
def test_a_sum_of_adapters_has_the_values_they_have(value: Any) -> None:
    model = model_with()
    fields = {**vars_of(model), "intervention": "bias", "positions": "f1"}
    model.add_adapter("other", ReftConfig(**fields))
    model.eval()
    set_value(model, "default", "S1", value)
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model)
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    assert_close(logits(model), expected)


@pytest.mark.slow
def test_compiled_code_follows_the_value() -> None:
    model = model_with()
    compiled = torch.compile(model, backend="eager")
    found = {}
    for value in (0, 2, None, 0):
        set_value(model, "default", "S1", value)
        found[value] = logits(compiled)
        assert_close(found[value], logits(model))
    assert not torch.equal(found[0], found[2])


def test_the_value_is_set_beside_a_lora(tmp_path: Path) -> None:
    from peft import LoraConfig

    edit = ReftConfig(**{**vars_of(model_with()), "options": OPTIONS})
    base = base_model("llama")
    mixed = MixedReftModel.from_configs(base, {"default": LoraConfig(task_type="CAUSAL_LM"), "edit": edit}).eval()
    before = logits(mixed)
    set_value(mixed, "edit", "S1", 2)
    after = logits(mixed)
    assert not torch.equal(before, after)
    mixed.save_pretrained(tmp_path)
    again = MixedReftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert_close(logits(again), after)


def test_transformers_own_loading_can_be_set(tmp_path: Path) -> None:
    model = model_with()
    model.save_pretrained(tmp_path)
    set_value(model, "default", "S1", 2)
    base = base_model("llama")
    base.load_adapter(str(tmp_path))
    set_value(base, "default", "S1", 2)
    assert torch.equal(logits(base), logits(model))


def test_subspaces_switch_its_rows() -> None:
    model = model_with(subspaces={"first": [0, 1], "rest": [1, 3]})
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    set_value(model, "default", "S1", 1)
    set_subspaces(model, "default", ["rest"])
    unit = unit_of(model)
    rows = orthonormal_rows(unit.rotation.detach())[1:]
    assert_close((hidden + unit(hidden)) @ rows.T, unit.points[1, 1:].expand(3, -1))


def test_only_the_point_that_is_set_is_trained() -> None:
    model = model_with()
    set_value(model, "default", "S1", 1)
    model(token_ids(2, 6)).logits.sum().backward()
    assert unit_of(model).points.grad.any(1).tolist() == [False, True, False]
    assert unit_of(model).rotation.grad.any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variable": ""}, "a text of 1 to 200"),
        ({"variable": 3}, "a text of 1 to 200"),
        ({"variable": "x" * 201}, "a text of 1 to 200"),
        ({"values": []}, "a list of 1"),
        ({"values": "ab"}, "a list of 1"),
        ({"values": [0, [1]], "value": 0}, "a list of 1"),
        ({"values": [None, 1], "value": 1}, "a list of 1"),
        ({"values": [0, float("nan")], "value": 0}, "a list of 1"),
        ({"values": [0, float("inf")], "value": 0}, "a list of 1"),
        ({"values": [0, 2**63], "value": 0}, "a list of 1"),
        ({"values": [0, "x" * 201], "value": 0}, "a list of 1"),
        ({"values": list(range(65_537)), "value": 0}, "a list of 1"),
        ({"values": [0, 1, True], "value": 0}, "twice"),
        ({"values": [0, 1], "value": [0]}, "None or a text"),
        ({"values": [0, 1], "value": 2}, "value 2 is not one of values"),
        ({"values": ["a", "b"]}, "value True is not one of values"),
        ({"points": 3}, "no such option"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_wrong_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ReftConfig(intervention="rotated_interchange", options=options)


def test_a_value_may_be_none_and_values_of_any_scalar_type() -> None:
    ReftConfig(intervention="rotated_interchange", options={"values": ["", "b", 2, 0.5, False], "value": None})


def test_wrong_settings_are_refused_and_change_nothing() -> None:
    model = model_with()
    with pytest.raises(ConfigError, match="known are: default"):
        set_value(model, "other", "S1", 1)
    with pytest.raises(ConfigError, match="it sets: S1"):
        set_value(model, "default", "S2", 1)
    for wrong in (3, "0", [0], torch.tensor([0, 1])):
        with pytest.raises(ConfigError, match="its values are: 0, 1, 2"):
            set_value(model, "default", "S1", wrong)
    assert unit_of(model).value == 0
    with pytest.raises(ConfigError, match="no intervention rotated_interchange"):
        set_value(model_with(intervention="loreft", options=None), "default", "S1", 1)


def test_there_are_as_many_points_as_values() -> None:
    unit = intervention_class("rotated_interchange")(8, 2, options={"values": ["a", "b", "c"], "value": "a"})
    assert {name: tuple(t.shape) for name, t in unit.named_tensors().items()} == {"rotation": (2, 8), "points": (3, 2)}
