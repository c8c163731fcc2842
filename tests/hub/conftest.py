"""A hub that this process's client talks to, and folders to push to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from contract.tiny import base_model, reft_model
from peft_reft.hub_format.bundle import Member, write_index

from .client import hub

__all__ = ["hub"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved ReFT."""
    folder = tmp_path_factory.mktemp("alone")
    reft_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a LoRA and the ReFT, put together by hand."""
    folder = tmp_path_factory.mktemp("bundle")
    get_peft_model(base_model("llama"), LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(folder)
    shutil.copytree(alone, folder / "reft" / "edit")
    (folder / "reft" / "edit" / "README.md").unlink()
    write_index(folder, [Member.at("default", "lora"), Member.at("edit", "reft")])
    return folder
