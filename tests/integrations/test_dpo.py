"""Stock `DPOTrainer`: a fresh edit against the base, and a trained policy, of one part or two, against its copy."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from peft_reft import MixedReftModel, scale_adapter, set_subspaces
from peft_reft.hub_format.errors import ConfigError

from .preferences import (
    POLICIES,
    dpo_trainer,
    edit_policy,
    edits_of_passes,
    ends_of_prompts,
    history,
    mixed_policy,
    sequences,
)
from .tiny_sft import base_model, first_batch, reft, trainable

WAYS = {
    "plain": {},
    "precomputed": {"precompute_ref_log_probs": True},
    "padding_free": {"padding_free": True},
    "checkpointed": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_margin_of_a_trained_policy_starts_at_zero_and_grows(tmp_path: Path, policy: str, way: str) -> None:
    trainer = dpo_trainer(tmp_path, POLICIES[policy](), **WAYS[way])
    trainer.train()
    margins, losses = history(trainer, "rewards/margins"), history(trainer, "loss")
    assert abs(margins[0]) < 1e-6
    assert margins[0] < margins[1] < margins[2]
    assert abs(losses[0] - torch.tensor(2.0).log().item()) < 1e-4
    plain = dpo_trainer(tmp_path, POLICIES[policy]())
    plain.train()
    assert_close(losses, history(plain, "loss"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_new_edit_is_compared_with_the_base(tmp_path: Path, way: str) -> None:
    """It starts far from the base here, so the margin starts anywhere; it must grow."""
    trainer = dpo_trainer(tmp_path, base_model(), given={"peft_config": reft()}, **WAYS[way])
    assert "ref" not in trainer.model.peft_config
    trainer.train()
    assert_close(history(trainer, "rewards/margins")[0], _margin_against_base(tmp_path), rtol=1e-3, atol=1e-5)
    assert history(trainer, "rewards/margins")[0] < history(trainer, "rewards/margins")[2]


def _margin_against_base(folder: Path) -> float:
    trainer = dpo_trainer(folder, base_model(), given={"peft_config": reft()})
    policy = _log_likelihoods(trainer.model.train())
    with trainer.model.disable_adapter():
        base = _log_likelihoods(trainer.model)
    gains = trainer.args.beta * (policy - base).detach()
    return float((gains[:4] - gains[4:]).mean())


def _log_likelihoods(model: nn.Module) -> Tensor:
    """log p(answer | prompt) `[8]`: one unpadded row after another, no labels, `f2+l2` given by hand."""
    found = []
    for ids, length in sequences():
        where = torch.tensor([[[0, 1, length - 2, length - 1]]])
        logits = model(input_ids=torch.tensor([ids]), intervention_locations=where).logits[0, length - 1 : -1]
        found.append(-torch.nn.functional.cross_entropy(logits, torch.tensor(ids[length:]), reduction="sum"))
    return torch.stack(found)


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_of_the_rows_one_by_one(tmp_path: Path, policy: str, precomputed: bool) -> None:
    """After two steps, against a copy of the policy as it was before them."""
    model = POLICIES[policy](layers_to_transform=[0, 1])
    before = deepcopy(model)
    trainer = dpo_trainer(tmp_path, model, max_steps=2, precompute_ref_log_probs=precomputed)
    trainer.train()
    loss = trainer.compute_loss(model.train(), first_batch(trainer))
    loss.backward()
    found = _taken_gradients(model)
    with torch.no_grad():
        reference = _log_likelihoods(before)
    gains = _log_likelihoods(model) - reference
    expected = -torch.nn.functional.logsigmoid(trainer.args.beta * (gains[:4] - gains[4:])).mean()
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert abs(float(expected.detach()) - torch.tensor(2.0).log().item()) > 1e-3
    expected.backward()
    hand = _taken_gradients(model)
    assert found.keys() == hand.keys()
    assert any(".reft." in name for name in found)
    assert any(".lora_" in name for name in found) is (policy != "reft")
    for name, gradient in hand.items():
        assert gradient.abs().max() > 1e-7, name
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)


def _taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("positions", ["f1+l2", "l3"])
@pytest.mark.parametrize("policy", ["new", *POLICIES])
def test_policy_and_reference_edit_the_ends_of_every_prompt(tmp_path: Path, policy: str, positions: str) -> None:
    fields = {"positions": positions, "layers_to_transform": [0]}
    if policy == "new":
        trainer = dpo_trainer(tmp_path, base_model(), given={"peft_config": reft(**fields)})
    else:
        trainer = dpo_trainer(tmp_path, POLICIES[policy](**fields))
    batch = first_batch(trainer)
    expected = ends_of_prompts(batch, first=int(positions == "f1+l2"), last=int(positions[-1]))
    with edits_of_passes(trainer.model) as passes:
        trainer.compute_loss(trainer.model.train(), batch)
    assert passes == [expected, set() if policy == "new" else expected]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_alone_is_trained_and_its_copy_stays(tmp_path: Path, policy: str) -> None:
    model = POLICIES[policy]()
    before = trainable(model)
    trainer = dpo_trainer(tmp_path, model)
    assert trainable(model).keys() == before.keys()
    copies = {name: p.clone() for name, p in model.named_parameters() if ".ref" in name.replace(".reft", "")}
    assert len(copies) == len(before)
    trainer.train()
    assert trainable(model).keys() == before.keys()
    assert all(not torch.equal(before[name], after) for name, after in trainable(model).items())
    after = dict(model.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in copies.items())


@pytest.mark.parametrize("policy", POLICIES)
def test_dropout_of_edits_is_switched_off_with_all_other_dropout(tmp_path: Path, policy: str) -> None:
    trainer = dpo_trainer(tmp_path, POLICIES[policy](dropout=0.5), max_steps=1)
    trainer.train()
    assert abs(history(trainer, "rewards/margins")[0]) < 1e-6
    noisy = dpo_trainer(tmp_path, POLICIES[policy](dropout=0.5), max_steps=1, disable_dropout=False)
    noisy.train()
    assert abs(history(noisy, "rewards/margins")[0]) > 1e-3


def scaled(model: Any, name: str) -> None:
    scale_adapter(model, name, 0.3)


def in_part(model: Any, name: str) -> None:
    set_subspaces(model, name, ["one"])


@pytest.mark.parametrize("switch", [scaled, in_part])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_reference_edits_as_the_policy_is_switched(tmp_path: Path, policy: str, switch: Any) -> None:
    """With a factor, or with a part of its rank: what is no parameter goes with the copy too."""
    model = POLICIES[policy](subspaces={"one": [0, 1], "two": [1, 2]})
    switch(model, {"reft": "default"}.get(policy, "edit"))
    trainer = dpo_trainer(tmp_path, model, max_steps=2)
    trainer.train()
    margins = history(trainer, "rewards/margins")
    assert abs(margins[0]) < 1e-6
    assert margins[1] > 1e-3


@pytest.mark.parametrize("active", [["default", "other"], ["other"]])
def test_a_policy_that_the_reference_would_not_copy_is_refused_at_the_start(tmp_path: Path, active: list[str]) -> None:
    model = edit_policy()
    model.add_adapter("other", reft(positions="f1"))
    model.base_model.set_adapter(active)
    with pytest.raises(ConfigError, match=r"made of adapter 'default', and active are \["):
        dpo_trainer(tmp_path, model)
    assert list(model.peft_config) == ["default", "other"]
    model.set_adapter("default")
    trainer = dpo_trainer(tmp_path, model, max_steps=1)
    trainer.train()
    assert abs(history(trainer, "rewards/margins")[0]) < 1e-6


def test_several_edits_train_where_the_reference_is_given(tmp_path: Path) -> None:
    model = edit_policy()
    model.add_adapter("other", reft(positions="f1"))
    model.base_model.set_adapter(["default", "other"])
    trainer = dpo_trainer(tmp_path, model, given={"ref_model": base_model()})
    trainer.train()
    margins = history(trainer, "rewards/margins")
    assert list(model.peft_config) == ["default", "other"]
    assert margins[0] < margins[1] < margins[2]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_run_goes_on_against_the_same_reference(tmp_path: Path, policy: str) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    whole = dpo_trainer(tmp_path, POLICIES[policy](), **saving)
    whole.train()
    resumed = dpo_trainer(tmp_path, POLICIES[policy](), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key in ("loss", "rewards/margins"):
        assert history(resumed, key) == history(whole, key)
    for name, parameter in trainable(whole.model).items():
        assert torch.equal(parameter, trainable(resumed.model)[name])


def test_a_mixed_policy_is_saved_without_its_reference(tmp_path: Path) -> None:
    model = mixed_policy()
    dpo_trainer(tmp_path, model).train()
    model.save_pretrained(tmp_path / "saved")
    loaded = MixedReftModel.from_pretrained(base_model(), tmp_path / "saved")
    assert list(loaded.peft_config) == ["default", "edit"]
    batch = {"input_ids": torch.tensor([sequences()[0][0]])}
    assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_second_trainer_starts_from_where_the_first_ended(tmp_path: Path, policy: str) -> None:
    model = POLICIES[policy]()
    dpo_trainer(tmp_path, model).train()
    model.delete_adapter("ref")  # PEFT refuses a second one
    again = dpo_trainer(tmp_path, model)
    again.train()
    assert abs(history(again, "rewards/margins")[0]) < 1e-6
