"""Every architecture in the table edits what transformers edits: the tokens of each are compared."""

from __future__ import annotations

from typing import Any

import pytest

from peft_reft.hub_format.errors import ReftError
from peft_reft.integrations.vllm.blocks import ARCHITECTURES

from . import bases
from .conftest import STEPS, world
from .engines import ask, engine

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-serving` makes an environment that has it")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma2ForCausalLM": ("gemma2", {"sliding_window": 64, "query_pre_attn_scalar": 32}),
    "Gemma3ForCausalLM": ("gemma3_text", {"sliding_window": 64, "query_pre_attn_scalar": 32}),
    "GemmaForCausalLM": ("gemma", {}),
    "GraniteForCausalLM": ("granite", {"residual_multiplier": 0.5}),
    "LlamaForCausalLM": ("llama", {}),
    "MistralForCausalLM": ("mistral", {"sliding_window": None}),
    "Phi3ForCausalLM": ("phi3", {}),
    "Qwen2ForCausalLM": ("qwen2", {}),
    "Qwen3ForCausalLM": ("qwen3", {}),
    "Qwen3MoeForCausalLM": ("qwen3_moe", {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}),
}
"""Class of vLLM's model → model type and config fields of a tiny one."""


def test_every_row_of_the_table_is_tested() -> None:
    assert set(MODELS) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", MODELS)
def test_edits_are_those_of_transformers(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    kind, fields = MODELS[name]
    made = world(tmp_path_factory.mktemp(kind), kind, ("tied", "untied", "all", "one_layer"), **fields)
    asked = [entry for entry in made.every() if len(entry[1]) in (9, 40, 2, 70)]
    expected = made.expected(asked)
    with engine(made.base, made.adapters, max_num_batched_tokens=64) as llm:
        assert ask(llm, asked, STEPS) == expected
    for adapter in made.adapters:
        pairs = [(said, base) for (who, _), said, base in zip(asked, expected, _of_base(asked, expected), strict=True)
                 if who == adapter]  # fmt: skip
        assert any(said != base for said, base in pairs), adapter


def _of_base(asked: Any, expected: list[list[int]]) -> list[list[int]]:
    """For each request what the base says to the same prompt."""
    base = {tuple(prompt): said for (name, prompt), said in zip(asked, expected, strict=True) if name is None}
    return [base[tuple(prompt)] for _, prompt in asked]


def test_another_architecture_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    """vLLM runs this one by transformers' own layers."""
    folder = tmp_path_factory.mktemp("starcoder")
    base = bases.saved_base(folder / "base", "starcoder2", sliding_window=None)
    with pytest.raises(ReftError, match="on vLLM's TransformersForCausalLM"), engine(base, {}):
        pass
