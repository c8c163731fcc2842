"""Activations by every name of transformers' `ACT2FN`: one canonical name each, its values, gradients and versions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers.activations import ACT2FN

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.activations import ACTIVATIONS, ALIASES, REFUSED, SINCE, canonical_activation
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.schema import FIELDS, from_object, to_object
from peft_reft.interventions import intervention_class
from peft_reft.interventions.activations import activation, starts_at_zero

TRAINED = {"prelu", "xielu"}
"""Whose modules in transformers have parameters, or sample."""
NAMES = sorted(set(ACT2FN) - TRAINED)
POINTS = torch.cat(
    [torch.linspace(-12, 12, 4801), torch.tensor([0.0, 3.0, -3.0, 6.0, -29.9, -30.1, 25.0, 60.0, -60.0, 1e-20])]
)


def values_and_gradient(function: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    points = POINTS.clone().to(dtype).requires_grad_()
    values = function(points)
    (gradient,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), gradient


def test_what_transformers_trains_is_what_is_refused_by_name() -> None:
    trained = {name for name in ACT2FN if any(True for _ in ACT2FN[name].parameters())}
    assert trained <= TRAINED <= set(REFUSED)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_transformers(name: str) -> None:
    """In float32 the gradients of a tanh gelu, torch's own and the spelled-out ones alike, lose 1e-6 to rounding."""
    held = ReftConfig(act_fn=name).act_fn
    for dtype, close, close_slope in ((torch.float32, 1e-6, 2e-6), (torch.float64, 1e-10, 1e-10)):
        values, gradient = values_and_gradient(lambda points: activation(held, points), dtype)
        expected, slope = values_and_gradient(ACT2FN[name], dtype)
        assert_close(values, expected, rtol=close, atol=close)
        assert_close(gradient, slope, rtol=close, atol=close_slope)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_those_of_differences(name: str) -> None:
    points = torch.linspace(-8, 8, 33, dtype=torch.float64).add(0.017).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: activation(name, z), (points,))


def test_far_below_zero_the_root_of_softplus_still_has_a_slope() -> None:
    points = torch.tensor([-40.0, -120.0], requires_grad=True)
    values = activation("sqrtsoftplus", points)
    values.sum().backward()
    assert_close(values.detach(), torch.exp(points.detach().double() / 2).float(), rtol=1e-6, atol=0)
    assert points.grad is not None
    assert_close(points.grad, values.detach() / 2, rtol=1e-6, atol=0)


def test_each_function_has_one_name_and_no_two_names_mean_one_function() -> None:
    assert {canonical_activation(name) for name in NAMES} <= {*ACTIVATIONS, None}
    assert list(ACTIVATIONS) == sorted(ACTIVATIONS)
    assert not set(ALIASES) & set(ACTIVATIONS)
    assert set(ALIASES.values()) <= {*ACTIVATIONS, None}
    seen = {name: activation(name, POINTS) for name in ACTIVATIONS}
    alike = [(a, b) for a in seen for b in seen if a < b and torch.allclose(seen[a], seen[b], atol=1e-6)]
    assert alike == []


@pytest.mark.parametrize("name", sorted({*REFUSED, *TRAINED}))
@pytest.mark.parametrize("fields", [lambda act: {"act_fn": act}, lambda act: {"interventions": [{"act_fn": act}]}])
def test_what_has_parameters_or_chance_is_refused_with_the_reason(name: str, fields: Any) -> None:
    with pytest.raises(ConfigError, match=r"trained|random") as caught:
        ReftConfig(**fields(name))
    assert (caught.value.code, caught.value.value) == ("config.value", name)
    assert "relu" in str(caught.value)


@pytest.mark.parametrize("value", ["GELU", "gelu_", "", "Linear", 3, True, ["relu"], {}])
def test_anything_else_is_refused_and_the_names_are_shown(value: Any) -> None:
    with pytest.raises(ConfigError, match="quick_gelu"):
        ReftConfig(act_fn=value)


def test_a_config_holds_and_writes_the_one_name() -> None:
    given = [{"act_fn": "swish", "r": 2}, {"act_fn": "gelu_fast"}, {"intervention": "bias", "act_fn": "linear"}, {}]
    before = copy.deepcopy(given)
    config = ReftConfig(act_fn="gelu_python", interventions=given)
    assert given == before
    names = ["silu", "gelu_tanh", None, "gelu"]
    assert [group.act_fn for group in config.groups()] == names
    stored = config.to_dict()["reft"]
    assert stored["act_fn"] == config.act_fn == "gelu"
    assert [entry.get("act_fn", "-") for entry in stored["interventions"]] == ["silu", "gelu_tanh", None, "-"]
    assert stored["spec_version"] == "1.0"


def test_a_name_that_is_set_later_is_written_canonically() -> None:
    config = ReftConfig()
    config.act_fn = "relu2"
    assert config.to_dict()["reft"]["spec_version"] == "1.1"
    config.act_fn = "swish"
    assert config.to_dict()["reft"]["act_fn"] == "silu"


