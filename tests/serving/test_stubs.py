"""What `tools/stubs` declares of vLLM is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from tools.api_types import STUBS

pytest.importorskip("vllm", reason="vLLM is not installed: make test-serving")


@pytest.mark.parametrize(
    "path", sorted((STUBS / "vllm").rglob("*.pyi")), ids=lambda path: str(path.relative_to(STUBS))
)
def test_a_declared_class_is_there(path: Path) -> None:
    module = import_module(".".join(path.relative_to(STUBS).with_suffix("").parts).removesuffix(".__init__"))
    for name in re.findall(r"^class (\w+)", path.read_text("utf-8"), re.MULTILINE):
        assert isinstance(getattr(module, name), type)
