"""Heads beside the edits, where PEFT lists by task what a model may not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hostile import folders as f
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_reft import ReftConfig
from peft_reft.hub_format.envelope import check_beside
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, WEIGHTS_NAME

IDS = torch.tensor([[5, 9, 33, 12, 2], [7, 8, 21, 40, 2]])
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
BART = {
    "d_model": 32,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartForSequenceClassification", BART),
    "t5": ("T5ForSequenceClassification", {**T5, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}),
    "bert": ("BertForSequenceClassification", BERT),
    "bigbird answers": ("BigBirdForQuestionAnswering", {**BERT, "attention_type": "original_full"}),
}


def base(name: str) -> hf.PreTrainedModel:
    model_class, sizes = getattr(hf, BASES[name][0]), BASES[name][1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(model_class.config_class(vocab_size=64, num_labels=2, **sizes)).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        given = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    found: torch.Tensor = given.logits if "logits" in given else given.start_logits
    return found


def config(name: str, make: Callable[..., Any] = ReftConfig, **fields: Any) -> Any:
    return make(task_type="QUESTION_ANS" if "answers" in name else "SEQ_CLS", **fields)


@pytest.mark.parametrize("name", ["bart", "t5", "bigbird answers"])
def test_a_model_without_the_heads_that_its_task_lists_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = get_peft_model(base(name), config(name, positions="f2", init_weights=False)).eval()
    expected = outputs(model)
    assert not torch.equal(expected, outputs(base(name)))
    model.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["modules_to_save"]
    assert torch.equal(outputs(PeftModel.from_pretrained(base(name), str(tmp_path))), expected)
    plain = base(name)
    plain.load_adapter(str(tmp_path))
    assert torch.equal(outputs(plain), expected)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_head_of_another_name_is_neither_trained_nor_saved_as_with_a_lora(name: str, tmp_path: Path) -> None:
    for make in (LoraConfig, ReftConfig):
        model = get_peft_model(base(name), config(name, make))
        heads = [parameter for path, parameter in model.named_parameters() if "classification_head" in path]
        assert heads
        assert not any(parameter.requires_grad for parameter in heads)
        model.save_pretrained(str(tmp_path / make.__name__))
        saved = load_file(tmp_path / make.__name__ / WEIGHTS_NAME)
        assert not any("classification_head" in tensor for tensor in saved)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_head_of_another_name_is_trained_and_saved_where_it_is_named(name: str, tmp_path: Path) -> None:
    made = config(name, positions="f2", init_weights=False, modules_to_save=["classification_head"])
    model = get_peft_model(base(name), made).eval()
    named = dict(model.named_parameters())
    heads = [named[path] for path in named if "classification_head.modules_to_save" in path]
    assert all(parameter.requires_grad for parameter in heads)
    for parameter in heads:
        parameter.data.add_(0.5)
    expected = outputs(model)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(outputs(PeftModel.from_pretrained(base(name), str(tmp_path))), expected)


def test_a_head_that_the_base_has_and_the_folder_lacks_is_refused(tmp_path: Path) -> None:
    get_peft_model(base("bert"), config("bert")).save_pretrained(str(tmp_path))
    f.tensors(lambda held: [held.pop(name) for name in list(held) if "classifier" in name])(tmp_path)
    with pytest.raises(ReftError, match="saves 'classifier' in full, and the file lacks") as caught:
        PeftModel.from_pretrained(base("bert"), str(tmp_path))
    assert caught.value.code == "load.fit"


@pytest.mark.parametrize(
    ("task", "name"), [(None, "score"), ("CAUSAL_LM", "score"), ("SEQ_CLS", "qa_outputs"), ("QUESTION_ANS", "score")]
)
def test_a_head_that_the_task_does_not_list_must_have_tensors(task: str | None, name: str) -> None:
    with pytest.raises(ReftError, match=f"names '{name}'") as caught:
        check_beside({"task_type": task, "modules_to_save": [name]}, [])
    assert caught.value.code == "tensors.missing"
