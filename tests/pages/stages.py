"""What the pages take for granted: the models, rows and names that their blocks use, tiny."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from integrations.tiny_sft import PAIRS, base_model, pairs, tokenizer
from peft import get_peft_model
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from peft_reft import ReftConfig

Names = dict[str, Any]
Stage = Callable[[Names, int], None]
"""Prepares the names before a block, by its number on the page."""
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What pages take; the tests put `STANDS_IN` in its place."""
STANDS_IN = "me/small"


def push_base(name: str) -> None:
    """A base with its tokenizer on the hub of this test."""
    base_model().push_to_hub(name)
    tokenizer().push_to_hub(name)


def reft(positions: str = "f2+l2", **fields: Any) -> ReftConfig:
    return ReftConfig(task_type="CAUSAL_LM", r=2, positions=positions, init_weights=False, **fields)


def adapted(positions: str = "f2+l2") -> Any:
    return get_peft_model(base_model(), reft(positions)).eval()


def nothing(names: Names, number: int) -> None:
    """The page brings all that it uses."""


def newcomer(names: Names, number: int) -> None:
    """The first adapter: the small model of the page, on the hub."""
    if number == 0:
        push_base(STANDS_IN)


def mixed(names: Names, number: int) -> None:
    """The README's second block, after its first, which a real model runs."""
    if number == 1:
        push_base("me/base")
        names["name"], names["AutoModelForCausalLM"] = "me/base", AutoModelForCausalLM
        names["base"] = AutoModelForCausalLM.from_pretrained("me/base")


def trainers(names: Names, number: int) -> None:
    from trl import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if number == 0:
        push_base("me/base")
        names["collator"] = DataCollatorForLanguageModeling(pad_token_id=0)
        names["config"] = reft()
        names["args"] = SFTConfig("out", max_steps=1)
    names["base"] = AutoModelForCausalLM.from_pretrained("me/base")
    names["tokenizer"], names["rows"] = tokenizer(), pairs()
    if number == 4:
        names["trained"] = adapted()
        chosen = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " coal"} for row in PAIRS]
        names["preferences"] = Dataset.from_list(chosen)


def serving(names: Names, number: int) -> None:
    """A model whose adapters are those that the page names."""
    speaking = tokenizer()
    names["tokenizer"], names["base"] = speaking, base_model()
    names["question"] = "what is white ?"
    names["prompt_ids"] = speaking("what has the colour red ?", return_tensors="pt")["input_ids"]
    names["system_ids"] = names["prompt_ids"][:, :4]
    names["model"] = adapted("f2" if number == 2 else "f2+l2")
    if number == 0:
        push_base("me/base")
        on_hub = AutoModelForCausalLM.from_pretrained("me/base")
        get_peft_model(on_hub, reft()).push_to_hub("me/my-reft")
        speaking.push_to_hub("me/my-reft")
    if number in (4, 6):
        for name in ("french", "polite"):
            names["model"].add_adapter(name, reft())
    if number == 4:
        names["batch"] = speaking(["what is white ?"] * 4, return_tensors="pt", return_token_type_ids=False)
    if number in (5, 6):
        names["prompt_ids"], names["other_ids"] = [6, 7, 8, 9, 10], [11, 12, 13]
        names["prompts"] = [names["prompt_ids"], names["other_ids"], [14, 15, 16, 17]]
        names["config"] = GenerationConfig(max_new_tokens=3, do_sample=False)
        small = ContinuousBatchingConfig(page_size=4, num_blocks=16, max_batch_tokens=16)  # not half of the memory
        for method in ("generate_batch", "continuous_batching_context_manager"):
            batched = partial(getattr(names["model"], method), continuous_batching_config=small)
            setattr(names["model"], method, batched)


def evaluating(names: Names, number: int) -> None:
    if number == 1:
        names["model"] = adapted()
        names["ids"] = torch.tensor([[6, 7, 8, 9, 10]])
        names["mask"], names["context_lengths"] = torch.ones_like(names["ids"]), torch.tensor([3])


class StandInHarness:
    """What lighteval's model class does around `prepare_batch_logprob`, after its version 0.13.0."""

    def __init__(self) -> None:
        self.model = adapted()

    def prepare_batch_logprob(self, contexts: Any, continuations: Any, max_context: Any = None) -> Any:
        rows = [
            context + answer for context, answers in zip(contexts, continuations, strict=True) for answer in answers
        ]
        return SimpleNamespace(input_ids=torch.tensor(rows), input_lengths=[len(row) for row in rows])


def lighteval(patch: pytest.MonkeyPatch) -> None:
    """Modules of lighteval's names, with the stand-in: the package itself pins other versions than ours."""
    for name in ("lighteval", "lighteval.models", "lighteval.models.transformers"):
        patch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("lighteval.models.transformers.transformers_model")
    module.TransformersModel = StandInHarness  # type: ignore[attr-defined]
    patch.setitem(sys.modules, module.__name__, module)


STAGES: dict[str, Stage] = {
    "docs/index.md": newcomer,
    "docs/install.md": nothing,
    "docs/first_adapter.md": newcomer,
    "docs/evaluating.md": evaluating,
    "docs/serving.md": serving,
    "docs/trl.md": trainers,
    "README.md": mixed,
}
"""Pages whose blocks `test_python` runs."""
