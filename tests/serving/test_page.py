"""The code of docs/serving.md on vLLM runs as it stands, on folders of the names that it takes."""

from __future__ import annotations

import gc
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-serving")

from peft_reft.integrations import vllm as served

from . import bases
from .engines import ENVIRONMENT, SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    found = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (code,) = [block for block in found if "ReftLLM" in block]
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    base = bases.saved_base(Path("me/base"))
    for number, name in enumerate(("me/emoji", "path", "me/third")):
        bases.saved_adapter(Path(name), base, "f2+l1", seed=number)
    monkeypatch.setattr(served, "ReftLLM", partial(served.ReftLLM, **SETTINGS), raising=False)
    messages = [[{"role": "user", "content": word}] for word in ("w7", "w8")]
    names: dict[str, Any] = {"prompts": ["w7 w8", "w9", "w10 w11"], "conversations": messages}
    try:
        exec(code, names)
        assert names["llm"].list_reft_adapters() == ["formal", "third"]
    finally:
        if "llm" in names:
            names.pop("llm").llm_engine.engine_core.shutdown()
        gc.collect()
        cleanup_dist_env_and_memory()
