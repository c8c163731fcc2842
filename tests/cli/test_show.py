"""`peft-reft show`: the tokens that are edited, and the answers of the base before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.tiny_sft import base_model, reft, tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.utils import logging

from peft_reft import MixedReftModel, ReftConfig
from peft_reft.integrations.cli import main

from .conftest import Command

QUESTION = "what is the colour of the sky ?"


@pytest.fixture(autouse=True)
def bars() -> Iterator[None]:
    """The command switches transformers' bars off where stderr is no terminal, which is for good in its process."""
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with a chat template, `bare` without; `reft` with two terms, `several`, and a bundle `both`."""
    root = tmp_path_factory.mktemp("show")
    base_model().save_pretrained(root / "base")
    tokenizer().save_pretrained(root / "base")
    base_model().save_pretrained(root / "bare")
    bare = tokenizer().from_pretrained(root / "base")
    bare.chat_template = None
    bare.save_pretrained(root / "bare")
    torch.manual_seed(0)
    get_peft_model(base_model(), reft(positions="f2+l2", share_weights=False)).save_pretrained(root / "reft")
    several = get_peft_model(base_model(), reft(positions="l1"))
    several.add_adapter("other", reft(positions="f1"))
    several.save_pretrained(root / "several")
    lora = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    mixed = MixedReftModel.from_configs(base_model(), {"default": lora, "edit": reft(positions="l1")})
    mixed.save_pretrained(str(root / "both"))
    get_peft_model(base_model(), ReftConfig(task_type="FEATURE_EXTRACTION", positions="all")).save_pretrained(
        root / "embedding"
    )
    return root


def answer(model: Any, text: str, length: int) -> str:
    """Greedy, token by token, without a cache and without `generate`."""
    ids = tokenizer()(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for _ in range(length):
            logits = (
                model(input_ids=ids, prompt_mask=mask).logits if isinstance(model, PeftModel) else model(ids).logits
            )
            following = logits[:, -1].argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, following], 1), torch.cat([mask, torch.zeros_like(following)], 1)
            if int(following) == 1:
                break
    return str(tokenizer().decode(ids[0, start:], skip_special_tokens=True)).strip()


def test_positions_are_marked_and_answers_are_those_of_base_and_adapter(places: Path, command: Command) -> None:
    asked = (QUESTION, "name a rose")
    status, said = command("show", places / "base", places / "reft", *asked, "--max-new-tokens", 6)
    assert (status, said["adapters"]) == (0, ["default"])
    base = base_model().eval()
    edited = PeftModel.from_pretrained(base_model(), places / "reft").eval()
    for prompt, shown in zip(asked, said["prompts"], strict=True):
        text = f"<|user|> {prompt} <|end|><|assistant|>"
        length = len(prompt.split()) + 3
        assert shown["prompt"] == prompt
        assert len(shown["tokens"]) == length
        assert shown["edited"] == {
            "default": [{"term": "f2", "positions": [0, 1]}, {"term": "l2", "positions": [length - 2, length - 1]}]
        }
        assert shown["before"] == answer(base, text, 6)
        assert shown["after"] == answer(edited, text, 6) != shown["before"]


def test_without_a_chat_template_and_with_plain_the_prompt_stands_as_it_is(places: Path, command: Command) -> None:
    for options in ([places / "bare"], [places / "base", "--plain"]):
        _, said = command("show", options[0], places / "reft", QUESTION, "--max-new-tokens", 4, *options[1:])
        (shown,) = said["prompts"]
        assert shown["tokens"] == QUESTION.split()
        assert shown["before"] == answer(base_model().eval(), QUESTION, 4)
    status, said = command("show", places / "bare", places / "reft", QUESTION, "--system", "me")
    assert (status, said["error"]["value"]) == (1, "me")


def test_a_system_message_stands_before_the_prompt(places: Path, command: Command) -> None:
    _, said = command("show", places / "base", places / "reft", "what ?", "--system", "tell me", "--max-new-tokens", 2)
    tokens = said["prompts"][0]["tokens"]
    assert tokens == ["<|user|>", "tell", "me", "<|end|>", "<|user|>", "what", "?", "<|end|>", "<|assistant|>"]


def test_an_adapter_is_chosen_by_name(places: Path, command: Command) -> None:
    status, said = command("show", places / "base", places / "several", QUESTION)
    assert (status, "default, other" in said["error"]["message"]) == (1, True)
    _, said = command("show", places / "base", places / "several", QUESTION, "--adapter", "other")
    assert said["prompts"][0]["edited"] == {"other": [{"term": "f1", "positions": [0]}]}
    _, said = command("show", places / "base", places / "several", QUESTION, "--adapter", "default+other")
    assert set(said["prompts"][0]["edited"]) == {"default", "other"}
    status, said = command("show", places / "base", places / "several", QUESTION, "--adapter", "third")
    assert (status, said["error"]["value"]) == (1, "third")


def test_of_a_bundle_the_edit_is_shown_and_all_adapters_answer(places: Path, command: Command) -> None:
    _, both = command("show", places / "base", places / "both", QUESTION, "--max-new-tokens", 6)
    assert both["adapters"] == ["default", "edit"]
    assert set(both["prompts"][0]["edited"]) == {"edit"}
    mixed = MixedReftModel.from_pretrained(base_model(), str(places / "both")).eval()
    text = f"<|user|> {QUESTION} <|end|><|assistant|>"
    assert both["prompts"][0]["after"] == answer(mixed, text, 6)
    _, edit = command("show", places / "base", places / "both", QUESTION, "--adapter", "edit", "--max-new-tokens", 6)
    assert edit["adapters"] == ["edit"]


@pytest.mark.parametrize(
    ("source", "options", "code"),
    [("both", ["--adapter", "default"], "show.adapter"), ("embedding", [], "show.task")],
)
def test_what_has_no_answers_is_refused(
    source: str, options: list[str], code: str, places: Path, command: Command
) -> None:
    status, said = command("show", places / "base", places / source, QUESTION, *options)
    assert (status, said["error"]["code"]) == (1, code)


def test_a_prompt_that_is_no_text_is_refused(places: Path, command: Command) -> None:
    """What Python makes of bytes of a command line that are no UTF-8."""
    status, said = command("show", places / "base", places / "reft", "\udc80")
    assert (status, said["error"]["code"]) == (1, "show.prompt")


def test_the_screen_has_both_answers_beside_one_another(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["show", str(places / "base"), str(places / "reft"), QUESTION, "--max-new-tokens", "3"]
    assert main(arguments) == 0
    screen = capsys.readouterr().out
    assert f"› {QUESTION}" in screen
    assert "[1 <|user|>] [1 what] is the colour" in screen
    assert "[2 <|end|>] [2 <|assistant|>] ‖" in screen
    (heads,) = [line for line in screen.splitlines() if "before: the base alone" in line]
    assert "after: default" in heads


@pytest.mark.parametrize(
    "arguments", [["show", "base"], ["show", "base", "reft"], ["show", "b", "r", "p", "--max-new-tokens", "0"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "peft-reft show" in capsys.readouterr().err
