"""`peft-reft show`: what an adapter edits in a prompt, and what the base answers without it and with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, shown
from peft_reft.hub_format.opening import open_source
from peft_reft.integrations.data import PositionPicture, show_positions

from .report import JsonOption, Report, RevisionOption, TokenOption, plain

__all__ = ["show"]

LINES = 40
"""Lines of an answer that the screen shows; `--json` has all."""


def show(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model, with its tokenizer: a folder or id.")],
    source: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, or a repository on the Hub.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to ask; one or more.")],
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of several adapters the one that edits, or several joined by '+'."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    system: Annotated[str | None, typer.Option(help="A system message before each prompt.")] = None,
    plain_text: Annotated[
        bool, typer.Option("--plain", help="Prompts as they stand, although the tokenizer has a chat template.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the base; auto: as it was saved.")
    ] = "auto",
    revision: RevisionOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Mark the tokens of prompts that an adapter edits, and show greedy answers of the base without and with it.

    The tokenizer's chat template is used where it has one. "Before" is the base alone, "after" the base with the
    adapters chosen: of a bundle all of them, its LoRA too.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    _refuse_unreadable([*prompts, *([] if system is None else [system])])
    folder = open_source(source, revision=revision, token=token)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = [_example(tokenizer, prompt, system, plain_text=plain_text) for prompt in prompts]
    model = _loaded(base, str(folder), dtype, adapter)
    names = list(model.active_adapters)
    configs = {name: model.peft_config[name] for name in names}
    edits = {name: config for name, config in configs.items() if isinstance(config, ReftConfig)}
    _refuse_others(edits)
    pictures = [
        {name: show_positions(tokenizer, example, config) for name, config in edits.items()} for example in examples
    ]
    with model.disable_adapter():
        before = _answers(model, tokenizer, examples, max_new_tokens)
    after = _answers(model, tokenizer, examples, max_new_tokens)
    shown = [
        {"prompt": prompt, **_marked(found), "before": old, "after": new}
        for prompt, found, old, new in zip(prompts, pictures, before, after, strict=True)
    ]
    data = {"base": base, "source": source, "adapters": names, "prompts": shown}
    return Report(data, _screen(data, pictures))


def _loaded(base: str, source: str, dtype: str, adapter: str | None) -> Any:
    """The base on the machine's accelerator where it has one, with the adapters."""
    import torch
    from transformers import AutoModelForCausalLM

    from peft_reft.integrations.loading import load_adapters

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return load_adapters(model, source, adapter=adapter)


def _example(tokenizer: Any, prompt: str, system: str | None, *, plain_text: bool) -> dict[str, Any]:
    if plain_text or tokenizer.chat_template is None:
        if system is not None:
            raise ConfigError(
                "--system with plain prompts",
                value=system,
                rule="where a system message stands is the chat template's to say",
                fix="write it into the prompt" if tokenizer.chat_template is None else "leave --plain out",
            )
        return {"prompt": prompt}
    told = [] if system is None else [{"role": "system", "content": system}]
    return {"prompt": [*told, {"role": "user", "content": prompt}]}


def _answers(model: Any, tokenizer: Any, examples: Sequence[Mapping[str, Any]], length: int) -> list[str]:
    import torch

    from peft_reft.integrations.data.examples import tokenised
    from peft_reft.integrations.evals.answers import answers_to, undisturbed
    from peft_reft.integrations.evals.questions import Question

    questions = [Question(torch.tensor(tokenised(tokenizer, example)[0]["input_ids"]), "") for example in examples]
    with undisturbed(model), torch.no_grad():
        generation = {"max_new_tokens": length, "do_sample": False}
        return answers_to(model, tokenizer, questions, batch_size=1, generation=generation)[0]


def _marked(pictures: Mapping[str, PositionPicture]) -> dict[str, Any]:
    """Tokens of a prompt, and adapter → its terms and the positions that each edits."""
    return {
        "tokens": list(next(iter(pictures.values())).tokens),
        "edited": {
            name: [
                {"term": term, "positions": list(found)}
                for term, found in zip(picture.terms, picture.edited, strict=True)
            ]
            for name, picture in pictures.items()
        },
    }


def _refuse_unreadable(texts: Sequence[str]) -> None:
    """Refuse bytes of a command line that were no text, which tokenizers do not take."""
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(
                f"the prompt {shown(text)} is no text",
                code="show.prompt",
                value=text,
                rule="prompts and system message are in the encoding of the terminal, UTF-8 as a rule",
            )


def _refuse_others(edits: Mapping[str, ReftConfig]) -> None:
    if not edits:
        raise ConfigError(
            "none of the chosen adapters is a ReFT",
            code="show.adapter",
            rule="positions belong to edits of hidden states; a LoRA changes weights, for every token",
            fix="choose a ReFT with --adapter",
        )
    for name, config in edits.items():
        task = config.task_type
        if task is not None and str(getattr(task, "value", task)) != "CAUSAL_LM":
            raise ConfigError(
                f"adapter {name!r} is for {getattr(task, 'value', task)}",
                code="show.task",
                value=str(task),
                rule="answers are generated by causal language models",
                fix="look at its positions with peft_reft.integrations.show_positions",
            )


def _screen(data: Mapping[str, Any], pictures: Sequence[Mapping[str, PositionPicture]]) -> list[str | RenderableType]:
    after = " + ".join(data["adapters"])
    lines: list[str | RenderableType] = []
    for told, found in zip(data["prompts"], pictures, strict=True):
        lines += ["", f"› {told['prompt']}", ""]
        for name, picture in found.items():
            lines += [f"{name}:"] if len(found) > 1 else []
            lines += str(picture).split("\n")
        answers = Table(pad_edge=False, header_style="bold", expand=True)
        answers.add_column("before: the base alone", ratio=1, overflow="fold")
        answers.add_column(Text(f"after: {plain(after)}"), ratio=1, overflow="fold")
        answers.add_row(*(Text(_lines(told[side])) for side in ("before", "after")))
        lines += ["", answers]
    return lines[1:]


def _lines(answer: str) -> str:
    found = answer.split("\n")
    return "\n".join([*map(plain, found[:LINES]), *(["…"] if len(found) > LINES else [])])
