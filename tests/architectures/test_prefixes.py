"""The sweep of exported prefixes: exact, refused, and that a prefix which is not the edits' is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from peft_reft.generation.export_prefix import ExportedPrefix

from . import prefixes
from .classes import Subject, subjects
from .findings import Finding, Result
from .prefixes import PAGE, examine_prefix, prefix_page

LLAMA = Subject("causal", "LlamaForCausalLM", "llama")


def test_a_full_attention_is_exact_and_a_window_is_refused() -> None:
    found = examine_prefix(LLAMA)
    assert {one.check: one.verdict for one in found.findings} == dict.fromkeys(
        ("export", "cache", "stock PEFT"), "right"
    )
    refused = examine_prefix(Subject("causal", "MistralForCausalLM", "mistral"))
    assert refused.verdict == "refused"
    assert "SlidingWindow" in refused.reason


def test_a_prefix_that_is_off_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    own = prefixes.export_prefix

    def spoiled(*given: Any) -> ExportedPrefix:
        prefix = own(*given)
        return replace(prefix, embeddings=1.01 * prefix.embeddings)

    monkeypatch.setattr(prefixes, "export_prefix", spoiled)
    verdicts = {one.check: one.verdict for one in examine_prefix(LLAMA).findings}
    assert verdicts == {"export": "right", "cache": "wrong", "stock PEFT": "wrong"}


def test_the_page_names_every_class_once_and_nothing_is_wrong_there() -> None:
    text = Path(PAGE).read_text("utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    names, known = [row[0].strip("|` ") for row in rows], {one.name for one in subjects("causal")}
    assert names == sorted(set(names))
    if f"with transformers {transformers.__version__} " in text:
        assert set(names) == known
    else:  # another version has other classes
        assert set(names) & known
    assert {row[1] for row in rows} <= {"exact", "refused", "not tiny"}
    made = prefix_page([Result.of("causal", "One", [Finding("export", "refused", "a | b")]), examine_prefix(LLAMA)])
    assert "| `LlamaForCausalLM` | exact |" in made
    assert r"| `One` | refused | export: refused: a \| b |" in made
