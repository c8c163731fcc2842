"""The code of docs/hub.md runs as it stands, against a hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contract.tiny import base_model
from tools.loopback_hub import LoopbackHub

from .folders import stored

ROOT = Path(__file__).parents[2]


def test_the_page_runs(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "hub.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    base_model("llama").push_to_hub("me/base")
    capsys.readouterr()
    exec("\n".join(blocks), {})
    assert capsys.readouterr().out.splitlines() == ["default lora .", "edit reft reft/edit"]
    assert hub.storage.repos["me/poems"].private
    assert {f"reft/{name}/reft_manifest.json" for name in ("edit", "tone")} <= stored(hub, "me/lora").keys()
    assert (tmp_path / "poems" / "reft_manifest.json").is_file()
