"""Folders as models write them: a ReFT, a LoRA, and a bundle of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.client import hub
from peft import LoraConfig, get_peft_model

from contract.tiny import base_model
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.integrations.cli import main

__all__ = ["hub"]

Command = Callable[..., tuple[int, dict[str, Any]]]
REFT: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2, "positions": "f2+l2", "init_weights": False}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `reft`, `lora` and `both`."""
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    config = ReftConfig(**REFT, layers_to_transform=[0, 2])
    get_peft_model(base_model("llama"), config).save_pretrained(root / "reft")
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(base_model("llama"), lora).save_pretrained(root / "lora")
    mixed = MixedReftModel.from_configs(base_model("llama"), {"default": lora, "edit": ReftConfig(**REFT)})
    mixed.save_pretrained(str(root / "both"))
    return root


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line with `--json`; gives the status and the object printed."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        status = main([*map(str, arguments), "--json"])
        printed = capsys.readouterr()
        assert printed.err == ""
        return status, json.loads(printed.out)

    return run
