"""The examples of docs/cli.md run as they stand, one after another, against a Hub on this machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from contract.tiny import base_model, reft_model
from peft_reft.integrations.cli import main
from tools.loopback_hub import LoopbackHub

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_every_example_runs(
    hub: LoopbackHub,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    lines = block.strip().splitlines()
    assert {shlex.split(line)[1] for line in lines} == {
        "bundle",
        "convert",
        "diff",
        "export-prefix",
        "inspect",
        "pull",
        "push",
        "show",
        "validate",
    }
    (tmp_path / "my-reft").symlink_to(folders / "reft")
    (tmp_path / "my-lora").symlink_to(folders / "lora")
    base_model("llama").save_pretrained(tmp_path / "base")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "<unk>": 2, "who": 3, "are": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>").save_pretrained(
        tmp_path / "base"
    )
    reft_model("llama", positions="f3").save_pretrained(tmp_path / "my-prefix-reft")
    monkeypatch.chdir(tmp_path)
    for line in (f"peft-reft push {folders / 'both'} me/both", *lines):
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr())
