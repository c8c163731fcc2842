"""Every example in a docstring, and so in the reference of the site, runs and prints what stands below it."""

from __future__ import annotations

import copy
import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from integrations.tiny_sft import base_model, reft, tokenizer
from peft import PeftModel, get_peft_model

ROOT = Path(__file__).parents[2]
FOLDERS = {"peft_reft": "peft_reft", "hub_format": "peft_reft.hub_format", "integrations": "peft_reft.integrations"}
NEEDS = {"vllm": "vllm", "lm_eval": "lm_eval"}
MODULES = sorted(
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__")
    for folder, package in FOLDERS.items()
    for path in (ROOT / folder).rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text("utf-8"), re.MULTILINE)
)


def given() -> dict[str, Any]:
    """What examples take for granted: a model with an adapter, and its tokenizer."""
    words = copy.deepcopy(tokenizer())
    words.model_input_names = ["input_ids", "attention_mask"]
    model = get_peft_model(base_model(), reft(positions="f2", init_weights=None)).eval()
    base = base_model().eval()
    for each in (model, base):
        each.generation_config.max_new_tokens = 2
    return {
        "copy": copy,
        "torch": torch,
        "PeftModel": PeftModel,
        "model": model,
        "base": base,
        "tokenizer": words,
        "system_prompt": "tell me the colour of",
        "question": "the sky ?",
        "rows": Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, 8]}] * 3),
    }


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_stands_below_them(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, library in NEEDS.items():
        if f".{part}." in module:
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    text = Path(import_module(module).__file__ or "").read_text("utf-8")
    assert "doctest: +SKIP" not in text
    failed, tried = doctest.testmod(import_module(module), extraglobs=given(), optionflags=doctest.ELLIPSIS)
    assert failed == 0, capsys.readouterr().out
    assert tried >= len(re.findall(r"^ *>>> ", text, re.MULTILINE))


def test_there_are_examples() -> None:
    assert {"peft_reft.config", "peft_reft.integrations.data.locations", "peft_reft.causal.model"} <= set(MODULES)
