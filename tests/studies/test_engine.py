"""A run from its settings: what is learnt, measured, kept and switched, on a tiny base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from benchmarks.forgetting import run as forgetting_run
from benchmarks.forgetting.adapters import Sequence
from benchmarks.forgetting.plan import REGIMES, REMEDIES, Arm, arms_of, orders, plan
from benchmarks.forgetting.scores import scores
from benchmarks.quality import run as quality_run
from benchmarks.quality.plan import Grid, figures_plan
from benchmarks.quality.search import search_plan
from benchmarks.skills.skill import Example
from benchmarks.study.base import Base
from benchmarks.study.learn import learn
from benchmarks.study.measure import answers, divergence, text_loss
from benchmarks.study.methods import METHODS, attach, trained
from benchmarks.study.rows import Row, batch_of, drawn, encode
from peft_reft import Intervention
from studies.tiny import tiny_base

BASE = tiny_base()
GRID = Grid("wide", "tiny", ["loreft r4", "lora r1 qv"], ["date", "camel"], ["date"], [0, 1], 3, 4, (16, 6, 6))
USABLE = [name for name in METHODS if name != "road"]
"""RoAd needs a base of other widths."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (quality_run, forgetting_run):
        monkeypatch.setattr(module, "load_base", lambda name: BASE)
    for cached in (quality_run.rows_of, quality_run.base_answers, quality_run.base_text_loss, quality_run._plain):
        cached.cache_clear()


def rows(count: int = 6) -> list[Row]:
    return encode(BASE, [Example(f"Date: {n} March 1990", f"1990-03-0{n}") for n in range(1, count + 1)])


def test_labels_stand_on_the_answer_and_its_end_alone() -> None:
    made = rows(2)
    batch = batch_of([made[0], Row((5, 6), (7,))], pad=0)
    width = len(made[0])
    assert batch["labels"][0].tolist() == [-100] * len(made[0].prompt) + list(made[0].answer)
    assert batch["labels"][1].tolist() == [-100, -100, 7] + [-100] * (width - 3)
    assert batch["attention_mask"].sum(-1).tolist() == [width, 3]
    assert BASE.tokenizer.decode(made[0].answer) == "1990-03-01<|end|>"


def test_batches_go_through_all_rows_before_any_again_and_replay_takes_its_share() -> None:
    made = rows()
    taken = [row for batch in drawn(made, 2, 6, seed=0) for row in batch]
    assert sorted(taken[:6], key=made.index) == made
    assert sorted(taken[6:], key=made.index) == made
    assert list(drawn(made, 2, 3, seed=0)) == list(drawn(made, 2, 3, seed=0)) != list(drawn(made, 2, 3, seed=1))
    old = [Row((9,), (9,))]
    mixed = [row for batch in drawn(made, 4, 500, seed=0, replay=old, share=0.05) for row in batch]
    assert 0.03 < mixed.count(old[0]) / len(mixed) < 0.07
    plain = [row for batch in drawn(made, 4, 500, seed=0) for row in batch]
    assert all(one == other or one == old[0] for one, other in zip(mixed, plain, strict=True))


@torch.no_grad()
def test_an_answer_is_right_exactly_where_greedy_generation_gives_it() -> None:
    model = BASE.make(torch.float32)
    made = [Row(row.prompt, row.answer) for row in rows(4)]
    for number in (1, 3):  # two that the model gives
        prompt = torch.tensor([made[number].prompt])
        said = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)[0, prompt.shape[1] :]
        made[number] = Row(made[number].prompt, tuple(said.tolist()))
    found = answers(model, made, 0, logs=True)
    assert found.right.tolist() == [False, True, False, True]
    loss = [-model(torch.tensor([r.prompt + r.answer])).logits[0, len(r.prompt) - 1 : -1].log_softmax(-1)
            .gather(1, torch.tensor(r.answer)[:, None]) for r in made]  # fmt: skip
    assert found.loss == pytest.approx(torch.cat(loss).mean().item(), abs=1e-1)  # bf16 inside
    assert found.logs is not None
    assert found.logs.shape[0] == sum(len(row.answer) for row in made)


def test_divergence_is_the_formula_and_zero_for_the_same() -> None:
    one, other = (torch.randn(3, 5, generator=torch.Generator().manual_seed(n)).log_softmax(-1) for n in range(2))
    expected = sum(
        float(p) * (float(p.log()) - float(q.log()))
        for p, q in zip(one.exp().flatten(), other.exp().flatten(), strict=True)
    )
    assert divergence(one, other) == pytest.approx(expected / 3, rel=1e-4)
    assert divergence(one, one) == 0


