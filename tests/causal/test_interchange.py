"""Interchange and the other interventions, on any module and on transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from contract.tiny import base_model, token_ids
from peft_reft.causal import Column, Rotation, Site, add, collect, interchange, intervene, mean, noise, put, zero
from peft_reft.hub_format.errors import CausalModelError, ConfigError, LocationError, SiteError
from peft_reft.interventions import orthonormal_rows


def rows(rank: int, width: int, seed: int = 0) -> Tensor:
    return orthonormal_rows(torch.randn(rank, width, generator=torch.Generator().manual_seed(seed)))


class Conjunction(nn.Module):
    """P and Q, its two neurons turned by 20 degrees (arXiv 2303.02536, section 2)."""

    def __init__(self) -> None:
        super().__init__()
        turn = math.radians(20)
        self.turn = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        self.hidden = nn.Linear(2, 2, bias=False)
        self.hidden.weight = nn.Parameter(self.turn.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(inputs)
        return hidden.sum(-1) - 1.8


BITS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("variable", [0, 1])
def test_the_plain_interchange_fails_and_the_rotated_one_is_exact(variable: int) -> None:
    network = Conjunction()
    base, source = BITS.repeat_interleave(4, 0), BITS.repeat(4, 1)
    wanted = base.clone()
    wanted[:, variable] = source[:, variable]
    truth = wanted.all(1)
    plain = interchange(network, base, source, Site(module="hidden", units=[variable])) > 0
    turned = Site(module="hidden", space=Rotation(network.turn.T), units=[variable])
    assert not torch.equal(plain, truth)
    assert torch.equal(interchange(network, base, source, turned) > 0, truth)


def test_several_sources_go_into_disjoint_rows_of_one_rotation() -> None:
    network, space = Conjunction(), Rotation(Conjunction().turn.T)
    sites = {name: Site(module="hidden", space=space, units=[unit]) for unit, name in enumerate("PQ")}
    sources = {"P": BITS[2:3], "Q": BITS[1:2]}
    assert_close(interchange(network, BITS[:1], sources, sites), network(BITS[3:]))
    with pytest.raises(SiteError, match="claim the same coordinates"):
        interchange(network, BITS[:1], sources, {"P": sites["P"], "Q": Site(module="hidden")})
    with pytest.raises(CausalModelError, match="variables are: P, Q"):
        interchange(network, BITS[:1], {"R": BITS[:1]}, sites)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_source_that_is_the_base_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    model, ids = base_model(name, dtype=dtype), token_ids(3, 7)
    plain = model(input_ids=ids).logits
    for given in ({}, {"units": range(5)}, {"space": Rotation(rows(4, 32))}, {"mask": torch.rand(32)}):
        site = Site(layer=1, position=(2, -1), **given)
        found = interchange(model, {"input_ids": ids}, {"input_ids": ids.clone()}, site).logits
        assert torch.equal(found.view(torch.int16), plain.view(torch.int16))
        other = interchange(model, {"input_ids": ids}, {"input_ids": token_ids(3, 7, seed=5)}, site).logits
        assert not torch.equal(other, plain)


def test_positions_count_real_tokens_and_rows_may_say_their_own() -> None:
    model, ids = base_model("llama"), token_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    whole = collect(model, inputs, Site(layer=1))
    assert torch.equal(collect(model, inputs, Site(layer=1, position=0))[1, 0], whole[1, 2])
    assert torch.equal(collect(model, inputs, Site(layer=1, position="l1"))[:, 0], whole[:, 5])
    at = {**inputs, "at": torch.tensor([4, 1])}
    assert torch.equal(collect(model, at, Site(layer=1, position=Column("at")))[:, 0], whole[[0, 1], [4, 3]])
    with pytest.raises(LocationError, match="row 1 has no token 4"):
        collect(model, inputs, Site(layer=1, position=4))


def test_zero_put_add_mean_noise() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Identity())
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    plain, site = network(inputs), Site(module="0", units=[1, 3])
    chosen = plain[:, [1, 3]]
    for edit, wanted in (
        (zero(site), torch.zeros(5, 2)),
        (put(site, torch.ones(2)), torch.ones(5, 2)),
        (add(site, torch.tensor([1.0, 2.0])), chosen + torch.tensor([1.0, 2.0])),
        (mean(site, chosen), chosen.mean(0).expand(5, 2)),
    ):
        found = intervene(network, inputs, edit)
        assert_close(found[:, [1, 3]], wanted)
        assert torch.equal(found[:, [0, 2]], plain[:, [0, 2]])
    noisy = [intervene(network, inputs, noise(site, 1.0, seed=3)) for _ in range(2)]
    assert torch.equal(*noisy)
    assert not torch.equal(noisy[0], plain)
    assert torch.equal(network(inputs), plain)  # no hook is left


def test_refusals() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(SiteError, match="named by one of them"):
        Site()
    with pytest.raises(SiteError, match="has none"):
        collect(network, torch.ones(1, 3), Site(module="9"))
    with pytest.raises(SiteError, match="there is no unit 4"):
        intervene(network, torch.ones(1, 3), zero(Site(module="0", units=[4])))
    with pytest.raises(ConfigError, match="not orthonormal"):
        Rotation(torch.ones(2, 3))
