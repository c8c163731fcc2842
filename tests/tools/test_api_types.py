"""What the report of a type checker means: which names are ours to mend."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from tools.api_types import STUBS, faults

ROOT = Path(__file__).parents[2]


def symbol(name: str, *, known: bool = False, ambiguous: bool = False, exported: bool = True) -> dict[str, Any]:
    said = [{"severity": "error", "message": "Return type is unknown"}, {"severity": "warning", "message": "docs"}]
    return {
        "name": name,
        "isExported": exported,
        "isTypeKnown": known,
        "isTypeAmbiguous": ambiguous,
        "diagnostics": said,
    }


def report(*symbols: dict[str, Any]) -> dict[str, Any]:
    return {"typeCompleteness": {"symbols": list(symbols)}}


def test_unknown_and_ambiguous_names_are_faults_with_their_reason() -> None:
    given = report(
        symbol("peft_reft.good", known=True),
        symbol("peft_reft.two_ways", known=True, ambiguous=True),
        symbol("peft_reft.bad"),
        symbol("torch.bad", exported=False),
    )
    assert faults(given) == ["peft_reft.two_ways: Return type is unknown", "peft_reft.bad: Return type is unknown"]


def test_stubs_are_of_the_classes_that_ours_derive_from() -> None:
    """And of nothing else: where a library is not installed, no more is claimed of it."""
    declared = {
        (".".join(path.relative_to(STUBS).with_suffix("").parts).removesuffix(".__init__"), name)
        for path in STUBS.rglob("*.pyi")
        for name in re.findall(r"^(?:class|def) (\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    imported = set()
    for folder in ("vllm", "lm_eval"):
        for path in (ROOT / "integrations" / folder).glob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
            imported |= {(node.module, alias.name) for node in nodes for alias in node.names}
    assert declared <= imported
