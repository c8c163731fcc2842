"""`schema.json` says what `schema.py` and the reader check, as far as a JSON Schema can."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from peft_reft.hub_format.activations import SINCE
from peft_reft.hub_format.envelope import BESIDE_NEVER, MAX_MODULES, NOT_MODULES, TASK_TYPES, check_envelope
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import BASE_FIELDS, CONFIG_NAME, MANIFEST_NAME
from peft_reft.hub_format.manifest import FIELDS as MANIFEST_FIELDS
from peft_reft.hub_format.schema import (
    ACTIVATIONS,
    BEHAVIOUR,
    COMPONENTS,
    FIELDS,
    GROUP_FIELDS,
    MAX_GROUPS,
    MAX_LAYERS,
    MAX_RANK,
    SPEC_VERSION,
    TURNS,
    check_fields,
    from_object,
    to_object,
)
from peft_reft.hub_format.tensors import ITEM_BYTES

from . import folders as f

SCHEMA: dict[str, Any] = json.loads((files("peft_reft.hub_format") / "schema.json").read_text(encoding="utf-8"))
PARTS = SCHEMA["$defs"]
CONFIG = Draft202012Validator(SCHEMA)
VECTORS = Path(__file__).parents[1] / "data" / "vectors"
MANIFEST = Draft202012Validator({"$ref": "#/$defs/manifest", "$defs": PARTS})

GOOD: list[dict[str, Any]] = [
    {},
    {"r": 1, "layers_to_transform": [0, -1], "layers_pattern": "encoder.layers", "dropout": 0.5},
    {"layers_to_transform": 3, "layers_pattern": ["layers"], "act_fn": "gelu", "init_weights": "paper"},
    {"component": "head_output[3]", "turns": "each", "share_weights": False, "init_weights": False},
    {"interventions": [{"r": 2}, {"intervention": "bias", "layers_to_transform": [1]}]},
    {"subspaces": {"tone": [0, 2], "topic": [2, 4]}},
    {"subspaces": {"größe.a-b": [0, 2]}, "layers_pattern": "модель.слои"},
    {"positions": "tok(<s>)", "special_tokens": {"tokenizer": "sha256:" + "0a" * 32, "ids": {"<s>": 1}}},
]
BAD: list[dict[str, Any]] = [
    {"r": 0},
    {"r": MAX_RANK + 1},
    {"r": True},
    {"r": 2.5},
    {"r": "4"},
    {"r": None},
    {"intervention": None},
    {"options": []},
    {"layers_to_transform": []},
    {"layers_to_transform": [1, 1]},
    {"layers_to_transform": ["1"]},
    {"component": "block"},
    {"component": "head_output[01]"},
    {"component": None},
    {"positions": 7},
    {"turns": "last"},
    {"turns": None},
    {"share_weights": 1},
    {"dropout": 1},
    {"dropout": -0.1},
    {"dropout": True},
    {"act_fn": "tan"},
    {"act_fn": ["gelu"]},
    {"layers_pattern": ""},
    {"layers_pattern": []},
    {"layers_pattern": "(a+)+$"},
    {"layers_pattern": "a" * 201},
    {"layers_pattern": [f"layers{n}" for n in range(MAX_GROUPS + 1)]},
    {"positions": "l1" + " " * 4095},
    {"init_weights": "identity"},
    {"interventions": []},
    {"interventions": {}},
    {"interventions": [{"subspaces": None}]},
    {"interventions": [{}] * (MAX_GROUPS + 1)},
    {"subspaces": {}},
    {"subspaces": {"a": [0]}},
    {"subspaces": {"a": [-1, 1]}},
    {"subspaces": {".a": [0, 1]}},
    {"subspaces": {"a" * 65: [0, 1]}},
    {"special_tokens": {}},
    {"special_tokens": {"tokenizer": "sha256:0", "ids": {}}},
    {"special_tokens": {"tokenizer": "sha256:" + "0a" * 32, "ids": {"<s>": -1}}},
    {"spec_version": "1.01"},
    {"spec_version": "2.0"},
    {"spec_version": 1.0},
    {"kinds": {}},
    {"kinds": {"loreft": "1"}},
    {"kinds": {"loreft": {"version": 1, "module": "a..b"}}},
    {"kinds": {"loreft": {"version": 1, "module": "1a"}}},
    {"more": 1},
]
BAD_ENVELOPE: list[dict[str, Any]] = [
    {"peft_type": "LORA"},
    {"task_type": "MAGIC"},
    {"task_type": ["CAUSAL_LM"]},
    {"inference_mode": "yes"},
    {"auto_mapping": []},
    {"revision": 1},
    {"revision": "a" * 4096},
    {"modules_to_save": "lm_head"},
    {"modules_to_save": ["model.weight"]},
    {"modules_to_save": ["(a+)+$"]},
    {"modules_to_save": [f"head{n}" for n in range(MAX_MODULES + 1)]},
    {"trainable_token_indices": []},
    {"trainable_token_indices": [-1]},
    {"trainable_token_indices": {"embed_tokens": ["a"]}},
    {"trainable_token_indices": {"embed-tokens": [1]}},
    {"positions": "f1"},
    {"kinds": {}},
    {"tensors": {}},
    {"self": 1},
]


def stored(**values: Any) -> dict[str, Any]:
    return {"peft_type": "REFT", "reft": to_object({**FIELDS, **values})}


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_it_names_the_same_fields_and_choices() -> None:
    group = PARTS["group"]["properties"]
    assert set(group) == set(GROUP_FIELDS)
    assert group["layers_to_transform"]["anyOf"][2]["maxItems"] == MAX_LAYERS
    assert set(PARTS["reft"]["properties"]) == {*BEHAVIOUR, "kinds", "tensors"}
    assert set(PARTS["reft"]["required"]) == {*FIELDS, "kinds"}
    assert group["act_fn"]["enum"] == [None, *ACTIVATIONS]
    assert tuple(group["turns"]["enum"]) == TURNS
    assert all(name in group["component"]["pattern"] for name in COMPONENTS)
    assert re.fullmatch(PARTS["version"]["pattern"], SPEC_VERSION)
    assert set(PARTS["manifest"]["properties"]["base_model"]["properties"]) == set(BASE_FIELDS)
    assert set(PARTS["manifest"]["properties"]) == set(PARTS["manifest"]["required"]) == MANIFEST_FIELDS
    assert PARTS["tensors"]["additionalProperties"]["properties"]["dtype"]["enum"] == list(ITEM_BYTES)
    assert SCHEMA["properties"]["task_type"]["enum"] == [None, *TASK_TYPES]
    assert "|".join(NOT_MODULES) in json.dumps(SCHEMA["properties"]["modules_to_save"])
    assert {entry["required"][0] for entry in SCHEMA["not"]["anyOf"]} == BESIDE_NEVER


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_a_config_that_the_reader_takes_is_valid(values: dict[str, Any]) -> None:
    content = stored(**values)
    CONFIG.validate(content)
    check_envelope(content)
    from_object(content["reft"])


@pytest.mark.parametrize("values", BAD, ids=lambda values: str(values)[:60])
def test_a_value_that_the_reader_refuses_is_invalid(values: dict[str, Any]) -> None:
    content = stored()
    content["reft"].update(values)
    assert not CONFIG.is_valid(content)
    with pytest.raises(ReftError):
        check_fields(from_object(content["reft"]))


@pytest.mark.parametrize("name", [*FIELDS, "kinds"])
def test_a_missing_field_is_invalid(name: str) -> None:
    content = stored()
    del content["reft"][name]
    assert not CONFIG.is_valid(content)
    with pytest.raises(ReftError):
        from_object(content["reft"])


@pytest.mark.parametrize("values", BAD_ENVELOPE, ids=lambda values: str(values)[:60])
def test_an_envelope_that_the_reader_refuses_is_invalid(values: dict[str, Any]) -> None:
    content = {**stored(), **values}
    assert not CONFIG.is_valid(content)
    with pytest.raises(ReftError):
        check_envelope(content)


def test_what_is_saved_is_valid(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter", modules_to_save=["lm_head"])
    CONFIG.validate(json.loads((folder / CONFIG_NAME).read_text()))
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    MANIFEST.validate(manifest)
    manifest["files"][0]["path"] = "../adapter_config.json"
    assert not MANIFEST.is_valid(manifest)


@pytest.mark.parametrize("folder", sorted((VECTORS / "good").iterdir()), ids=lambda folder: str(folder.name))
def test_every_good_vector_is_valid(folder: Path) -> None:
    for path in folder.rglob(CONFIG_NAME):
        if (content := json.loads(path.read_text(encoding="utf-8")))["peft_type"] == "REFT":
            CONFIG.validate(content)
    for path in folder.rglob(MANIFEST_NAME):
        MANIFEST.validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["architecture_list", "stacks_texts", "hidden_size", "base_unknown", "unknown_field"])
def test_a_manifest_that_the_reader_refuses_is_invalid(name: str) -> None:
    path = VECTORS / "bad" / f"manifest_{name}" / MANIFEST_NAME
    assert not MANIFEST.is_valid(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("values", [{"act_fn": "relu2"}, {"interventions": [{"r": 2}, {"act_fn": "laplace"}]}])
def test_what_a_later_version_brought_is_invalid_in_a_file_of_the_first(values: dict[str, Any]) -> None:
    content = stored(**values)
    assert content["reft"]["spec_version"] == "1.1"
    CONFIG.validate(content)
    from_object(content["reft"])
    content["reft"]["spec_version"] = "1.0"
    assert not CONFIG.is_valid(content)
    with pytest.raises(ReftError):
        from_object(content["reft"])


def test_the_schema_knows_the_activations_of_the_first_version() -> None:
    assert PARTS["of_1_0"]["properties"]["act_fn"]["enum"] == [None, *(n for n in ACTIVATIONS if SINCE[n] == "1.0")]
