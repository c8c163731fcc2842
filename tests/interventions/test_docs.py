"""Every Python block of these pages runs; every parameter is explained with an example."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.golden import COPIED
from peft import PeftConfig
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from contract.tiny import base_model
from peft_reft import ReftConfig
from peft_reft.hub_format.kinds import _KINDS, kind_signature, known_kinds

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages name: a base, and folders of the other libraries."""
    base_model("llama").save_pretrained(tmp_path / "base")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "word": 2}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", pad_token="<pad>").save_pretrained(
        tmp_path / "base"
    )
    shutil.copytree(COPIED / "models/gpt2", tmp_path / "gpt2_base")
    shutil.copytree(COPIED / "pr_loreft_gpt2_f1/checkpoint", tmp_path / "pyreft_folder")
    shutil.copytree(COPIED / "ad_noreft_gpt2_relu/checkpoint", tmp_path / "adapters_folder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["parameters.md", "coming_from_pyreft.md"])
def test_the_code_runs(page: str, folder: Path) -> None:
    found = blocks(page)
    assert len(found) > 5
    kinds = dict(_KINDS)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for code in found:
                if "@register_intervention" in code and "scaled_direction" in _KINDS:
                    _KINDS.pop("scaled_direction")  # another test registered it from a file
                exec(compile(code, page, "exec"), names)
    finally:
        _KINDS.clear()
        _KINDS.update(kinds)


def test_every_parameter_is_explained_with_an_example() -> None:
    text = (DOCS / "parameters.md").read_text(encoding="utf-8")
    own = {f.name for f in dataclasses.fields(ReftConfig)} - {f.name for f in dataclasses.fields(PeftConfig)}
    headings = re.findall(r"^### (.+?)\n(.*?)(?=^#)", text + "\n#", re.MULTILINE | re.DOTALL)
    explained = {name for heading, body in headings if "```python" in body for name in re.findall(r"`(\w+)`", heading)}
    assert own <= explained


def test_every_kind_has_its_row() -> None:
    text = (DOCS / "parameters.md").read_text(encoding="utf-8")
    ours = {name for name in known_kinds() if kind_signature(name).module.startswith("peft_reft.")}
    assert ours <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
