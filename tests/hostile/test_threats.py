"""Every hostile folder is refused by name, through the reader and through every path that loads an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM, PeftModel

from contract.tiny import base_model, reft_model
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME

from . import folders
from .threats import THREATS, Threat

PEFT_READS_FIRST = {
    "config: 5,000 digits",
    "config: deep nesting",
    "config: no UTF-8",
    "config: a list",
    f"pipe: {CONFIG_NAME}",
}
"""PEFT parses the config for its `peft_type` before it knows that the tuner is ours; it refuses these in its words."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good adapter, and beside it the base that its config names."""
    home = tmp_path_factory.mktemp("good")
    base_model("llama").save_pretrained(home / "tiny-base")
    folder = folders.good(home / "adapter")
    folders.config(lambda content: content.update(base_model_name_or_path="tiny-base"))(folder)
    return folder


@pytest.fixture
def adapter(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "adapter")
    monkeypatch.chdir(made.parent)
    return tmp_path / "adapter"


AUTO_PEFT_FIRST = {"a key 'self'", "torn: config of another revision", "torn: config of another revision, described"}
"""AutoPeft makes the config with PEFT's own parser and the base that it names (here none) before we are asked."""
OF_CONFIG = ("config.", "kind.", "positions.")
"""Codes of a config, which AutoPeft asks for alone, so that no file is named."""


def refused(threat: Threat, load: Any, *, file: bool = True) -> None:
    with pytest.raises(ReftError) as caught:
        load()
    assert caught.value.code == threat.code, caught.value
    assert not file or threat.file in (None, caught.value.file), caught.value
    assert len(str(caught.value)) < 1500


def test_the_folder_that_all_threats_start_from_loads(adapter: Path) -> None:
    assert check_folder(adapter) is not None
    PeftModel.from_pretrained(base_model("llama"), str(adapter))
    AutoPeftModelForCausalLM.from_pretrained(str(adapter))


@pytest.mark.parametrize("name", THREATS)
def test_a_hostile_folder_is_refused(adapter: Path, name: str) -> None:
    threat = THREATS[name]
    threat.change(adapter)
    refused(threat, lambda: check_folder(adapter))
    if name == "peft_type of another tuner":
        return  # PEFT then asks that tuner, and no code of ours runs
    if threat.code.startswith("json.") or name in AUTO_PEFT_FIRST:
        with pytest.raises((ValueError, KeyError, RecursionError, TypeError, AttributeError, OSError)):
            AutoPeftModelForCausalLM.from_pretrained(str(adapter))
    elif name not in PEFT_READS_FIRST:
        told = threat.code if threat.code.startswith(OF_CONFIG) else None
        refused(threat, lambda: AutoPeftModelForCausalLM.from_pretrained(str(adapter)), file=told is None)
    for load in (
        lambda: PeftModel.from_pretrained(base_model("llama"), str(adapter)),
        lambda: reft_model("llama").load_adapter(str(adapter), "second"),
    ):
        if name in PEFT_READS_FIRST:
            with pytest.raises((ValueError, KeyError, RecursionError, TypeError, AttributeError)):
                load()
        else:
            refused(threat, load)
