"""The wide model's shape, its tokenizer and where both are kept; made by `python -m benchmarks.wide`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.base_model import cache_folder

__all__ = ["CHAT", "END", "SHAPE", "answer_prompt", "folder_of", "make_model", "make_tokenizer", "shape_digest"]

PAD, ASK, ANSWER, END = "<|pad|>", "<|ask|>", "<|answer|>", "<|end|>"
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    + ANSWER
    + "{{ message['content'] }}"
    + END
    + "{% else %}"
    + ASK
    + "{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)
SHAPE: dict[str, int] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}
"""About 5 million parameters."""
PIECES = r" ?(?:\p{Lu}|(?<!\p{L})\p{Ll})|\p{Ll}+|\d|[^\s\p{L}\d]|\s+"
"""What no token reaches beyond: a word's first letter, any capital, the rest of a word, a digit, a sign, blanks.

So `glass` and `Glass` share their last token, and big and small letters differ by a table of 26 rows."""


def shape_digest() -> str:
    """A name for this shape."""
    return hashlib.sha256(json.dumps(SHAPE, sort_keys=True).encode()).hexdigest()[:8]


def folder_of() -> Path:
    """Where the model, its tokenizer, its text and the state of its training are kept."""
    return cache_folder() / f"wide-{shape_digest()}"


def answer_prompt(question: str) -> str:
    """A question as the model reads it, up to the answer."""
    return f"{ASK}{question}{ANSWER}"


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE of the texts' `PIECES`, and the signs of question and answer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    signs = [PAD, ASK, ANSWER, END]
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=signs,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, eos_token=END, additional_special_tokens=[ASK, ANSWER]
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(seed: int) -> Any:
    """A fresh model, fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE, tie_word_embeddings=True, pad_token_id=0, eos_token_id=3, bos_token_id=None, attention_dropout=0.0
    )
    return LlamaForCausalLM(config)
