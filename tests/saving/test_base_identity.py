"""An adapter is loaded on the base it was made for: another is refused by name, a changed one of the same is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format.errors import BaseMismatchError
from peft_reft.positions.binding import tokenizer_fingerprint

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EDIT: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2}


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


def mistral() -> nn.Module:
    from transformers import MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES))


def other_type() -> nn.Module:
    model = llama()
    model.config.model_type = "llama-of-another-kind"
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "architecture": (mistral, "base.architecture", "LlamaForCausalLM", "MistralForCausalLM"),
    "head": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES)),
        "base.architecture",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
    ),
    "type": (other_type, "base.model_type", "llama", "llama-of-another-kind"),
    "hidden": (lambda: llama(hidden_size=32), "base.hidden_size", "16", "32"),
    "fewer": (lambda: llama(num_hidden_layers=1), "base.layers", "2", "1"),
    "more": (lambda: llama(num_hidden_layers=3), "base.layers", "2", "3"),
    "heads": (lambda: llama(num_key_value_heads=4), "base.config", "sha256:", "sha256:"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    get_peft_model(llama(), ReftConfig(**EDIT)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    MixedReftModel.from_configs(llama(), {"default": lora, "edit": ReftConfig(**EDIT)}).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_another_base_is_refused_with_the_item_and_both_values(name: str, alone: Path, bundle: Path) -> None:
    make, code, recorded, present = OTHERS[name]
    loads: list[Callable[[], object]] = [lambda: PeftModel.from_pretrained(make(), alone)]
    if name != "head":  # which PEFT's model of a language model cannot be made on
        loads.append(lambda: get_peft_model(make(), ReftConfig(**EDIT)).load_adapter(alone, "other"))
        loads.append(lambda: MixedReftModel.from_pretrained(make(), bundle))
    for load in loads:
        with pytest.raises(BaseMismatchError) as caught:
            load()
        assert caught.value.code == code
        for text in (recorded, present, "allow_other_base=True", "PEFT_REFT_ALLOW_OTHER_BASE=1"):
            assert text in str(caught.value)


def resized() -> nn.Module:
    model = llama()
    model.resize_token_embeddings(64)
    return model


def renamed() -> nn.Module:
    model = llama()
    model.config._name_or_path = "moved/elsewhere"
    return model


class WrappedLlamaForCausalLM(LlamaForCausalLM):
    """As FSDP makes: another name, the same model."""


SAME: dict[str, Callable[[], nn.Module]] = {
    "same": llama,
    "resized": resized,
    "bfloat16": lambda: llama().to(torch.bfloat16),
    "renamed": renamed,
    "subclass": lambda: WrappedLlamaForCausalLM(LlamaConfig(**SIZES)),
    "longer": lambda: llama(max_position_embeddings=9000),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_base_in_another_dress_is_not_refused(name: str, alone: Path) -> None:
    assert PeftModel.from_pretrained(SAME[name](), alone).peft_config["default"].r == 2


def test_an_identity_that_is_not_known_is_not_compared(tmp_path: Path) -> None:
    model = get_peft_model(llama(), ReftConfig(**EDIT))
    model.peft_config["default"].base_identity = None
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(llama(num_key_value_heads=4), tmp_path)


def test_another_base_is_taken_knowingly(alone: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = OTHERS["heads"][0]
    config = ReftConfig.from_pretrained(str(alone), allow_other_base=True)
    model = PeftModel.from_pretrained(other(), alone, config=config)
    assert MixedReftModel.from_pretrained(other(), bundle, allow_other_base=True)
    with pytest.raises(BaseMismatchError):
        PeftModel.from_pretrained(other(), alone)
    monkeypatch.setenv("PEFT_REFT_ALLOW_OTHER_BASE", "1")
    assert PeftModel.from_pretrained(other(), alone)
    monkeypatch.undo()
    assert torch.equal(
        model.get_parameter(next(name for name, _ in model.named_parameters() if "reft_" in name)),
        PeftModel.from_pretrained(llama(), alone).get_parameter(
            next(name for name, _ in model.named_parameters() if "reft_" in name)
        ),
    )


def test_the_base_it_was_saved_from_last_is_what_counts(alone: Path, tmp_path: Path) -> None:
    """After an adapter was taken to another base knowingly and saved there, that one is its base."""
    other = OTHERS["heads"][0]
    config = ReftConfig.from_pretrained(str(alone), allow_other_base=True)
    PeftModel.from_pretrained(other(), alone, config=config).save_pretrained(tmp_path)
    PeftModel.from_pretrained(other(), tmp_path)
    with pytest.raises(BaseMismatchError):
        PeftModel.from_pretrained(llama(), tmp_path)


def words(folder: Path, *extra: str) -> None:
    """A tokenizer beside the base."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "a", "b", *extra])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)


def recorded(folder: Path) -> Any:
    return json.loads((folder / "reft_manifest.json").read_text())["base_model"].get("tokenizer")


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, the `same` elsewhere, one with an `other` tokenizer, one with `none`; and an `adapter` of the first."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name in ("base", "same", "other", "none"):
        llama().save_pretrained(root / name)
        if name != "none":
            words(root / name, *(["c"] if name == "other" else []))
    get_peft_model(LlamaForCausalLM.from_pretrained(root / "base"), ReftConfig(**EDIT)).save_pretrained(
        root / "adapter"
    )
    return root


def test_the_tokenizer_beside_the_base_is_part_of_its_identity(with_tokenizer: Path) -> None:
    adapter = with_tokenizer / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer / "base")
    assert recorded(adapter) == tokenizer_fingerprint(tokenizer)
    with pytest.raises(BaseMismatchError) as caught:
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(with_tokenizer / "other"), adapter)
    assert caught.value.code == "base.tokenizer"
    assert recorded(adapter) in str(caught.value)
    for base in ("base", "same", "none"):
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(with_tokenizer / base), adapter)
    PeftModel.from_pretrained(llama(), adapter)  # made from its config: nothing lies beside it


def test_another_tokenizer_is_taken_knowingly(with_tokenizer: Path, tmp_path: Path) -> None:
    adapter = with_tokenizer / "adapter"
    config = ReftConfig.from_pretrained(str(adapter), allow_other_base=True)
    other = LlamaForCausalLM.from_pretrained(with_tokenizer / "other")
    PeftModel.from_pretrained(other, adapter, config=config).save_pretrained(tmp_path)
    assert recorded(tmp_path) not in (recorded(adapter), None)


def test_a_tokenizer_out_of_reach_keeps_its_record(with_tokenizer: Path, alone: Path, tmp_path: Path) -> None:
    PeftModel.from_pretrained(llama(), with_tokenizer / "adapter").save_pretrained(tmp_path)
    assert recorded(tmp_path) == recorded(with_tokenizer / "adapter")
    assert recorded(alone) is None


def test_a_tokenizer_that_was_changed_since_is_read_again(with_tokenizer: Path, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    base = LlamaForCausalLM.from_pretrained(tmp_path)
    words(tmp_path)
    PeftModel.from_pretrained(base, with_tokenizer / "adapter")
    words(tmp_path, "c")
    with pytest.raises(BaseMismatchError, match="tokenizer"):
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path), with_tokenizer / "adapter")


def test_a_tokenizer_that_cannot_be_read_is_none_at_hand(with_tokenizer: Path, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path), with_tokenizer / "adapter")
