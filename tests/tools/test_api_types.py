"""What the report of a type checker means: which names are ours to mend."""

from __future__ import annotations

from typing import Any

from tools.api_types import faults


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
    mine, apart = faults(given, set())
    assert mine == ["peft_reft.two_ways: Return type is unknown", "peft_reft.bad: Return type is unknown"]
    assert apart == []


def test_a_class_of_a_library_that_is_not_installed_is_counted_apart() -> None:
    given = report(symbol("peft_reft.integrations.vllm.llm.ReftLLM"), symbol("peft_reft.integrations.trl.bad"))
    assert faults(given, {"vllm"})[1] == ["peft_reft.integrations.vllm.llm.ReftLLM"]
    assert len(faults(given, {"vllm"})[0]) == 1
    assert len(faults(given, {"lm_eval"})[0]) == 2
