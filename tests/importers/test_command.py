"""`peft-reft convert`: the same conversion on the command line; a refusal is one line on stderr and status 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.golden import COPIED

from peft_reft import convert
from peft_reft.integrations.cli import main

GPT2 = str(COPIED / "models" / "gpt2")
SOURCE = str(COPIED / "pr_noreft_gpt2_nobias" / "checkpoint")


def test_it_converts_as_the_function_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new"
    assert main(["convert", SOURCE, str(target), "--to", "reft", "--base-model", GPT2, "--positions", "f3+l3"]) == 0
    assert str(target) in capsys.readouterr().out
    same = convert(SOURCE, tmp_path / "same", base_model=GPT2, positions="f3+l3")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (target / name).read_bytes() == (same / name).read_bytes()
    assert main(["convert", str(target), str(tmp_path / "back"), "--to", "pyreft"]) == 0


def test_a_refusal_is_said_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", SOURCE, str(tmp_path / "new"), "--base-model", GPT2]) == 1
    assert "needs positions" in capsys.readouterr().err


def test_no_share_weights_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--base-model", GPT2, "--positions", "f3+l3", "--no-share-weights"]
    assert main(["convert", SOURCE, str(tmp_path / "new"), *options]) == 1
    assert "2 terms" in capsys.readouterr().err


def test_wrong_usage_has_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert"]) == 2
    assert main(["convert", SOURCE, "new", "--to", "elsewhere"]) == 2
    assert "'gguf'" in capsys.readouterr().err
