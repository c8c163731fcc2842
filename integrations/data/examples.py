"""Text, prompt and completion, or messages → tokens, as TRL's `SFTTrainer` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.inputs import EXPLICIT

__all__ = ["tokenised"]


def tokenised(tokenizer: Any, example: Any) -> tuple[dict[str, Any], bool]:
    """The columns of an example, and whether it is a prompt and nothing else.

    - with `input_ids`: as it is;
    - `prompt` and `completion`, texts or messages: the completion starts where prompt and prompt + completion diverge;
    - `prompt` alone: a prompt;
    - `messages`: the answers are what the chat template marks with `{% generation %}`; without an answer, a prompt;
    - `text`, or a string: nothing says what is prompt.

    A text that is trained on ends with the end of the sequence, as TRL adds it.

    Raises:
        ConfigError: an example of another form.
    """
    if isinstance(example, str):
        return {"input_ids": _ids(tokenizer, example)}, False
    if not isinstance(example, Mapping):
        raise _form(type(example).__name__)
    if example.get("input_ids") is not None:
        return dict(example), False
    if counted := [name for name in (*EXPLICIT, "labels") if example.get(name) is not None]:
        raise ConfigError(
            f"the example has {counted[0]} and no input_ids",
            code="example.form",
            value=counted[0],
            rule="positions count tokens, so they stand beside the tokens that they count",
            fix="pass the example after it is tokenised",
        )
    if example.get("prompt") is not None:
        return _prompt_completion(tokenizer, example)
    if example.get("messages") is not None:
        return _conversation(tokenizer, example)
    if isinstance(example.get("text"), str):
        return {"input_ids": _ids(tokenizer, _ended(tokenizer, example["text"]))}, False
    raise _form(", ".join(map(str, example)) or "nothing")


def _prompt_completion(tokenizer: Any, example: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    prompt, completion = example["prompt"], example.get("completion")
    if type(prompt) is not type(completion) and completion is not None:
        raise _form(f"prompt ({type(prompt).__name__}), completion ({type(completion).__name__})")
    if isinstance(prompt, str):
        start = _ids(tokenizer, prompt)
        whole = None if completion is None else _ids(tokenizer, _ended(tokenizer, prompt + completion))
    else:
        options = _template_options(example)
        start = _templated(tokenizer, prompt, add_generation_prompt=True, **options)["input_ids"]
        whole = None if completion is None else _templated(tokenizer, [*prompt, *completion], **options)["input_ids"]
    if whole is None:
        return {"input_ids": start}, True
    same = 0
    while same < min(len(start), len(whole)) and start[same] == whole[same]:
        same += 1
    return {"input_ids": whole, "completion_mask": [0] * same + [1] * (len(whole) - same)}, False


def _conversation(tokenizer: Any, example: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    messages, options = example["messages"], _template_options(example)
    if not any(message.get("role") == "assistant" for message in messages):
        return {"input_ids": _templated(tokenizer, messages, add_generation_prompt=True, **options)["input_ids"]}, True
    made = _templated(tokenizer, messages, return_assistant_tokens_mask=True, **options)
    marks = made.get("assistant_masks")
    columns = {"input_ids": made["input_ids"]}
    if marks is not None and any(marks):
        columns["assistant_masks"] = marks
    return columns, False


def _templated(tokenizer: Any, messages: Any, **options: Any) -> Mapping[str, Any]:
    made: Mapping[str, Any] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return made


def _template_options(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": example.get("tools"), **(example.get("chat_template_kwargs") or {})}


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def _ended(tokenizer: Any, text: str) -> str:
    end = tokenizer.eos_token
    return text if end is None or text.endswith(end) else text + end


def _form(what: str) -> ConfigError:
    return ConfigError(
        f"the example is or has: {what}",
        code="example.form",
        rule="an example is a text, or has input_ids, prompt (and completion, of the same type), messages or text",
        fix="pass one row of the data set, before or after it is tokenised",
    )
