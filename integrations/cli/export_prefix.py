"""`peft-reft export-prefix`: edits of a fixed prefix as a stock PEFT adapter that needs no peft_reft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.opening import open_source

from .report import JsonOption, Report, RevisionOption, TokenOption
from .source import SourceArgument

__all__ = ["export_prefix"]


def export_prefix(
    source: SourceArgument,
    target: Annotated[Path, typer.Argument(help="A new folder, for PeftModel.from_pretrained.")],
    base_model: Annotated[
        str, typer.Option(help="Id or folder of the base, with its tokenizer unless --ids is given.")
    ],
    text: Annotated[str | None, typer.Option(help="The prefix, as the tokenizer starts a text with it.")] = None,
    system: Annotated[str | None, typer.Option(help="The prefix as a system message of the chat template.")] = None,
    ids: Annotated[str | None, typer.Option(help='The prefix as token ids, e.g. "1 15 27".')] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Write the edits of a fixed prefix (a system prompt) as keys and values that stock PEFT loads."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import peft_reft

    chosen = {name: value for name, value in (("text", text), ("system", system), ("ids", ids)) if value is not None}
    if len(chosen) != 1:
        raise ConfigError(
            f"the prefix is given as {', '.join(chosen) or 'nothing'}",
            value=sorted(chosen),
            rule="one of --text, --system, --ids says it",
        )
    folder = open_source(source, revision=revision, token=token)
    base = AutoModelForCausalLM.from_pretrained(base_model)
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    written = peft_reft.export_prefix(model, _token_ids(base_model, chosen)).save_pretrained(target)
    return Report({"source": source, "target": str(written)}, [f"wrote {written}"])


def _token_ids(base_model: str, chosen: dict[str, str]) -> Any:
    import torch

    if "ids" in chosen:
        parts = chosen["ids"].replace(",", " ").split()
        if not parts or not all(part.isdecimal() for part in parts):
            raise ConfigError(f"--ids {chosen['ids'][:60]!r}", value=chosen["ids"], rule="it is a list of numbers")
        return torch.tensor([[int(part) for part in parts]])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    if "text" in chosen:
        return tokenizer(chosen["text"], return_tensors="pt").input_ids
    found = tokenizer.apply_chat_template([{"role": "system", "content": chosen["system"]}], return_dict=False)
    return torch.tensor([found])
