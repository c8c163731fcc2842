"""The base models of the studies, as a run needs them: weights in bf16, rows of examples, held-out text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.skills.registry import SKILLS
from benchmarks.skills.rules import RULES
from benchmarks.wide.model import END, answer_prompt, folder_of
from benchmarks.wide.pretrain import held_out_blocks
from tools.base_model import cache_folder, ensure_base_model

from .cut import CutStates, CutTokenizer, cut_head, tokens_of
from .upper import States, upper_model

__all__ = ["BASES", "Base", "BaseMissingError", "identity_of", "load_base"]

BASES = ("upper", "slim", "deep", "wide")
"""The last blocks of SmolLM2-135M-Instruct; its last two with a head of the tokens that are said; the whole of it; and
the small model that is pretrained here."""
BLOCKS = {"upper": 8, "slim": 2}
"""Base → how many of the last blocks it is made of."""
SAID = (1024, 64, 64)
"""Examples in the sets of each rule, of which the slim base knows the tokens."""
TEXT_BLOCKS, TEXT_LENGTH = 24, 64
SMOL_END = "<|im_end|>"


class BaseMissingError(RuntimeError):
    """The wide model has not been pretrained yet."""


@dataclass(frozen=True)
class Base:
    """A base model and how it reads a question.

    Attributes:
        name: of `BASES`.
        identity: digest of its weights: runs on other weights are other runs.
        make: a fresh model, float32 where all of it is trained, else bf16.
        tokenizer: of the model.
        ask: a question → the text up to the answer.
        end: the text that ends an answer.
        text: held-out general text, long `[blocks, length]`.
        prepare: what is computed once for texts, long `[rows, length]`, before anything is timed; None for nothing.
    """

    name: str
    identity: str
    make: Callable[[torch.dtype], Any]
    tokenizer: Any
    ask: Callable[[str], str]
    end: str
    text: Tensor
    prepare: Callable[[Tensor], object] | None = None


@lru_cache(maxsize=2)
def load_base(name: str) -> Base:
    """One of `BASES`.

    Raises:
        BaseMissingError: the wide model is not there yet.
        ValueError: another name.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _folder(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def make(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    if name == "wide":
        text = held_out_blocks(folder_of(), TEXT_BLOCKS, TEXT_LENGTH)
        return Base(name, identity_of(name), contiguous(make), tokenizer, answer_prompt, END, text)
    from benchmarks.wide.corpus import corpus

    # of the standard library alone: the same wherever this Python is, whatever is installed beside it
    words = "\n\n".join(corpus(packages=()).held_out)[: 8 * TEXT_BLOCKS * TEXT_LENGTH]
    ids = tokenizer(words, return_tensors="pt")["input_ids"][0, : TEXT_BLOCKS * TEXT_LENGTH]
    text, told = ids.view(TEXT_BLOCKS, TEXT_LENGTH), (tokenizer, _smol, SMOL_END)
    if name == "deep":
        return Base(name, identity_of(name), contiguous(make), *told, text)
    whole = make(torch.bfloat16)
    states = _states(name, whole, tokenizer.pad_token_id)
    if name == "upper":
        made = partial(upper_model, whole, BLOCKS[name], states)
        return Base(name, identity_of(name), contiguous(made), *told, text, states.of)
    cut = CutTokenizer(tokenizer, sorted(_said(tokenizer) | set(text.flatten().tolist())))
    known = CutStates(states, cut)
    made = cut_head(partial(upper_model, whole, BLOCKS[name], known), cut.kept)
    return Base(name, identity_of(name), contiguous(made), cut, _smol, SMOL_END, cut.cut(text), known.of)


def contiguous(make: Callable[[torch.dtype], Any]) -> Callable[[torch.dtype], Any]:
    """Models whose head is given states in one piece: torch multiplies a slice of them row by row, far slower."""

    def made(dtype: torch.dtype) -> Any:
        model = make(dtype)
        model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
        return model

    return made


def _states(name: str, whole: Any, pad: int) -> States:
    return States(
        lambda: upper_model(whole, BLOCKS[name], None, torch.bfloat16),
        pad,
        whole.config.hidden_size,
        cache_folder() / f"states-{_digest(name)}-{BLOCKS[name]}.pt",
    )


def _said(tokenizer: Any) -> set[int]:
    """The tokens of what the rules' skills ask and answer."""
    sets = [SKILLS[name].splits(SAID, seed=0) for name in RULES]
    examples = [one for splits in sets for part in (splits.train, splits.validation, splits.held_out) for one in part]
    return tokens_of(tokenizer, [text for one in examples for text in (_smol(one.prompt), one.answer + SMOL_END)])


def identity_of(name: str) -> str:
    """Twelve digits of the SHA-256 of its weights; of upper blocks also how many, and whether the head is cut."""
    return "-".join([_digest(name), *([str(BLOCKS[name])] if name in BLOCKS else []), *(["cut"] * (name == "slim"))])


@lru_cache(maxsize=3)
def _digest(name: str) -> str:
    return hashlib.sha256((_folder(name) / "model.safetensors").read_bytes()).hexdigest()[:12]


def _folder(name: str) -> Path:
    if name in ("deep", *BLOCKS):
        return Path(ensure_base_model())
    if name != "wide":
        raise ValueError(f"base={name!r} is none of {', '.join(BASES)}")
    folder = folder_of() / "model"
    if not folder.is_dir():
        raise BaseMissingError("the wide model is not there: run `python -m benchmarks.wide` first")
    return folder


def _smol(question: str) -> str:
    """SmolLM2's chat without the system prompt that its template adds."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
