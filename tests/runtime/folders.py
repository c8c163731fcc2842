"""Folders as users have them: a base model with its tokenizer, and an adapter that was trained on it."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from contract.tiny import VOCABULARY, base_model, reft_model

TEMPLATE = "{% for message in messages %}{{ 'w4 ' + message['content'] + ' w5 ' }}{% endfor %}"


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One word a token: `w7` is 7."""
    words = Tokenizer(
        WordLevel({"<pad>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}, unk_token="w1")
    )
    words.pre_tokenizer = WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", padding_side="left")
    made.chat_template = TEMPLATE
    return made


def words(tokens: torch.Tensor | list[int]) -> str:
    return " ".join(f"w{int(token)}" for token in tokens)


def numbers(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def spoken(tokens: list[int]) -> list[int]:
    """What a decoded text shows of the tokens: all but padding, which a random model may say."""
    return [token for token in tokens if token != 0]


def saved_base(folder: Path, name: str = "llama") -> Path:
    base = base_model(name, dtype=torch.float64)
    base.generation_config.pad_token_id = 0
    base.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def saved_adapter(folder: Path, base: Path, spec: str) -> PeftModel:
    """Saves an adapter on a saved base, with the tokenizer beside it; returns the model."""
    loaded = hf.AutoModelForCausalLM.from_pretrained(base)
    model = reft_model("llama", base=loaded, positions=spec)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model
