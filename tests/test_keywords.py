"""A keyword that `ReftConfig` does not have is refused by name, with the one that was meant."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import pydoc
import re
from typing import Any

import pytest
from peft import PeftConfig

from peft_reft import ReftConfig, convert
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.keywords import ELSEWHERE
from peft_reft.integrations import add_intervention_locations, convert_intervention_locations

MEANT = [
    ("low_rank_dimension", 4, "use r"),
    ("num_interventions", 2, "use layers_to_transform"),
    ("share_weight", True, "use share_weights"),
    ("layer_to_transform", [1], "use layers_to_transform"),
    ("prefix_positions", 3, "use positions"),
    ("non_linearity", "relu", "use act_fn"),
    ("initweights", True, "use init_weights"),
    ("intervention_type", "loreft", "use intervention"),
    ("layer", 3, "use layers_to_transform"),
    ("component_name", "block_output", "use component"),
    ("embed_dim", 64, "leave it out: the model says it itself"),
]


@pytest.mark.parametrize(("name", "value", "fix"), MEANT)
def test_the_right_keyword_is_named(name: str, value: Any, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"unexpected keyword argument '{name}'") as refused:
        ReftConfig(**{name: value})
    assert refused.value.code == "config.keyword"
    assert refused.value.value == name
    assert fix in str(refused.value)


def test_a_field_of_a_group_that_is_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="a group sets only"):
        ReftConfig(interventions=[{1: 2}])


@pytest.mark.parametrize(("name", "fix"), [("low_rank_dimension", "use r"), ("postions", "use positions")])
def test_the_right_field_of_a_group_is_named(name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match="a group sets only") as refused:
        ReftConfig(interventions=[{name: 1}])
    assert refused.value.fix == fix


def test_a_config_that_is_printed_shows_positions_in_one_spelling_and_is_what_was_typed() -> None:
    config = ReftConfig(r=2, positions=" f7 + l7 ", interventions=[{"positions": "l2 -f3", "r": 3}, {"r": 1}])
    shown = repr(config)
    assert "positions='f7+l7'" in shown
    assert "{'positions': 'l2-f3', 'r': 3}" in shown
    assert (
        eval(shown.replace("<PeftType.REFT: 'REFT'>", "'REFT'").replace(f"'{config.peft_version}'", "None")) == config
    )


def test_help_shows_the_fields_and_what_each_is() -> None:
    text = pydoc.render_doc(ReftConfig, renderer=pydoc.plaintext)
    signature = text.partition(" |  ReftConfig(")[2].partition(")")[0]  # on several lines since Python 3.13
    assert "positions: 'str' = 'l1'" in signature
    assert "self" not in signature
    for field in dataclasses.fields(ReftConfig):
        if field.name not in {each.name for each in dataclasses.fields(PeftConfig)}:
            assert re.search(rf"^ \|      {field.name}: ", text, re.MULTILINE), field.name


def test_one_that_is_like_none_gets_the_list_and_no_guess() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'zzz'") as refused:
        ReftConfig(zzz=1)
    assert "layers_to_transform" in str(refused.value)
    assert "Fix" not in str(refused.value)


def test_what_is_named_elsewhere_is_no_keyword_of_ours_and_what_it_leads_to_is() -> None:
    known = set(inspect.signature(ReftConfig.__init__).parameters)
    assert not set(ELSEWHERE) & known
    led = {meant.split()[0].rstrip(",:") for meant in ELSEWHERE.values() if meant}
    words = {word.partition("=")[0] for word in led if "(" not in word}
    assert words <= known


def test_peft_reads_past_a_field_of_a_later_peft() -> None:
    stored = ReftConfig(task_type="CAUSAL_LM", r=2).to_dict()
    stored = {name: value for name, value in stored.items() if name in {"peft_type", "task_type"}}
    with pytest.warns(UserWarning, match="later_field"):
        config = PeftConfig.from_peft_type(**stored, later_field=1)
    assert type(config) is ReftConfig


def test_a_config_is_copied_and_pickled() -> None:
    config = ReftConfig(task_type="CAUSAL_LM", r=2, positions="f1+l2")
    assert copy.deepcopy(config).to_dict() == pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("num_interventions", "use share_weights: one list for all terms"),
        ("num_prefix_positions", "use positions"),
        ("share_weight", "use share_weights"),
        ("tied_weights", "use share_weights"),
        ("position", "use positions"),
    ],
)
def test_the_right_keyword_of_a_function_is_named(name: str, fix: str) -> None:
    row = {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}
    with pytest.raises(TypeError, match=f"add_intervention_locations.* argument '{name}'") as refused:
        add_intervention_locations(row, "f1", **{name: 2})
    assert isinstance(refused.value, ConfigError)
    assert fix in str(refused.value)


def test_keywords_of_converting_are_told_too() -> None:
    with pytest.raises(ConfigError, match="Fix: use base_model"):
        convert("folder", "other", base="me/base")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="Fix: use num_layers"):
        convert_intervention_locations({}, share_weights=True, dummy="none", num_interventions=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError) as refused:
        convert("folder", "other", low_rank_dimension=4)  # type: ignore[call-arg]
    assert refused.value.fix is None  # a rank is nothing that converting asks for


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LoReFT", "loreft"),
        ("loref", "loreft"),
        ("LoreftIntervention", "loreft"),
        ("NodireftIntervention", "direft"),
        ("DireftIntervention", "direft_orthogonal"),
        ("DiReftConfig", "direft"),
        ("Bias", "bias"),
    ],
)
def test_the_right_kind_is_named(name: str, kind: str) -> None:
    with pytest.raises(ConfigError, match="is not a registered intervention") as refused:
        ReftConfig(intervention=name)
    assert refused.value.fix == f"use {kind!r}; or import the module that registers {name!r}"


def test_a_kind_that_is_like_none_gets_no_guess() -> None:
    with pytest.raises(ConfigError) as refused:
        ReftConfig(intervention="something_else")
    assert refused.value.fix == "import the module that registers it, or check the spelling"
