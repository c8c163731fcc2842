"""Every block of Python on every page of the site is run: here, or by the test that is named here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hub.client import hub

from tools.loopback_hub import LoopbackHub
from tools.site.blocks import ROOT, blocks, pages

from . import stages

__all__ = ["hub"]

ELSEWHERE = {
    "docs/adapters.md": "tests/adapters/test_page.py",
    "docs/causal.md": "tests/causal/test_page.py",
    "docs/coming_from_pyreft.md": "tests/interventions/test_docs.py",
    "docs/compiling.md": "tests/compiled/test_page.py",
    "docs/continual.md": "tests/continual/test_page.py",
    "docs/embeddings.md": "tests/integrations/test_sentence_transformers.py",
    "docs/hub.md": "tests/hub/test_docs.py",
    "docs/parameters.md": "tests/interventions/test_docs.py",
    "docs/positions.md": "tests/integrations/test_show_page.py",
    "docs/recipes": "tests/recipes/test_pages.py",
}
"""Page, or a folder of pages → the test that runs all their blocks."""
APART = {
    "from trl import SFTConfig, SFTTrainer\nfrom peft_reft import ReftConfig  #": "tests/test_readme.py",
    "from vllm import SamplingParams": "tests/serving/test_page.py",
}
"""What a block holds that needs a real model or another environment → the test that runs it."""


def apart(code: str) -> str | None:
    return next((test for start, test in APART.items() if start in code), None)


def test_every_page_with_code_has_a_test() -> None:
    with_code = {page for page in pages() if blocks(page, "python")}
    assert not {page for page in with_code if not {page, str(Path(page).parent)} & {*ELSEWHERE, *stages.STAGES}}
    assert not set(ELSEWHERE) & set(stages.STAGES)
    for page, test in ELSEWHERE.items():
        if not (ROOT / page).exists():
            continue
        text = (ROOT / test).read_text("utf-8")
        assert Path(page).name in text or "render.PAGE" in text, test
        assert "exec(" in text or "subprocess" in text, test
    for test in APART.values():
        assert (ROOT / test).is_file(), test


def test_what_is_run_apart_is_on_a_page() -> None:
    everything = [code for page in stages.STAGES for code in blocks(page, "python")]
    assert all(any(start in code for code in everything) for start in APART)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers as they are, but quiet and on this machine's processor."""
    for name in ("SFTConfig", "DPOConfig"):
        import trl

        quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
        monkeypatch.setattr(trl, name, partial(getattr(trl, name), **quiet), raising=True)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("page", stages.STAGES)
def test_the_blocks_of_a_page_run_one_after_another(
    page: str, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages.lighteval(monkeypatch)
    names: stages.Names = {"__name__": "page"}
    found = blocks(page, "python")
    assert found
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, code in enumerate(found):
            if apart(code) is None:
                stages.STAGES[page](names, number)
                code = code.replace(stages.SMALL, stages.STANDS_IN)
                exec(compile(code, f"{page}, block {number}", "exec"), names)
