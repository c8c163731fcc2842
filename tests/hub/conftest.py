"""A hub that this process's client talks to, and folders to push to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from contract.tiny import base_model, reft_model
from peft_reft.hub_format.bundle import Member, write_index
from tools.loopback_hub import LoopbackHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub that this process's client talks to (the client reads its settings when it is imported)."""
    with LoopbackHub() as running:
        import huggingface_hub._snapshot_download as snapshots
        import huggingface_hub.file_download as downloads
        import huggingface_hub.hf_api as api

        for module in (constants, downloads, snapshots, api):
            for name, value in (("ENDPOINT", running.endpoint), ("HF_HUB_CACHE", str(tmp_path / "cache"))):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(api.api, "endpoint", running.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running


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
