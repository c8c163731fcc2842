"""A LoRA that exists already, in a folder, a repository or memory: a ReFT is put beside it and trained on top."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from hub.client import hub
from hub.folders import stored, upload
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, list_adapters
from peft_reft.hub_format.errors import ConfigError, ManifestError, ReftError
from peft_reft.hub_format.manifest import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME
from tools.loopback_hub import LoopbackHub

from .tiny import lora, reft

__all__ = ["hub"]

IDS = token_ids(2, 9)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def lora_model(**fields: Any) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return get_peft_model(base_model("llama"), lora(init_lora_weights=False, lora_dropout=0.0, **fields))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "lora"
    lora_model().save_pretrained(str(folder))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)}


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Adam on the completions, four steps; the parameters of both parts afterwards."""
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    labels = torch.where(torch.arange(9) < 5, -100, IDS)
    model.train()
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=labels).loss.backward()
        optimizer.step()
    return {
        name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name or "reft" in name
    }


def test_a_stock_lora_is_a_bundle_of_one(saved: Path) -> None:
    expected = logits(PeftModel.from_pretrained(base_model("llama"), str(saved)))
    mixed = MixedReftModel.from_pretrained(base_model("llama"), saved)
    assert list(mixed.peft_config) == mixed.active_adapters == ["default"]
    assert torch.equal(logits(mixed), expected)
    assert not any(value.requires_grad for value in mixed.parameters())
    mixed.add_adapter("edit", reft())  # the identity, and not active yet
    assert mixed.active_adapters == ["default"]
    assert not any(value.requires_grad for value in mixed.parameters())
    mixed.set_adapter(["default", "edit"])
    assert torch.allclose(logits(mixed), expected, atol=1e-6)
    with mixed.disable_adapter():
        assert torch.equal(logits(mixed), logits(base_model("llama")))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_edit_trains_on_top_of_it(frozen: bool, saved: Path, tmp_path: Path) -> None:
    mixed = MixedReftModel.from_pretrained(base_model("llama"), saved, is_trainable=True)
    before = {name: value.detach().clone() for name, value in mixed.named_parameters() if "lora_" in name}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        mixed.add_adapter("edit", reft(dropout=0.0))
        beside = MixedReftModel.from_configs(
            base_model("llama"), {"default": lora(lora_dropout=0.0), "edit": reft(dropout=0.0)}
        )
    mixed.set_adapter(["default", "edit"])
    mixed.set_requires_grad("default", not frozen)
    with torch.no_grad():  # the same numbers in a model that was made with both from the start
        own, others = dict(mixed.named_parameters()), dict(beside.named_parameters())
        assert own.keys() == others.keys()
        for name, value in others.items():
            value.copy_(own[name])
    beside.set_requires_grad("default", not frozen)
    after = trained(mixed)
    reference = trained(beside)
    assert all(torch.equal(after[name], reference[name]) for name in reference)
    assert all(torch.equal(after[name], before[name]) == frozen for name in before)
    mixed.save_pretrained(str(tmp_path / "both"))
    expected = logits(mixed)
    assert torch.equal(logits(MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "both")), expected)
    if frozen:
        assert (tmp_path / "both" / WEIGHTS_NAME).read_bytes() == (saved / WEIGHTS_NAME).read_bytes()


@pytest.mark.parametrize("plain", [False, True])
def test_a_peft_model_at_hand_becomes_one(plain: bool, tmp_path: Path) -> None:
    """`plain`: without a task, PEFT makes a `PeftModel`."""
    given = lora_model(**({"task_type": None} if plain else {}))
    trained(given)
    expected = logits(given)
    requires = {name: value.requires_grad for name, value in given.named_parameters()}
    mixed = MixedReftModel.from_peft(given)
    assert type(mixed) is MixedReftModel
    assert torch.equal(logits(mixed), expected)
    assert {name: value.requires_grad for name, value in mixed.named_parameters()} == requires
    assert all(a is b for a, b in zip(mixed.parameters(), given.parameters(), strict=True))
    mixed.add_adapter("edit", reft(init_weights=False))
    assert {n: v.requires_grad for n, v in mixed.named_parameters() if "lora_" in n} == {
        name: value for name, value in requires.items() if "lora_" in name
    }
    mixed.set_adapter(["default", "edit"])
    both = logits(mixed)
    assert not torch.equal(both, expected)
    call = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 1, "do_sample": False}
    assert torch.equal(mixed.generate(**call)[:, -1], both[:, -1].argmax(-1))
    mixed.save_pretrained(str(tmp_path))
    assert torch.equal(logits(MixedReftModel.from_pretrained(base_model("llama"), tmp_path)), both)
    mixed.set_adapter("default")
    assert torch.equal(logits(mixed), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), str(tmp_path))), expected)


