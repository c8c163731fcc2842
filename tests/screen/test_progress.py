"""Bars: after a second, on a terminal, and nowhere once bars are switched off in the usual ways."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from contract.tiny import base_model, reft_model
from peft_reft import convert
from peft_reft.screen import progress

MODULE = sys.modules["peft_reft.screen.progress"]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars as in a fresh process, and no second to wait."""
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "progress_bar_states", {})
    monkeypatch.setattr(MODULE, "DELAY", 0.0)


def shown(screen: io.StringIO, **more: Any) -> str:
    """What three items leave on a screen."""
    with redirect_stderr(screen):
        assert list(progress([1, 2, 3], "convert", unit="tensor", **more)) == [1, 2, 3]
    return screen.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    screen = shown(Terminal())
    assert "convert" in screen
    assert "3/3" in screen


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "DELAY", 60.0)
    assert shown(Terminal()) == ""


def test_what_is_no_terminal_gets_nothing() -> None:
    assert shown(io.StringIO()) == ""


@pytest.mark.parametrize("name", [None, "peft_reft", "peft_reft.convert"])
def test_bars_are_switched_off_as_those_of_the_hub(name: str | None) -> None:
    disable_progress_bars(name)
    assert shown(Terminal()) == ""
    enable_progress_bars(name)
    assert "3/3" in shown(Terminal())


def test_bars_are_switched_off_by_transformers_too() -> None:
    logging.disable_progress_bar()
    try:
        assert shown(Terminal()) == ""
    finally:
        logging.enable_progress_bar()


def test_bars_are_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "3/3" in shown(Terminal())
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "HF_HUB_DISABLE_PROGRESS_BARS", True)
    assert shown(Terminal()) == ""


def test_what_the_caller_says_wins() -> None:
    assert shown(Terminal(), shown=False) == ""
    assert "3/3" in shown(io.StringIO(), shown=True)


def test_convert_counts_what_it_reads_and_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base_model("llama").save_pretrained(tmp_path / "base")
    reft_model("llama", positions="f2+l2", share_weights=False).save_pretrained(tmp_path / "reft")
    screen = Terminal()
    with redirect_stderr(screen):
        convert(tmp_path / "reft", tmp_path / "theirs", to="pyreft")
    assert "18/18" in screen.getvalue()  # three blocks, two terms, three tensors each
    assert "6/6" in screen.getvalue()  # a file for each block and term
    screen = Terminal()
    with redirect_stderr(screen):
        convert(tmp_path / "theirs", tmp_path / "again", base_model=tmp_path / "base", positions="f2+l2")
    assert "6/6" in screen.getvalue()
