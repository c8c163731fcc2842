"""Arguments of a wrong type or range: an error that names value and rule, never one from deep inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import (
    MixedReftModel,
    ReftConfig,
    prompt_cache,
    register_intervention,
    scale_adapter,
    set_subspaces,
    set_value,
)
from peft_reft.causal import Pca, Site, collect, interchange, put
from peft_reft.hub_format.errors import ConfigError, LocationError, ReftError, SiteError

IDS = token_ids(2, 6)
NO_MODEL = [None, "model", [], 3]


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return reft_model("llama", r=2, positions="f1+l1", subspaces={"style": [0, 1], "tone": [1, 2]})


@pytest.mark.parametrize("wrong", NO_MODEL, ids=repr)
def test_what_is_no_model_is_named(wrong: Any) -> None:
    for call in (
        lambda: scale_adapter(wrong, "default", 1.0),
        lambda: set_subspaces(wrong, "default", ["style"]),
        lambda: set_value(wrong, "default", "S", 1),
        lambda: prompt_cache(wrong, IDS),
        lambda: interchange(wrong, {"input_ids": IDS}, {"input_ids": IDS}, Site(layer=0)),
        lambda: collect(wrong, {"input_ids": IDS}, Site(layer=0)),
    ):
        with pytest.raises(ConfigError, match=r"model is a .*Module"):
            call()


@pytest.mark.parametrize("factor", [float("nan"), float("-inf"), 10**400, True, "2", None], ids=lambda f: str(f)[:5])
def test_a_factor_is_a_number_that_a_float_holds(model: PeftModel, factor: Any) -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        scale_adapter(model, "default", factor)


@pytest.mark.parametrize("name", [["default"], {}, None, 1], ids=repr)
def test_an_adapter_is_named_by_a_string(model: PeftModel, name: Any) -> None:
    for call in (
        lambda: scale_adapter(model, name, 1.0),
        lambda: set_subspaces(model, name, ["style"]),
        lambda: set_value(model, name, "S", 1),
    ):
        with pytest.raises(ConfigError, match=r"no ReFT adapter .*known are: default"):
            call()


@pytest.mark.parametrize("names", [1, 0.5, True, "style", [], [["style"]], [None], {"style": 1}], ids=repr)
def test_subspaces_are_a_list_of_names(model: PeftModel, names: Any) -> None:
    with pytest.raises(ConfigError, match=r"subspaces=.*style, tone"):
        set_subspaces(model, "default", names)


def test_no_adapter_is_named_as_a_row_without_one() -> None:
    """`adapter_names` would take its rows for the base's."""
    with pytest.raises(ConfigError, match="row without an adapter"):
        reft_model("llama").add_adapter("__base__", ReftConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="row without an adapter"):
        MixedReftModel.from_configs(
            base_model("llama"), {"default": LoraConfig(target_modules=["q_proj"]), "__base__": ReftConfig()}
        )


@pytest.mark.parametrize("verb", ["forward", "generate"])
@pytest.mark.parametrize("value", [2, -1, -100])
def test_a_prompt_mask_is_made_of_zeros_and_ones(model: PeftModel, value: int, verb: str) -> None:
    """Labels, passed as the mask by mistake, are no prompt."""
    mask = torch.ones_like(IDS)
    mask[1, 2] = value
    with pytest.raises(LocationError, match=f"prompt_mask holds {value}"):
        (model if verb == "forward" else model.generate)(input_ids=IDS, prompt_mask=mask)


@pytest.mark.parametrize("wrong", [3, True, b"x", [1], [None], ["a b"], ["bias"]], ids=repr)
def test_modules_to_save_are_names(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="modules_to_save"):
        ReftConfig(modules_to_save=wrong)


@pytest.mark.parametrize("wrong", [3, "x", [], [1, 1], [-1], ["a"], [1.5], {1: [2]}, {"a": 1}, [2**40]], ids=repr)
def test_trainable_tokens_are_ids(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="trainable_token_indices"):
        ReftConfig(trainable_token_indices=wrong)


def test_several_modules_to_save_may_stand_in_any_collection() -> None:
    for given in (["score"], ("score",), {"score"}):
        assert list(ReftConfig(modules_to_save=given).modules_to_save) == ["score"]


@pytest.mark.parametrize("name", [None, 3, "", "a\n", "x" * 65, ["loreft"]], ids=lambda name: repr(name)[:9])
def test_a_kind_is_registered_under_a_name(name: Any) -> None:
    with pytest.raises(ConfigError, match="printable"):
        register_intervention(name)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None], ids=repr)
def test_the_version_of_a_kind_is_a_count(version: Any) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        register_intervention("wrong_version", version=version)


@pytest.mark.parametrize("cls", [None, 3, nn.Linear], ids=["None", "3", "Linear"])
def test_a_kind_is_a_class_of_interventions(cls: Any) -> None:
    with pytest.raises(ConfigError, match="subclass of Intervention"):
        register_intervention("wrong_class")(cls)


SITES: dict[str, dict[str, Any]] = {
    "joint": {"joint": "yes"},
    "on_input": {"on_input": 0},
    "component": {"component": 3},
    "no component": {"component": None},
    "layers_pattern": {"layers_pattern": ["layers"]},
    "mask above 1": {"mask": torch.tensor([0.0, 2.0])},
    "mask below 0": {"mask": torch.tensor([-0.1, 1.0])},
    "mask of NaN": {"mask": torch.tensor([float("nan"), 1.0])},
}


@pytest.mark.parametrize("wrong", SITES)
def test_a_site_says_what_it_was_given(wrong: str) -> None:
    with pytest.raises(SiteError, match=wrong.removeprefix("no ").split()[0]):
        Site(layer=0, **SITES[wrong])


def test_what_an_interchange_is_of_is_checked() -> None:
    model, inputs = base_model("llama"), {"input_ids": IDS}
    for combine in (None, 3, "mul", [torch.add]):
        with pytest.raises(SiteError, match="combine"):
            interchange(model, inputs, inputs, Site(layer=0), combine=combine)  # type: ignore[arg-type]
    for sites in (None, 3, "layer", [Site(layer=0)], {"a": None}, {"a": "layer"}):
        for call in (
            lambda sites=sites: interchange(model, inputs, {"a": inputs}, sites),
            lambda sites=sites: collect(model, inputs, sites),
        ):
            with pytest.raises(ReftError, match="sites hold a"):
                call()
    with pytest.raises(SiteError, match="at a Site"):
        put("layer 0", torch.zeros(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_components_are_scaled_by_a_positive_number(std: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Pca(torch.eye(4)[:2], torch.zeros(4), torch.full((4,), std))
    with pytest.raises(ConfigError, match="μ is finite"):
        Pca(torch.eye(4)[:2], torch.full((4,), float("nan")))
