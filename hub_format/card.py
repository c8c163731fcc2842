"""The model card: our own section is kept up to date, everything else in it is left as its author wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in its stub

from .bundle import Member

__all__ = ["CardFacts", "is_hub_id", "updated_card"]

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
    """The text of README.md, made new or brought up to date.

    Args:
        existing: the card so far. The author's text and YAML keys stay, and so do the sections that
            `Trainer.create_model_card` wrote; the empty form that PEFT saves beside every adapter does not.
        facts: what our section says.

    A base model that lies on this machine is named nowhere in the result.
    """
    if existing is None or _is_empty_form(existing):
        existing = f"---\n{ModelCardData().to_yaml()}\n---\n\n# {facts.repo_id}\n"
    card = ModelCard(existing)
    data = cast(ModelCardData, card.data)
    text: str = card.text
    named = data.base_model if isinstance(data.base_model, list) else [data.base_model]
    for local in [name for name in named if isinstance(name, str) and not is_hub_id(name)]:
        if local:  # PEFT writes "" for a base that was made from its config
            text = text.replace(f"[{local}](https://huggingface.co/{local})", local).replace(local, "a local model")
        data.base_model = None
    data.library_name = "peft"
    tags = [tag for tag in data.tags or [] if not _names_local_base(tag)]
    lora = ["lora"] if any(member.kind == "lora" for member in facts.members) else []
    data.tags = sorted({*tags, *TAGS, *lora})
    if facts.language_model and not data.pipeline_tag:
        data.pipeline_tag = "text-generation"
    if facts.base_model and facts.base_model not in named:
        data.base_model = facts.base_model
    section = f"{BEGIN}\n{_section(facts)}\n{END}"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    card.text = before + section + after if begin and end else text.rstrip() + "\n\n" + section + "\n"
    return str(card)


def is_hub_id(name: str) -> bool:
    """Whether a base's name says where it lies on the Hub: a path of this machine does not, even if it is gone."""
    if Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _names_local_base(tag: str) -> bool:
    """Whether a tag is PEFT's `base_model:adapter:<base>` of a base on this machine."""
    return tag.startswith("base_model:") and not is_hub_id(tag.rpartition(":")[2])


def _is_empty_form(text: str) -> bool:
    """Whether a card is the form that PEFT's `save_pretrained` writes, with nothing filled in."""
    form = ModelCard.from_template(ModelCardData()).text
    return bool(ModelCard(text).text.partition("### Framework versions")[0].split() == form.split())


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
        *(_bundle_lines(facts.repo_id, base) if bundle else _alone_lines(facts, base)),
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


def _alone_lines(facts: CardFacts, base: str) -> list[str]:
    folder = "." if any(member.folder == "." for member in facts.members) else facts.members[0].folder
    subfolder = "" if folder == "." else f', subfolder="{folder}"'
    return [
        "import peft_reft  # registers ReFT with PEFT",
        "from peft import PeftModel",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(model, "{facts.repo_id}"{subfolder})',
    ]


def _bundle_lines(repo_id: str, base: str) -> list[str]:
    return [
        "from peft_reft import MixedReftModel",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = MixedReftModel.from_pretrained(model, "{repo_id}")',
    ]
