"""Kinds that are drawn at random in training: what they draw, from where, and how they start and end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import reft_model, token_ids
from peft_reft.hub_format.errors import ConfigError, SiteError
from peft_reft.interventions import intervention_class
from peft_reft.interventions.heads import opening, probability_open

from .kinds import KINDS, Kind

DRAWN = [kind for kind in KINDS if kind.samples]
drawn = pytest.mark.parametrize("kind", DRAWN, ids=str)


def kind(name: str) -> Kind:
    return next(one for one in DRAWN if one.name == name)


def hidden(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_a_distribution_adds_its_own_deviation_times_noise() -> None:
    unit, h = kind("distribution").make().double().train(), hidden(4, 8)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    delta = unit(h, generator=torch.Generator().manual_seed(1))
    rotation, _ = torch.linalg.qr(unit.rotation.detach().T)
    signs = torch.sign((unit.rotation @ rotation).diagonal())
    mean = unit.eval()(h)
    for row in range(4):
        log_variance = [float(unit.spread_weight[n] @ h[row] + unit.spread_bias[n]) for n in range(3)]
        deviation = torch.tensor([math.exp(0.5 * min(max(value, -20.0), 0.0)) for value in log_variance])
        expected = rotation @ (signs * deviation.double() * noise[row])
        assert_close(delta[row] - mean[row], expected, rtol=1e-6, atol=1e-7)


def test_the_divergence_is_that_of_torchs_distributions() -> None:
    unit, h = kind("distribution").make(options={"penalty": 0.25}).double(), hidden(5, 8)
    mean = h @ unit.weight.T + unit.bias
    deviation = (0.5 * (h @ unit.spread_weight.T + unit.spread_bias).clamp(-20, 0)).exp()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum(-1)
    assert_close(unit.row_penalty(h), 0.25 * expected)


def test_a_gate_is_closed_as_often_as_its_probability_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for log_alpha in (-2.0, 0.0, 1.5):
        values = torch.full((200_000,), log_alpha, dtype=torch.float64)
        noise = torch.rand(len(values), generator=generator, dtype=torch.float64)
        seen = (opening(values, noise) > 0).double().mean()
        assert_close(seen, probability_open(values)[0], rtol=0, atol=4e-3)
        assert 0 <= float(opening(values).min()) <= float(opening(values).max()) <= 1


def test_gates_are_drawn_once_for_all_tokens_and_each_by_its_own_noise() -> None:
    unit, h = kind("heads").make().double().train(), hidden(6, 8)
    delta = unit(h, generator=torch.Generator().manual_seed(2))
    source = torch.Generator().manual_seed(2)
    edited = []
    for name in ("scale_gate", "shift_gate"):
        u = 1e-6 + (1 - 2e-6) * torch.rand(2, generator=source, dtype=torch.float64)
        s = 1 / (1 + torch.exp(-(torch.log(u) - torch.log(1 - u) + getattr(unit, name).detach()) / 0.33))
        edited.append((1.2 * s - 0.1).clip(0, 1).repeat_interleave(4))
    assert_close(delta, h * edited[0] * unit.scale + edited[1] * unit.shift)


def test_the_penalty_of_gates_and_scales() -> None:
    unit = kind("heads").make(options={"heads": 2, "gates": True, "penalty": 0.5, "sparsity": 0.1}).double()
    odds = [1 / (1 + math.exp(-(float(v) - 0.33 * math.log(0.1 / 1.1)))) for v in (*unit.scale_gate, *unit.shift_gate)]
    expected = 0.5 * sum(odds) / 2 + 0.1 * sum(abs(float(value)) for value in unit.scale)
    assert_close(float(unit.penalty()), expected)


def losses(positions: str = "f2+l2", *, seed: int, count: int = 2, name: str = "distribution") -> list[float]:
    model = reft_model("llama", intervention=name, positions=positions, options=kind(name).options or None).train()
    ids = token_ids(2, 8)
    labels = torch.where(torch.arange(8) < 5, -100, ids)
    torch.manual_seed(seed)
    with torch.no_grad():
        return [float(model(input_ids=ids, labels=labels).loss) for _ in range(count)]


@pytest.mark.parametrize("name", ["distribution", "heads"])
def test_a_seed_repeats_a_run_and_forwards_differ(name: str) -> None:
    first = losses(seed=1, name=name)
    assert first == losses(seed=1, name=name)
    assert first[0] != first[1]
    assert first != losses(seed=2, name=name)


@drawn
def test_evaluation_draws_nothing(kind: Kind) -> None:
    options = kind.options or None
    model = reft_model("llama", intervention=kind.name, positions="f2", options=options)
    before = torch.get_rng_state()
    first, second = (model(token_ids(2, 6)).logits for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_sites_draw_different_numbers() -> None:
    model = reft_model("llama", intervention="heads", component="heads", options={"heads": 4, "gates": True})
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, intervention_class("heads")):
            module.scale_gate.data.zero_()
            gate = module.gate
            module.gate = lambda *given, of=gate: seen.append(of(*given)) or seen[-1]
    ids = token_ids(1, 6)
    model.train()(input_ids=ids, labels=torch.where(torch.arange(6) < 4, -100, ids))
    assert len({tuple(values.tolist()) for values in seen}) == len(seen) == 6


def test_the_number_of_heads_is_that_of_the_base() -> None:
    with pytest.raises(SiteError, match="takes 4 heads"):
        reft_model("llama", intervention="heads", component="heads")
    with pytest.raises(ConfigError, match="equal slices"):
        reft_model("llama", intervention="heads", options={"heads": 5})


def test_a_direction_that_is_brought_is_bounded() -> None:
    unit, h = intervention_class("clamp")(8, 1).double(), hidden(6, 8)
    direction = hidden(8)
    unit.bring(direction)
    ablated = h + unit(h)
    assert_close(ablated @ direction, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-6)
    unit.bring(direction, low=-0.5, high=0.5)
    along = h @ direction / direction.norm()
    assert_close((h + unit(h)) @ direction / direction.norm(), along.clip(-0.5, 0.5), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="lower bound"):
        unit.bring(direction, low=1.0)
    with pytest.raises(ConfigError, match="not 0"):
        unit.bring(torch.zeros(8))


def test_the_published_start_of_a_steering_vector() -> None:
    unit = intervention_class("prosv")(64, 1, options={"factor_start": 4.0, "direction_start": 8.0})
    assert_close(unit.factor.item(), 4 * 8.0)
    assert 0.5 < float(unit.direction.abs().max()) <= 1.0
