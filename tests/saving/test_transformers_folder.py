"""Folders that transformers writes: `model.add_adapter(ReftConfig(...))`, then its own `save_pretrained` or `Trainer`.

They load by every verb, with what every other folder guarantees. Expected logits are those of the saved model itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from hub.client import hub
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from contract.features import load_adapter_brings_heads
from contract.tiny import base_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, list_adapters
from peft_reft.hub_format import check_folder
from peft_reft.hub_format.errors import AdapterLoadError, BaseMismatchError, IntegrityError, ManifestError
from peft_reft.hub_format.manifest import MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME
from tools.loopback_hub import LoopbackHub

__all__ = ["hub"]

IDS = token_ids(2, 9)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "llama"
    base_model("llama").save_pretrained(folder)
    return folder


def loaded(base: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(base)


def edited(base: Path, *, seed: int = 0, name: str | None = None, **fields: Any) -> Any:
    model = loaded(base)
    config = ReftConfig(task_type="CAUSAL_LM", **{"r": 2, "positions": "f2+l2", "init_weights": False, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(config, name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "named": {"name": "tone"},
    "untied": {"share_weights": False, "intervention": "direft"},
    "head": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [5, 6]},
    "groups": {"interventions": [{"r": 2}, {"intervention": "bias", "layers_to_transform": [1]}]},
}


@pytest.mark.parametrize("case", CASES)
def test_every_verb_loads_it(case: str, base: Path, tmp_path: Path) -> None:
    model = edited(base, **CASES[case])
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert check_folder(tmp_path) is not None
    assert [(member.name, member.kind) for member in list_adapters(tmp_path)] == [("default", "reft")]
    assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), str(tmp_path))), expected)
    other = PeftModel.from_pretrained(loaded(base), str(tmp_path), adapter_name="other", is_trainable=True)
    assert torch.equal(logits(other), expected)
    other.load_adapter(str(tmp_path), "other")
    assert torch.equal(logits(other), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path))), expected)
    again = loaded(base)
    again.load_adapter(str(tmp_path))
    if case == "head" and not load_adapter_brings_heads():
        with pytest.raises(AdapterLoadError, match="was not loaded"):
            logits(again)
        return
    assert torch.equal(logits(again), expected)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), str(tmp_path / "again"))), expected)


def test_it_is_the_folder_that_peft_writes(base: Path, tmp_path: Path) -> None:
    model = edited(base)
    model.save_pretrained(tmp_path / "transformers")
    PeftModel.from_pretrained(loaded(base), str(tmp_path / "transformers")).save_pretrained(str(tmp_path / "peft"))
    own, peft = (check_folder(tmp_path / name) for name in ("transformers", "peft"))
    assert own is not None
    assert peft is not None
    assert (own.manifest.tensors, own.manifest.base_model) == (peft.manifest.tensors, peft.manifest.base_model)
    assert (tmp_path / "transformers" / WEIGHTS_NAME).read_bytes() == (tmp_path / "peft" / WEIGHTS_NAME).read_bytes()


def test_a_second_save_replaces_the_first_and_leaves_nothing_else(base: Path, tmp_path: Path) -> None:
    edited(base, seed=1).save_pretrained(tmp_path)
    (tmp_path / PICKLE_NAME).write_bytes(b"of an earlier save")
    names = {path.name for path in tmp_path.iterdir()} - {PICKLE_NAME}
    model = edited(base, seed=2, r=3)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), str(tmp_path))), logits(model))
    assert {path.name for path in tmp_path.iterdir()} == names
    model.save_pretrained(tmp_path)  # the same once more
    assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), str(tmp_path))), logits(model))


@pytest.mark.parametrize("old", [False, True])
def test_a_save_that_was_interrupted_before_its_weights_is_refused(old: bool, base: Path, tmp_path: Path) -> None:
    if old:
        edited(base, seed=1).save_pretrained(tmp_path)
    model = edited(base, seed=2)
    model.get_adapter_state_dict()  # as far as transformers comes before the file
    model.peft_config["default"].save_pretrained(str(tmp_path))
    with pytest.raises(IntegrityError if old else ManifestError):
        PeftModel.from_pretrained(loaded(base), str(tmp_path))


@pytest.mark.parametrize("damage", ["weights", "manifest", "base"])
def test_what_every_folder_guarantees_it_does_too(damage: str, base: Path, tmp_path: Path) -> None:
    edited(base).save_pretrained(tmp_path)
    on, error = loaded(base), IntegrityError
    if damage == "weights":
        weights = load_file(tmp_path / WEIGHTS_NAME)
        save_file({n: value + 1 for n, value in weights.items()}, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    elif damage == "manifest":
        (tmp_path / MANIFEST_NAME).unlink()
        error = ManifestError
    else:
        on, error = base_model("mistral"), BaseMismatchError
    with pytest.raises(error):
        PeftModel.from_pretrained(on, str(tmp_path))


def test_weights_that_were_saved_by_hand_before_the_config_are_the_ones_described(base: Path, tmp_path: Path) -> None:
    model = edited(base)
    named = {f"base_model.model.{n}": value for n, value in get_peft_model_state_dict(model).items()}
    save_file(named, tmp_path / WEIGHTS_NAME, metadata={"by": "hand"})
    model.peft_config["default"].save_pretrained(str(tmp_path))
    assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), str(tmp_path))), logits(model))


def test_a_copy_of_the_config_holds_no_weights(base: Path) -> None:
    model = edited(base)
    model.get_adapter_state_dict()
    config = model.peft_config["default"]
    assert config.outgoing is not None
    assert copy.deepcopy(config).outgoing is None


def test_a_config_alone_stays_a_config_alone(base: Path, tmp_path: Path) -> None:
    edited(base).save_pretrained(tmp_path / "saved")
    model = loaded(base)
    model.load_adapter(str(tmp_path / "saved"))
    logits(model)  # looks at the weights that were loaded
    model.peft_config["default"].save_pretrained(str(tmp_path / "alone"))
    assert check_folder(tmp_path / "alone") is None


def test_a_mixed_model_takes_it_as_a_member(base: Path, tmp_path: Path) -> None:
    model = edited(base)
    expected = logits(model)
    model.save_pretrained(tmp_path / "edit")
    mixed = MixedReftModel.from_configs(
        loaded(base), {"default": LoraConfig(task_type="CAUSAL_LM", r=2), "edit": ReftConfig(task_type="CAUSAL_LM")}
    )
    mixed.load_adapter(str(tmp_path / "edit"), "from_transformers")
    mixed.set_adapter("from_transformers")
    assert torch.equal(logits(mixed), expected)


def test_it_is_pushed_by_transformers_and_loaded_from_there(hub: LoopbackHub, base: Path) -> None:
    model = edited(base)
    model.push_to_hub("me/edit")
    assert hub.storage.repos.keys() == {"me/edit"}
    assert torch.equal(logits(PeftModel.from_pretrained(loaded(base), "me/edit")), logits(model))
    again = loaded(base)
    again.load_adapter("me/edit")
    assert torch.equal(logits(again), logits(model))


def test_a_stock_trainers_checkpoints_load(base: Path, tmp_path: Path) -> None:
    data = Dataset.from_list([{"input_ids": row, "labels": [-100] * 5 + row[5:]} for row in token_ids(8, 9).tolist()])
    model = edited(base, init_weights=None)
    args = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = hf.Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    last = PeftModel.from_pretrained(loaded(base), str(tmp_path / "checkpoint-4"))
    assert torch.equal(logits(last), logits(model))
    first = PeftModel.from_pretrained(loaded(base), str(tmp_path / "checkpoint-2"))
    assert not torch.equal(logits(first), logits(model))
    trainer.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "final"))), logits(model))
