"""The model card: our own section is kept up to date, everything else in it is left as its author wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from huggingface_hub import ModelCard, ModelCardData

from .bundle import Member

__all__ = ["CardFacts", "updated_card"]

BEGIN, END = "<!-- peft-reft: this section is generated -->", "<!-- peft-reft: end -->"
TAGS = ("peft-reft", "representation-finetuning")


@dataclass(frozen=True)
class CardFacts:
    """What the card says.

    Attributes:
        repo_id: where the adapter lies.
        base_model: Hub id of the base, or None for a local one.
        members: the adapters of the repository.
        edits: one line per ReFT adapter, e.g. `"edit: loreft, rank 4, positions f7+l7, all layers"`.
        language_model: whether the task is text generation.
    """

    repo_id: str
    base_model: str | None
    members: Sequence[Member]
    edits: Sequence[str]
    language_model: bool = True


def updated_card(existing: str | None, facts: CardFacts) -> str:
    """The text of README.md, made new or brought up to date."""
    card = (
        ModelCard(existing) if existing else ModelCard(f"---\n{ModelCardData().to_yaml()}\n---\n\n# {facts.repo_id}\n")
    )
    data = cast(ModelCardData, card.data)
    data.library_name = "peft"
    tags = list(data.tags or [])
    lora = ["lora"] if any(member.kind == "lora" for member in facts.members) else []
    data.tags = sorted({*tags, *TAGS, *lora})
    if facts.language_model and not data.pipeline_tag:
        data.pipeline_tag = "text-generation"
    if facts.base_model:
        data.base_model = facts.base_model
    section = f"{BEGIN}\n{_section(facts)}\n{END}"
    text: str = card.text
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        card.text = before + section + rest.partition(END)[2]
    else:
        card.text = text.rstrip() + "\n\n" + section + "\n"
    return str(card)


def _section(facts: CardFacts) -> str:
    bundle = any(member.kind != "reft" for member in facts.members)
    base = facts.base_model or "path/to/the/base/model"
    lines = [
        "## Representation finetuning (ReFT)",
        "",
        "This repository holds edits of hidden states, trained with "
        "[ReFT](https://arxiv.org/abs/2404.03592) on a frozen base model. They cannot be merged into its weights.",
        "",
        *(f"- {line}" for line in facts.edits),
        "",
        "```bash",
        "pip install peft-reft",
        "```",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        *(_bundle_lines(facts.repo_id, base) if bundle else _alone_lines(facts.repo_id, base)),
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
        'inputs = tokenizer("Who are you?", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))",
        "```",
        "",
        "A program that does not import `peft_reft` fails with `KeyError: 'REFT'`. Start it through the package, "
        "which registers the method first:",
        "",
        "```bash",
        "python -m peft_reft your_script.py",
        "python -m peft_reft -m transformers.cli.transformers serve",
        "```",
    ]
    if bundle:
        lines += [
            "",
            "The LoRA at the root is an ordinary one: PEFT and transformers load it without `peft-reft`, and without "
            "the edits.",
        ]
    return "\n".join(lines)


def _alone_lines(repo_id: str, base: str) -> list[str]:
    return [
        "import peft_reft  # registers ReFT with PEFT",
        "from peft import PeftModel",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(model, "{repo_id}")',
    ]


def _bundle_lines(repo_id: str, base: str) -> list[str]:
    return [
        "from peft_reft import MixedReftModel",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = MixedReftModel.from_pretrained(model, "{repo_id}")',
    ]