def test_several_loras_stay_with_their_names() -> None:
    given = lora_model()
    given.add_adapter("second", lora(init_lora_weights=False))
    given.set_adapter("second")
    expected = logits(given)
    mixed = MixedReftModel.from_peft(given)
    assert (list(mixed.peft_config), mixed.active_adapters) == (["default", "second"], ["second"])
    assert torch.equal(logits(mixed), expected)


def test_a_trainer_trains_the_edit_of_a_model_at_hand(tmp_path: Path) -> None:
    given = lora_model()
    mixed = MixedReftModel.from_peft(given)
    mixed.add_adapter("edit", reft())
    mixed.set_adapter(["default", "edit"])
    mixed.set_requires_grad("default", False)
    before = {name: value.detach().clone() for name, value in mixed.named_parameters()}
    data = Dataset.from_list([{"input_ids": row, "labels": [-100] * 5 + row[5:]} for row in token_ids(8, 9).tolist()])
    args = hf.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = hf.Trainer(model=mixed, args=args, train_dataset=data)
    trainer.train()
    moved = {name for name, value in mixed.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all(".reft." in name for name in moved)
    again = MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "checkpoint-2")
    assert torch.equal(logits(again), logits(mixed))


def without_default() -> PeftModel:
    return get_peft_model(base_model("llama"), lora(), adapter_name="other")


@pytest.mark.parametrize(
    "make",
    [
        lambda: base_model("llama"),
        lambda: reft_model("llama"),
        without_default,
        lambda: get_peft_model(base_model("llama"), lora(modules_to_save=["lm_head"])),
        lambda: MixedReftModel.from_configs(base_model("llama"), {"default": lora(), "edit": reft()}),
        lambda: get_peft_model(base_model("bert"), LoraConfig(task_type=TaskType.TOKEN_CLS, target_modules=["query"])),
    ],
    ids=["bare", "reft", "no_default", "modules_to_save", "mixed", "other_task"],
)
def test_a_model_that_cannot_be_the_weight_part_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        MixedReftModel.from_peft(make())
    assert caught.value.rule
    assert caught.value.fix or caught.value.value


def test_folders_that_are_no_bundle_and_no_lora_are_refused(saved: Path, tmp_path: Path) -> None:
    reft_model("llama").save_pretrained(str(tmp_path / "reft"))
    with pytest.raises(ManifestError, match="peft-reft bundle"):
        MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "reft")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no weight adapter"):
        MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "empty")
    lora_model().save_pretrained(str(tmp_path / "pickled"), safe_serialization=False)
    assert (tmp_path / "pickled" / PICKLE_NAME).is_file()
    with pytest.raises(ManifestError, match="from_peft") as caught:
        MixedReftModel.from_pretrained(base_model("llama"), tmp_path / "pickled")
    assert caught.value.code == "weights.missing"
    torn = tmp_path / "torn"
    lora_model().save_pretrained(str(torn))
    reft_model("llama").save_pretrained(str(torn / "reft" / "edit"))
    with pytest.raises(ManifestError) as caught:
        MixedReftModel.from_pretrained(base_model("llama"), torn)
    assert caught.value.code == "bundle.index"


@pytest.mark.parametrize(
    "change",
    [{"r": 4096}, {"target_modules": "(a+)+$"}, {"peft_type": "NOPE"}, {"modules_to_save": ["lm_head"]}],
    ids=lambda change: next(iter(change)),
)
def test_a_lora_alone_is_checked_as_a_bundles_is(change: dict[str, Any], tmp_path: Path) -> None:
    lora_model().save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**config, **change}))
    base = base_model("llama")
    with pytest.raises(ReftError):
        MixedReftModel.from_pretrained(base, tmp_path)
    assert not any("lora_" in name for name, _ in base.named_modules())


def test_the_repository_of_a_lora_gets_an_edit_and_its_bytes_stay(
    hub: LoopbackHub, saved: Path, tmp_path: Path
) -> None:
    upload(hub, saved, "me/lora")
    before = files(saved)
    mixed = MixedReftModel.from_pretrained(base_model("llama"), "me/lora")
    assert torch.equal(logits(mixed), logits(PeftModel.from_pretrained(base_model("llama"), str(saved))))
    mixed.add_adapter("edit", reft(init_weights=False))
    mixed.set_adapter(["default", "edit"])
    expected = logits(mixed)
    mixed.push_to_hub("me/lora", add=True)
    held = stored(hub, "me/lora")
    assert {name: held[name] for name in before} == before
    assert [member.name for member in list_adapters("me/lora")] == ["default", "edit"]
    assert torch.equal(logits(MixedReftModel.from_pretrained(base_model("llama"), "me/lora")), expected)
    mixed.set_adapter("default")
    assert torch.equal(logits(PeftModel.from_pretrained(base_model("llama"), "me/lora")), logits(mixed))
    mixed.push_to_hub("me/both")
    mixed.set_adapter(["default", "edit"])
    assert torch.equal(logits(MixedReftModel.from_pretrained(base_model("llama"), "me/both")), expected)
