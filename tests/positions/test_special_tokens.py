"""`tok(…)`: bound by a tokenizer, stored with its fingerprint, found by id wherever the token stands."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from contract.recording import edited_by, edited_while_generating
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, PositionError, ReftError
from peft_reft.positions.binding import tokenizer_fingerprint

START, END = 2, 3


def tokenizer(**more: int) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<unk>": 1, "<|start|>": START, "<|end|>": END, "word": 4, **more}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    return made


def bound(positions: str, **fields: Any) -> ReftConfig:
    config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False, **fields)
    return config.bind_tokenizer(tokenizer())


def test_binding_stores_ids_and_fingerprint() -> None:
    config = bound("tok(<|start|>)+l2-tok(<|end|>)")
    assert config.special_tokens == {
        "tokenizer": tokenizer_fingerprint(tokenizer()),
        "ids": {"<|start|>": START, "<|end|>": END},
    }
    assert bound("f3+l5").special_tokens is None


def test_the_fingerprint_is_the_vocabularys() -> None:
    made = tokenizer()
    assert tokenizer_fingerprint(made) == tokenizer_fingerprint(copy.deepcopy(made))
    assert tokenizer_fingerprint(made) != tokenizer_fingerprint(tokenizer(other=5))
    assert tokenizer_fingerprint(tokenizer(a=5, b=6)) != tokenizer_fingerprint(tokenizer(a=6, b=5))


def test_groups_bind_their_own_tokens() -> None:
    config = bound("l1", interventions=[{"positions": "tok(<|end|>)"}, {"positions": "f1"}])
    assert config.special_tokens is not None
    assert config.special_tokens["ids"] == {"<|end|>": END}


@pytest.mark.parametrize("word", ["word", "absent", "<|START|>"])
def test_a_word_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"never merged.*<\|end\|>, <\|start\|>"):
        bound(f"tok({word})")


def test_other_ids_are_refused_and_the_same_ids_are_not() -> None:
    config = bound("tok(<|end|>)")
    other = tokenizer(**{"<|end|>": 9, "x": END})
    with pytest.raises(ConfigError, match="was trained with"):
        config.bind_tokenizer(other)
    larger = tokenizer(more=7)
    assert config.bind_tokenizer(larger).special_tokens == {
        "tokenizer": tokenizer_fingerprint(larger),
        "ids": {"<|end|>": END},
    }


def test_unbound_is_an_error_when_the_model_is_made() -> None:
    config = ReftConfig(task_type="CAUSAL_LM", positions="all-tok(<|end|>)")
    with pytest.raises(PositionError, match="bind_tokenizer") as caught:
        get_peft_model(base_model("llama"), config)
    assert caught.value.code == "positions.unbound"


def test_positions_changed_after_binding_are_noticed() -> None:
    config = bound("tok(<|end|>)")
    config.positions = "tok(<|start|>)"
    with pytest.raises(ConfigError, match="bind_tokenizer"):
        get_peft_model(base_model("llama"), config)


@pytest.mark.parametrize(
    "stored",
    [
        [],
        {},
        {"ids": {"<|end|>": 3}},
        {"tokenizer": "sha256:" + "0" * 64, "ids": []},
        {"tokenizer": "sha256:" + "0" * 64, "ids": {"<|end|>": -1}},
        {"tokenizer": "sha256:" + "0" * 64, "ids": {"<|end|>": True}},
        {"tokenizer": "sha256:" + "0" * 64, "ids": {"<|end|>": 2**31}},
        {"tokenizer": "sha256:" + "0" * 64, "ids": {}},
        {"tokenizer": "sha256:" + "0" * 64, "ids": {"<|end|>": 3, "<|start|>": 2}},
        {"tokenizer": "sha256:" + "0" * 63, "ids": {"<|end|>": 3}},
        {"tokenizer": None, "ids": {"<|end|>": 3}},
    ],
)
def test_stored_values_that_are_not_allowed(stored: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ReftConfig(positions="tok(<|end|>)", special_tokens=stored)
    assert caught.value.code == "config.special_tokens"


IDS = torch.tensor([[2, 9, 3, 2, 8, 3, 7], [0, 0, 2, 9, 9, 3, 3]])
MASK = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("tok(<|end|>)", {(0, 2), (0, 5), (1, 5), (1, 6)}),
        ("tok(<|start|>)", {(0, 0), (0, 3), (1, 2)}),
        ("all-tok(<|start|>)-tok(<|end|>)", {(0, 1), (0, 4), (0, 6), (1, 3), (1, 4)}),
        ("f2-tok(<|start|>)", {(0, 1), (1, 3)}),
        ("l2-tok(<|end|>)", {(0, 6)}),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_tokens_edited(name: str, positions: str, expected: set[tuple[int, int]]) -> None:
    model = get_peft_model(base_model(name), bound(positions)).eval()
    assert edited_by(model, name, 0, lambda: model(input_ids=IDS, attention_mask=MASK)) == expected


def test_generated_occurrences_are_edited_too() -> None:
    model = get_peft_model(base_model("llama"), bound("tok(<|end|>)")).eval()
    forced = torch.tensor([9, 3, 3, 9])

    def only(batch: int, ids: torch.Tensor) -> list[int]:
        return [int(forced[ids.shape[0] - 3])]

    found = edited_while_generating(
        model,
        "llama",
        0,
        lambda: model.generate(
            input_ids=torch.tensor([[2, 3, 9]]), max_new_tokens=4, do_sample=False, prefix_allowed_tokens_fn=only
        ),
    )
    assert set().union(*found) == {(0, 1), (0, 4), (0, 5)}


def test_embeddings_alone_are_an_error() -> None:
    model = get_peft_model(base_model("llama"), bound("all-tok(<|end|>)")).eval()
    embeddings = model.get_input_embeddings()(IDS).detach()
    with pytest.raises(PositionError, match="input_ids") as caught:
        model(inputs_embeds=embeddings)
    assert caught.value.code == "positions.no_ids"
    model(inputs_embeds=embeddings, intervention_locations=torch.zeros(2, 1, 1, dtype=torch.long) + 5)


def test_labels_alone_do_not_tell_a_decoders_tokens() -> None:
    config = ReftConfig(
        task_type="SEQ_2_SEQ_LM", positions="tok(<|end|>)", layers_pattern="decoder.block", init_weights=False
    )
    model = get_peft_model(base_model("t5"), config.bind_tokenizer(tokenizer())).eval()
    with pytest.raises(PositionError, match="decoder_input_ids"):
        model(input_ids=IDS, labels=IDS)
    ids = torch.tensor([[0, 3, 7], [0, 9, 3]])
    found = edited_by(model, "t5", 0, lambda: model(input_ids=IDS, decoder_input_ids=ids, labels=ids), role="decoder")
    assert found == {(0, 1), (1, 2)}


def test_a_round_trip_keeps_the_binding(tmp_path: pathlib.Path) -> None:
    model = get_peft_model(base_model("llama"), bound("all-tok(<|end|>)", turns="each")).eval()
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["reft"]
    assert stored["special_tokens"] == {"tokenizer": tokenizer_fingerprint(tokenizer()), "ids": {"<|end|>": END}}
    assert stored["turns"] == "each"
    loaded = PeftModel.from_pretrained(base_model("llama"), str(tmp_path)).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
        assert torch.equal(loaded(input_ids=IDS, attention_mask=MASK).logits, expected)
    stored["special_tokens"]["ids"]["<|end|>"] = START
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "REFT", "reft": stored}))
    with pytest.raises(ReftError):
        PeftModel.from_pretrained(base_model("llama"), str(tmp_path))


def test_turns_are_edited_in_training_and_generation_alike() -> None:
    """`l1` before every answer: the mask at generation says what the labels say in training."""
    model = reft_model("llama", positions="l1", turns="each")
    ids = token_ids(1, 8, seed=4)
    labels = torch.tensor([[-100, -100, 5, 5, -100, -100, -100, 5]])
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1]])
    model.train()
    assert edited_by(model, "llama", 0, lambda: model(input_ids=ids, labels=labels)) == {(0, 1), (0, 6)}
    model.eval()
    found = edited_while_generating(
        model,
        "llama",
        0,
        lambda: model.generate(input_ids=ids[:, :7], prompt_mask=mask, max_new_tokens=3, do_sample=False),
    )
    assert set().union(*found) == {(0, 1), (0, 6)}
    with pytest.raises(PositionError, match="prompt_mask"):
        model.generate(input_ids=ids[:, :7], max_new_tokens=3)