@pytest.mark.parametrize("name", USABLE)
def test_every_method_learns_and_leaves_the_base_where_it_was_but_for_full(name: str) -> None:
    model = attach(name, BASE.make, seed=0)
    parameters = trained(model)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    batches = [rows(4)] * 12
    before = answers(model, rows(4), 0).loss
    learn(model, batches, parameters, rate=METHODS[name].rates[2], steps=12, pad=0, factors=METHODS[name].factors)
    assert answers(model, rows(4), 0).loss < before
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert (name == "full") == (not frozen)


def test_a_tensor_learns_at_its_own_rate() -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    model = attach("prosv p4+s2", BASE.make, seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    learn(model, [rows(4)], trained(model), rate=1e-3, steps=1, pad=0, factors={"factor": 250.0})
    for name, parameter in model.named_parameters():
        if name in before:
            moved = float((parameter.detach() - before[name]).abs().max())
            assert moved == pytest.approx(0.25 if "factor" in name else 1e-3, rel=1e-2)


def test_what_a_kind_adds_to_the_loss_closes_its_gates() -> None:
    def opened(penalty: float) -> float:
        model = attach("heads with gates", BASE.make, seed=0)
        units = [module for module in model.modules() if isinstance(module, Intervention)]
        for unit in units:
            unit.penalty_weight = penalty
        learn(model, [rows(4)] * 5, trained(model), rate=0.1, steps=5, pad=0)
        return float(sum(unit.scale_gate.detach().mean() for unit in units))

    assert opened(100.0) < -0.5 < opened(0.0)


@pytest.mark.parametrize("name", ["lora r1 + adapter r4 apart", "lora r1 + adapter r4"])
def test_what_a_lora_writes_is_not_read_by_the_edit_beside_it_where_the_name_says_so(name: str) -> None:
    """Rows of W_d against the columns that the block's LoRA writes."""
    model = attach(name, BASE.make, seed=0)
    learn(model, [rows(4)] * 3, trained(model), rate=1e-2, steps=3, pad=0)
    answers(model, rows(1), 0)
    held = {key.replace(".default", "").replace(".edit", ""): p for key, p in model.named_parameters()}
    down = next(p for key, p in held.items() if "layers.0" in key and key.endswith(".down"))
    written = [p[:, 0] for key, p in held.items() if "layers.0" in key and "lora_B" in key]
    overlap = max(float((down @ column).norm() / down.norm() / column.norm()) for column in written)
    assert (overlap < 1e-5) == name.endswith("apart")
    assert len(written) == 2


def test_the_start_and_the_order_follow_the_seed() -> None:
    settings = figures_plan(GRID, {"loreft r4": 6e-3})[0]
    one, again = (quality_run.run(settings) for _ in range(2))
    other = quality_run.run({**settings, "seed": 7})
    assert one["loss"] == again["loss"] != other["loss"]
    assert one["kl"] > 0
    assert one["parameters"] == 2 * (2 * 4 * 32 + 4)


def test_a_search_looks_at_validation_data_and_figures_at_held_out_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(model: Any, made: list[Row], pad: int, **more: Any) -> Any:
        asked.append(len(made))
        return answers(model, made, pad, **more)

    monkeypatch.setattr(quality_run, "answers", noted)
    sized = Grid(**{**vars(GRID), "sizes": (16, 5, 7)})
    quality_run.run(search_plan(sized, [])[0])
    assert asked == [5]
    quality_run.run(figures_plan(sized, {"loreft r4": 6e-3})[0])
    assert set(asked[1:]) == {7}


def test_plans_come_in_blocks_of_all_arms_and_orders_differ() -> None:
    assert [one["method"] for one in figures_plan(GRID, {"loreft r4": 1.0, "lora r1 qv": 1.0})[:2]] == GRID.methods
    found = orders(["a", "b", "c", "d"], 5)
    assert found[:2] == [("a", "b", "c", "d"), ("d", "c", "b", "a")]
    assert len(set(found)) == 5
    with pytest.raises(ValueError, match="2 skills have 2"):
        orders(["a", "b"], 3)
    arms = arms_of(list(METHODS), regimes=REGIMES, remedies=REMEDIES)
    assert Arm("full", "stacked") not in arms
    assert Arm("loreft r4", "stacked", "orthogonal") in arms
    assert Arm("direft r4", "stacked", "orthogonal") not in arms
    assert Arm("lora r1 qv", "switched", "replay") not in arms
    made = plan(GRID, arms[:2], {arms[0].method: 1.0}, 2)
    assert len(made) == 2 * 2 * sum(arm.method == arms[0].method for arm in arms[:2])


def sequence(arm: Arm, **more: Any) -> dict[str, Any]:
    return forgetting_run.run({**plan(GRID, [arm], {arm.method: 6e-3}, 1)[0], **more})


@pytest.mark.parametrize(
    "arm",
    arms_of(["loreft r4", "lora r1 qv", "lora r1 + loreft r4", "full"], regimes=REGIMES, remedies=REMEDIES),
    ids=str,
)
def test_every_arm_runs_and_says_the_same_again(arm: Arm) -> None:
    told = sequence(arm)
    assert told["kl"] == sequence(arm)["kl"]
    assert [len(row) for row in told["accuracy"]] == [2, 2]
    assert len(told["parameters"]) == 2
    assert len(told["text loss rise"]) == 1


def test_arms_differ_from_the_second_skill_on_and_not_before() -> None:
    arms = {str(arm): sequence(arm, steps=6) for arm in arms_of(["loreft r4"], regimes=REGIMES, remedies=REMEDIES)}
    assert len({told["kl"][0] for told in arms.values()}) == 1
    assert len({told["kl"][1] for name, told in arms.items() if "replay" not in name}) == len(arms) - 1


def test_switched_skills_are_not_forgotten_at_all() -> None:
    told = sequence(Arm("loreft r4", "switched"), steps=6)
    assert told["loss"][1][0] == told["loss"][0][0]


def test_new_adapters_learn_alone_and_the_orthogonal_ones_keep_out() -> None:
    model = attach("loreft r4", BASE.make, seed=0)
    adapters = Sequence(model, METHODS["loreft r4"], "stacked", orthogonal=True)
    adapters.begin(0, 0)
    parameters = adapters.begin(1, 1)
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"skill1"}
    assert sum(p.numel() for p in parameters) == 2 * (2 * 4 * 32 + 4)
    unit = model.get_base_model().model.layers[0].reft.unit(("skill1", 0))
    assert unit.taken.shape == (4, 32)