def test_the_identity_by_name_is_no_activation_and_keeps_the_identity_start() -> None:
    config = ReftConfig(act_fn="linear", init_weights=True)
    assert (config.act_fn, config.spec_version) == (None, "1.0")
    assert intervention_class("loreft")(8, 2, act_fn="linear").act_fn is None
    assert intervention_class("loreft").starts_as_identity("linear")


@pytest.mark.parametrize("name", NAMES)
def test_a_kind_that_starts_from_a_source_of_zero_starts_as_the_identity_where_the_activation_lets_it(
    name: str,
) -> None:
    possible = may_start_at_zero(name)
    assert intervention_class("direft").starts_as_identity(name) == possible
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unit = intervention_class("direft")(8, 2, act_fn=name)
    hidden = torch.linspace(-1, 1, 24).view(3, 8)
    assert bool((unit(hidden).abs() < 1e-7).all()) == possible


def may_start_at_zero(name: str) -> bool:
    """Whether transformers' function gives 0 for 0, with a slope there: on a flat one W = 0 gets no gradient."""
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = ACT2FN[name](zero)
    (slope,) = torch.autograd.grad(value.sum(), zero)
    return float(value.detach()) == 0 and float(slope) != 0


def test_the_names_that_keep_zero_are_told_by_the_functions() -> None:
    expected = {canonical_activation(name) for name in NAMES if may_start_at_zero(name)}
    assert {name for name in ACTIVATIONS if starts_at_zero(name)} == expected - {None}


@pytest.mark.parametrize("init", [None, "paper"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["direft", "direft_orthogonal", "loreft", "noreft", "gated"])
def test_every_start_for_training_learns(kind: str, name: str, init: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unit = intervention_class(kind)(16, 4, act_fn=name, init_weights=init)
        hidden = torch.randn(24, 16)
    (unit(hidden) - hidden).square().mean().backward()
    assert max(float(value.grad.abs().max()) for value in unit.parameters() if value.grad is not None) > 1e-6


@pytest.mark.parametrize("name", ["relu", "relu6", "relu2"])
@pytest.mark.parametrize("kind", ["direft", "direft_orthogonal"])
def test_the_identity_on_the_flat_side_of_an_activation_is_refused_with_the_reason(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match="no gradient") as caught:
        ReftConfig(intervention=kind, act_fn=name, init_weights=True)
    assert "paper" in str(caught.value.fix)
    model = get_peft_model(base_model("llama"), ReftConfig(task_type="CAUSAL_LM", intervention=kind, act_fn=name))
    batch = token_ids(2, 6)
    model.train()(input_ids=batch, labels=torch.where(torch.arange(6) < 3, -100, batch)).loss.backward()
    trained = [value for value in model.parameters() if value.requires_grad]
    assert max(float(value.grad.abs().max()) for value in trained) > 1e-6


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"act_fn": "gelu_new"}, "1.0"),
        ({"act_fn": "quick_gelu"}, "1.1"),
        ({"act_fn": "laplace", "interventions": [{"act_fn": "relu"}]}, "1.1"),
        ({"interventions": [{"r": 2}, {"act_fn": "relu2"}]}, "1.1"),
        ({"spec_version": "1.1", "act_fn": "swish"}, "1.0"),
    ],
)
def test_config_and_manifest_say_the_lowest_version_that_has_all(
    fields: dict[str, Any], version: str, tmp_path: Path
) -> None:
    config = ReftConfig(**{"r": 2, "positions": "f2", "init_weights": False, "task_type": "CAUSAL_LM", **fields})
    assert config.spec_version == version
    model = get_peft_model(base_model("llama"), config).eval()
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["reft"]["spec_version"]
    manifest = json.loads((tmp_path / "reft_manifest.json").read_text())["spec_version"]
    assert (stored, manifest) == (version, version)
    assert check_folder(tmp_path) is not None
    back = PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert back.peft_config["default"].spec_version == version
    ids = token_ids(2, 6)
    assert torch.equal(back(ids).logits, model(ids).logits)
    back.save_pretrained(tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("version", ["1.3", "2.0", "1", 1.1, None, ["1.0"]])
def test_a_version_that_is_not_written_is_refused_where_it_is_typed(version: Any) -> None:
    with pytest.raises(ConfigError, match=r"1\.0 and 1\.1"):
        ReftConfig(spec_version=version)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if SINCE[name] != "1.0"])
def test_a_file_of_the_first_version_does_not_hold_what_came_later(name: str) -> None:
    stored = to_object({**FIELDS, "act_fn": name})
    assert stored["spec_version"] == "1.1"
    assert from_object(stored)["act_fn"] == name
    with pytest.raises(ConfigError, match=r"format version 1\.1 brought it") as caught:
        from_object({**stored, "spec_version": "1.0"})
    assert caught.value.code == "config.value"


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_a_file_holds_no_other_name_of_a_function(name: str) -> None:
    stored = {**to_object({**FIELDS}), "act_fn": name}
    with pytest.raises(ConfigError, match="no other name") as caught:
        from_object(stored)
    assert caught.value.code == "config.value"
