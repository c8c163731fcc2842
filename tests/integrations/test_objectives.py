"""RePS and SPLIT in a stock `DPOTrainer`, against their equations written out row by row without it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from peft_reft import scale_adapter
from peft_reft.hub_format.errors import ConfigError
from peft_reft.integrations import RepsObjective, SplitObjective, use_objective
from peft_reft.integrations.trl.objectives import reps_loss, split_loss
from peft_reft.integrations.trl.objectives.steering import draws_of_step, null_delta
from peft_reft.lookup import reft_layers

from .preferences import (
    OBJECTIVES,
    SPLIT,
    VECTOR,
    dpo_trainer,
    edit_policy,
    history,
    mixed_policy,
    sequences,
    vector_policy,
)
from .tiny_sft import base_model, first_batch, reft, trainer_for


def trainer_of(folder: Path, objective: Any, model: Any = None, **fields: Any) -> Any:
    trainer = dpo_trainer(folder, vector_policy() if model is None else model, **fields)
    use_objective(trainer, objective)
    return trainer


@contextmanager
def edited(model: nn.Module, length: int, factor: float, nulled: bool) -> Iterator[None]:
    """The vector by hand: one unpadded row, its tokens 0, n−2 and n−1 of n."""

    def hook(block: nn.Module, args: Any, out: Any) -> Any:
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        for token in {0, length - 2, length - 1}:
            h = hidden[0, token]
            reach = max(float(h @ VECTOR), 0.0) / float(VECTOR @ VECTOR)
            hidden[0, token] = h - reach * VECTOR if nulled else h + factor * VECTOR
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = model.model.layers[1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def by_hand(factor: float = 0.0, *, nulled: bool = False) -> list[tuple[float, int]]:
    """(log p(answer | prompt), tokens) of the four chosen answers, then of the four rejected ones."""
    model, found = base_model().eval(), []
    for ids, length in sequences():
        with torch.no_grad(), edited(model, length, factor, nulled):
            told = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append((sum(float(told[i - 1, ids[i]]) for i in range(length, len(ids))), len(ids) - length))
    return found


def split_by_hand(found: list[tuple[float, int]], *, swapped: bool = False) -> float:
    costs = []
    for pair in range(4):
        wanted, unwanted = (-found[row][0] / found[row][1] for row in (pair, pair + 4))
        if swapped:
            wanted, unwanted = unwanted, wanted
        costs.append(0.8 * wanted + 0.4 * unwanted + 3.0 * max(0.6 - (unwanted - wanted), 0.0))
    return sum(costs) / 4


def reps_by_hand(found: list[tuple[float, int]], *, swapped: bool = False) -> float:
    before, costs = by_hand(), []
    for pair in range(4):
        w, u = (pair + 4, pair) if swapped else (pair, pair + 4)
        beta = max(before[u][0] - before[w][0], 1.0)
        delta = beta / found[w][1] * found[w][0] - found[u][0] / found[u][1]
        costs.append(-math.log(1 / (1 + math.exp(-delta))))
    return sum(costs) / 4


def expected(name: str) -> float:
    return {
        "split": lambda: split_by_hand(by_hand(1.0)),
        "split both ways": lambda: (split_by_hand(by_hand(2.0)) + split_by_hand(by_hand(-2.0), swapped=True)) / 2,
        "reps negated": lambda: reps_by_hand(by_hand(2.0)) + reps_by_hand(by_hand(-2.0), swapped=True),
        "reps nulled": lambda: reps_by_hand(by_hand(2.0)) + reps_by_hand(by_hand(nulled=True), swapped=True),
    }[name]()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_first_step_has_the_loss_of_the_equations_and_training_lowers_it(tmp_path: Path, name: str) -> None:
    trainer = trainer_of(tmp_path, OBJECTIVES[name], max_steps=6)
    scale_adapter(trainer.model, "default", 1.0)
    trainer.train()
    losses = history(trainer, "loss")
    assert losses[0] == pytest.approx(expected(name), rel=1e-5, abs=1e-5)
    assert losses[-1] < losses[0]
    (layer,) = reft_layers(trainer.model)
    assert layer.scaling["default"] == 1.0
    assert not layer.unit(("default", 0))._forward_hooks


def test_losses_are_those_of_the_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, unwanted, *before = (-torch.rand(12, generator=generator) * 9 for _ in range(4))
    tokens = [torch.randint(1, 6, (12,), generator=generator) for _ in range(2)]
    told = reps_loss(
        wanted,
        unwanted,
        wanted_tokens=tokens[0],
        unwanted_tokens=tokens[1],
        wanted_before=before[0],
        unwanted_before=before[1],
    )
    parts = split_loss(-wanted, -unwanted, **SPLIT)
    scales = set()
    for row in range(12):
        w, u, v, t = (float(one[row]) for one in (wanted, unwanted, *before))
        scales.add(beta := max(t - v, 1.0))
        delta = beta * w / int(tokens[0][row]) - u / int(tokens[1][row])
        assert told[row].item() == pytest.approx(math.log(1 + math.exp(-delta)), rel=1e-5)
        assert parts[row].item() == pytest.approx(-0.8 * w - 0.4 * u + 3.0 * max(0.6 + u - w, 0), rel=1e-5)
    assert 1.0 in scales
    assert len(scales) > 1  # both sides of the maximum were met


def test_nulling_leaves_nothing_of_a_direction_and_no_other_direction_changes() -> None:
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    after = hidden + null_delta(hidden, VECTOR)
    assert_close(after @ VECTOR, (hidden @ VECTOR).clamp_max(0.0), rtol=1e-4, atol=1e-5)
    assert_close(torch.linalg.matrix_rank(torch.cat([after - hidden, VECTOR[None]])), torch.tensor(1))
    zero = torch.zeros(32, requires_grad=True)
    null_delta(hidden, zero).sum().backward()
    assert_close(zero.grad, torch.zeros(32))


@pytest.mark.parametrize("objective", [SplitObjective(**SPLIT), RepsObjective(factors=(0.5, 1.0, 2.0, 3.0))])
def test_accumulated_batches_give_what_one_large_batch_gives(tmp_path: Path, objective: Any) -> None:
    whole = trainer_of(tmp_path, objective)
    parts = trainer_of(tmp_path, objective, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for trainer in (whole, parts):
        trainer.train()
    assert_close(_vector(whole), _vector(parts), rtol=1e-4, atol=1e-6)
    assert_close(history(whole, "loss"), history(parts, "loss"), rtol=1e-4, atol=1e-5)
    assert not torch.equal(_vector(whole), VECTOR)


def _vector(trainer: Any) -> Tensor:
    (layer,) = reft_layers(trainer.model)
    return layer.unit(("default", 0)).shift.detach()


@pytest.mark.parametrize("component", ["block_output", "attention_output"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["reps negated", "reps nulled"])
def test_recomputed_blocks_edit_at_the_factor_of_their_forward(
    tmp_path: Path, name: str, reentrant: bool, component: str
) -> None:
    found = []
    for given in ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}):
        trainer = trainer_of(tmp_path, OBJECTIVES[name], vector_policy(component, [0, 1]), max_steps=2, **given)
        trainer.train()
        found.append([layer.unit(("default", 0)).shift.detach() for layer in reft_layers(trainer.model)])
        assert {layer.scaling["default"] for layer in reft_layers(trainer.model)} == {1.0}
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_draws_the_factors_of_an_unbroken_one(tmp_path: Path) -> None:
    objective = RepsObjective(factors=(0.5, 1.0, 2.0, 3.0))
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    unbroken = trainer_of(tmp_path, objective, **given)
    unbroken.train()
    resumed = trainer_of(tmp_path, objective, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close(_vector(resumed), _vector(unbroken))
    draws = [draws_of_step((0.5, 1.0, 2.0, 3.0), 0, step)() for step in range(20)]
    assert set(draws) == {0.5, 1.0, 2.0, 3.0}


def test_evaluation_and_the_precomputed_reference_stay_what_they_are(tmp_path: Path) -> None:
    """A new adapter: the reference is the base, computed beforehand or in the step."""
    told = []
    for given in ({}, {"precompute_ref_log_probs": True}):
        trainer = dpo_trainer(tmp_path, base_model(), given={"peft_config": reft()}, **given)
        plain = trainer.evaluate()["eval_loss"]
        use_objective(trainer, RepsObjective(factors=(1.5,)))
        assert trainer.evaluate()["eval_loss"] == plain
        told.append(trainer.compute_loss(trainer.model.train(), first_batch(trainer)))
    assert_close(told[0], told[1], rtol=1e-5, atol=1e-6)
    assert abs(told[0].item() - plain) > 1e-3


def test_factors_and_hooks_come_back_when_a_step_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, OBJECTIVES["reps nulled"])
    scale_adapter(trainer.model, "default", 0.25)
    block = trainer.model.get_submodule("base_model.model.model.layers.2")
    calls: list[int] = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # without the edit, steered, nulled
            raise RuntimeError("broken")
        return forward(*args, **kwargs)

    forward = block.forward
    monkeypatch.setattr(block, "forward", fails)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.compute_loss(trainer.model.train(), first_batch(trainer))
    (layer,) = reft_layers(trainer.model)
    assert len(calls) == 3
    assert layer.scaling["default"] == 0.25
    assert not layer.unit(("default", 0))._forward_hooks


@pytest.mark.parametrize(
    ("build", "fields", "said"),
    [
        (SplitObjective, {"gap_weight": -1}, "gap_weight=-1"),
        (SplitObjective, {"gap": math.nan}, "gap=nan"),
        (SplitObjective, {"factors": ()}, r"factors=\(\)"),
        (SplitObjective, {"opposite": True}, "without factors"),
        (SplitObjective, {"opposite": "no", "factors": (1.0,)}, "opposite='no'"),
        (SplitObjective, {"gap": 10**400}, "gap=1000"),
        (SplitObjective, {"positive_weight": 0, "negative_weight": 0, "gap_weight": 0}, "all 0"),
        (RepsObjective, {"factors": (10**400,)}, r"factors=\(1000"),
        (RepsObjective, {"factors": (0.0,)}, "above 0"),
        (RepsObjective, {"factors": 2.0}, "factors=2.0"),
        (RepsObjective, {"factors": (1.0,), "suppression": "zero"}, "'negated', 'nulled'"),
    ],
)
def test_values_that_mean_nothing_are_refused(build: Any, fields: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(**fields)


def test_losses_of_other_shapes_are_refused_instead_of_spread_over_all_pairs() -> None:
    row, column = torch.ones(3), torch.ones(3, 1)
    tokens = {"wanted_tokens": row, "unwanted_tokens": row}
    with pytest.raises(ConfigError, match=r"unwanted_before has shape \[3, 1\], wanted \[3\]"):
        reps_loss(row, row, **tokens, wanted_before=row, unwanted_before=column)
    with pytest.raises(ConfigError, match=r"unwanted is 2\.0"):
        reps_loss(row, 2.0, **tokens, wanted_before=row, unwanted_before=row)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"negative has shape \[3, 1\]"):
        split_loss(row, column, **SPLIT)
    with pytest.raises(ConfigError, match="gap=nan"):
        split_loss(row, row, **{**SPLIT, "gap": math.nan})


def test_a_factor_is_not_drawn_for_an_adapter_that_no_longer_trains(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RepsObjective(factors=(1.0,)), max_steps=1)
    trainer.model.add_adapter("later", reft(intervention="bias", positions="l1"))
    trainer.model.set_adapter("later")
    with pytest.raises(ConfigError, match="the active adapters are 'later'"):
        trainer.train()


def test_trainers_and_settings_that_an_objective_does_not_fit_are_refused(tmp_path: Path) -> None:
    steering = RepsObjective(factors=(1.0,))
    with pytest.raises(ConfigError, match="the trainer is a SFTTrainer"):
        use_objective(trainer_for(tmp_path), steering)
    with pytest.raises(ConfigError, match="one of RepsObjective, SplitObjective"):
        use_objective(dpo_trainer(tmp_path, edit_policy()), "reps")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="already"):
        use_objective(trainer_of(tmp_path, steering), steering)
    compiled = dpo_trainer(tmp_path, vector_policy())
    compiled.args.torch_compile = True
    with pytest.raises(ConfigError, match="torch_compile"):
        use_objective(compiled, steering)
    with pytest.raises(ConfigError, match="LoReft"):
        trainer_of(tmp_path, RepsObjective(factors=(1.0,), suppression="nulled"), edit_policy())
    with pytest.raises(ConfigError, match="'default', 'edit'"):
        trainer_of(tmp_path, steering, mixed_policy())
    with pytest.raises(ConfigError, match=r"lm_head.* beside the edits"):
        trainer_of(tmp_path, steering, edit_policy(modules_to_save=["lm_head"]))
    for setting in ({"loss_type": "hinge"}, {"ld_alpha": 0.5}, {"label_smoothing": 0.1}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            trainer_of(tmp_path, steering, **setting)


def test_without_factors_a_lora_beside_the_edit_trains_too(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SplitObjective(), mixed_policy(), gradient_checkpointing=True)
    trainer.train()
    losses = history(trainer, "loss")
    assert losses[-1] < losses[0]