def test_the_kept_model_is_the_one_before_and_the_present_one_comes_back() -> None:
    model = attach("loreft r4", BASE.make, seed=0)
    parameters = trained(model)
    batch = batch_of(rows(2), 0)
    kept = forgetting_run._kept(parameters)
    first = kept(model, batch)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    now = model(**batch).logits
    assert torch.equal(kept(model, batch), first)
    assert torch.equal(model(**batch).logits, now)
    assert not torch.equal(now, first)
    mask = batch["attention_mask"].bool()
    p, q = first[mask].float().softmax(-1), now[mask].float().softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean() * forgetting_run.ANCHOR
    assert_close(forgetting_run._anchor(now, first, batch["attention_mask"]), expected, rtol=1e-3, atol=1e-4)


def test_another_base_than_the_plan_says_is_refused() -> None:
    settings = {**figures_plan(GRID, {"loreft r4": 6e-3})[0], "identity": "other"}
    with pytest.raises(ValueError, match="other"):
        quality_run.run(settings)


def test_text_is_a_prompt_of_half_its_length_and_a_completion() -> None:
    model, text = BASE.make(torch.float32), BASE.text
    with torch.no_grad():
        logs = model(text).logits[:, 11:-1].log_softmax(-1)
    expected = -logs.gather(-1, text[:, 12:, None]).mean().item()
    assert text_loss(model, text) == pytest.approx(expected, abs=5e-2)  # bf16 inside
    assert isinstance(BASE, Base)


@pytest.mark.parametrize("name", ["loreft r4", "lora r1 qv"])
def test_a_router_and_a_sum_are_asked_what_the_adapters_of_one_skill_each_make_of_it(name: str) -> None:
    told = sequence(Arm(name, "switched"), steps=6)
    assert 0 <= told["routed"]["router"] <= 1
    assert told["routed"]["prefills"] == 1
    assert len(told["routed"]["accuracy"]) == len(told["routed"]["loss"]) == 2
    if told["routed"]["router"] == 1:  # then it asks as a router that never errs does
        assert told["routed"]["loss"] == pytest.approx(told["loss"][-1], rel=1e-3)
    assert ("merged" in told) == (name == "loreft r4")
    if name == "loreft r4":
        assert len(told["merged"]["weights"]) == len(told["merged"]["accuracy"]) == 2
    found = scores([{"settings": plan(GRID, [Arm(name, "switched")], {name: 6e-3}, 1)[0], "result": told}])
    assert {arm.regime for arm in found} == {"switched", "routed"} | ({"merged"} if name == "loreft r4" else set())
    for blocks in found.values():
        assert next(iter(blocks.values())).learnt == next(iter(found[Arm(name, "switched")].values())).learnt
