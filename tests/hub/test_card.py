"""The card: our section alone changes; text, keys and a trainer's sections stay; no local path gets in."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from contract.tiny import base_model
from peft_reft import ReftConfig
from peft_reft.hub_format.bundle import Member
from peft_reft.hub_format.card import BEGIN, END, CardFacts, updated_card

FACTS = CardFacts("me/x", "me/base", [Member("edit", "reft", ".")], ["`edit`: loreft, rank 4"])
CARD = """---
license: mit
language: [de]
custom: {a: 1}
tags: [poems]
pipeline_tag: text2text-generation
---

# Mine

Before.
"""


def test_text_and_keys_stay_and_only_our_section_changes() -> None:
    first = updated_card(CARD + "\n\nAfter, never below.\n", FACTS)
    moved = first + "\nBelow.\n"
    other = CardFacts("me/x", "me/base", FACTS.members, ["`edit`: red, rank 8"])
    second = updated_card(moved, other)
    assert second == moved.replace("loreft, rank 4", "red, rank 8")
    data = ModelCard(second).data.to_dict()
    assert (data["license"], data["language"], data["custom"]) == ("mit", ["de"], {"a": 1})
    assert data["pipeline_tag"] == "text2text-generation"
    assert data["tags"] == ["peft-reft", "poems", "representation-finetuning"]


@pytest.mark.parametrize("torn", [f"{BEGIN}\nmine", f"{END}\nmine\n{BEGIN}\nmore"])
def test_a_mark_without_its_other_half_costs_no_text(torn: str) -> None:
    text = updated_card(CARD + torn, FACTS)
    assert torn in text
    assert text.rstrip().endswith(END)


def test_it_is_the_same_when_nothing_changed() -> None:
    once = updated_card(None, FACTS)
    assert updated_card(once, FACTS) == once


def test_a_local_base_is_named_nowhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    head = f"---\nbase_model: {base}\ntags:\n- base_model:adapter:{base}\n- base_model:adapter:me/base\n---\n"
    text = f"{head}\nTuned from [{base}](https://huggingface.co/{base}), that is {base}.\n"
    card = updated_card(text, CardFacts("me/x", None, FACTS.members, FACTS.edits))
    assert str(base) not in card
    assert "Tuned from a local model, that is a local model." in card
    assert ModelCard(card).data.base_model is None
    assert "base_model:adapter:me/base" in ModelCard(card).data.tags


def test_several_bases_of_the_author_stay() -> None:
    card = updated_card("---\nbase_model: [me/base, me/other]\n---\n# Mine\n", FACTS)
    assert ModelCard(card).data.base_model == ["me/base", "me/other"]


def test_pefts_empty_form_is_replaced_and_a_filled_one_kept(tmp_path: Path) -> None:
    get_peft_model(base_model("llama"), ReftConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    form = (tmp_path / "README.md").read_text("utf-8")
    assert "More Information Needed" not in updated_card(form, FACTS)
    filled = form.replace("[More Information Needed]", "Poems of my own.", 1)
    card = updated_card(filled, FACTS)
    assert "Poems of my own." in card
    assert "a local model" not in card


def test_what_a_trainer_writes_of_data_and_metrics_is_kept(tmp_path: Path) -> None:
    model = get_peft_model(base_model("llama"), ReftConfig(task_type="CAUSAL_LM", positions="f1"))
    rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2)
    settings = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, eval_strategy="steps")
    trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(dataset="my poems", model_name="Mine")
    written = ModelCard((tmp_path / "README.md").read_text("utf-8"))
    card = ModelCard(updated_card(str(written), FACTS))
    assert card.text.startswith(written.text.rstrip())
    assert "my poems dataset" in card.text
    for section in ("## Training and evaluation data", "### Training hyperparameters", "- Loss:", "learning_rate"):
        assert section in card.text


def test_a_bundle_shows_how_to_load_both() -> None:
    members = [Member("default", "lora", "."), Member("edit", "reft", "reft/edit")]
    card = updated_card(None, CardFacts("me/both", "me/base", members, FACTS.edits))
    assert 'MixedReftModel.from_pretrained(model, "me/both")' in card
    assert "lora" in ModelCard(card).data.tags
