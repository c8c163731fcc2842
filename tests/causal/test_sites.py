"""Sites, interchange and edits on modules and on transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from peft_reft.causal import (
    Column,
    Edit,
    Pca,
    Rotation,
    Site,
    add,
    collect,
    interchange,
    intervene,
    mean,
    noise,
    put,
    subtract,
    zero,
)
from peft_reft.hub_format.errors import CausalModelError, ConfigError, LocationError, PositionError, SiteError

from .networks import ids, llama, mlp, numbers, rotation

BASE, SOURCE, OTHER = numbers(5, 4, seed=1), numbers(5, 4, seed=2), numbers(5, 4, seed=3)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


def after(hidden: Tensor) -> Tensor:
    """What the small network makes of the output of its first layer."""
    out: Tensor = mlp().last(torch.tanh(hidden))
    return out


def test_a_whole_site_takes_the_source() -> None:
    network = mlp()
    assert_close(interchange(network, BASE, SOURCE, Site(module="first")), network(SOURCE))


def test_units_take_the_source_and_the_others_stay() -> None:
    network = mlp()
    hidden = network.first(BASE).clone()
    hidden[:, [1, 6]] = network.first(SOURCE)[:, [1, 6]]
    found = interchange(network, BASE, SOURCE, Site(module="first", units=(1, 6)))
    assert torch.equal(bits(found), bits(after(hidden)))


def test_the_input_of_a_module() -> None:
    network = mlp()
    values = BASE.clone()
    values[:, 2] = SOURCE[:, 2]
    assert_close(interchange(network, BASE, SOURCE, Site(module="first", on_input=True, units=[2])), network(values))


def test_a_rotated_space_takes_the_source_and_its_complement_stays() -> None:
    """Definition 3 of 2303.02536, written with projections."""
    network, rows = mlp(), rotation(3, 8)
    inside = rows.mT @ rows
    hidden = network.first(BASE) @ (torch.eye(8) - inside) + network.first(SOURCE) @ inside
    found = interchange(network, BASE, SOURCE, Site(module="first", space=Rotation(rows)))
    assert_close(found, after(hidden))


def test_several_subspaces_from_several_sources() -> None:
    network, rows = mlp(), rotation(8, 8)
    coordinates = network.first(BASE) @ rows.mT
    coordinates[:, :2] = (network.first(SOURCE) @ rows.mT)[:, :2]
    coordinates[:, 2:5] = (network.first(OTHER) @ rows.mT)[:, 2:5]
    sites = {
        "X": Site(module="first", space=Rotation(rows), units=(0, 1)),
        "Y": Site(module="first", space=Rotation(rows[2:5])),
    }
    assert_close(interchange(network, BASE, {"X": SOURCE, "Y": OTHER}, sites), after(coordinates @ rows))


def test_a_variable_without_a_source_keeps_the_base() -> None:
    sites = {"X": Site(module="first", units=(0, 1)), "Y": Site(module="first", units=(2,))}
    alone = interchange(mlp(), BASE, SOURCE, sites["Y"])
    assert_close(interchange(mlp(), BASE, {"Y": SOURCE}, sites), alone)
    assert_close(interchange(mlp(), BASE, {"Y": SOURCE, "X": None}, sites), alone)


def test_one_source_for_several_variables_runs_once() -> None:
    network = mlp()
    calls: list[int] = []
    network.first.register_forward_hook(lambda *_: calls.append(1))
    sites = {name: Site(module="first", units=(place,)) for place, name in enumerate("XYZ")}
    interchange(network, BASE, dict.fromkeys("XYZ", SOURCE), sites)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"units": (1, 3)},
        {"space": Rotation(rotation(3, 16))},
        {"space": Rotation(rotation(16, 16))},
        {"space": Rotation(rotation(6, 16)), "units": (0, 4)},
        {"space": Rotation(rotation(6, 16)), "mask": torch.linspace(0, 1, 6)},
        {"mask": torch.linspace(0, 1, 16)},
        {"space": Pca.fit(numbers(30, 16, seed=4), 5)},
        {"space": Rotation(rotation(4, 48)), "joint": True},
    ],
    ids=lambda settings: "-".join(settings) or "whole",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_source_that_is_the_base_changes_no_bit(what: dict[str, Any], dtype: torch.dtype) -> None:
    model = llama().to(dtype)
    base = {"input_ids": ids(2, 6, seed=1)}
    site = Site(layer=1, position=(0, 2, -1), **what)
    with torch.no_grad():
        plain = model(**base).logits
        found = interchange(model, base, {**base}, site).logits
        other = interchange(model, base, {"input_ids": ids(2, 6, seed=2)}, site).logits
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(found.view(kind), plain.view(kind))
    assert not torch.equal(other, plain)


def test_no_bit_changes_where_the_hidden_state_holds_minus_zero() -> None:
    values = torch.tensor([[0.0, -0.0, 1.5, -2.0]])
    negative = Rotation(torch.tensor([[-0.5, -0.5, -0.5, -0.5]]))
    for what in ({"space": Rotation(rotation(2, 4))}, {"space": negative}, {"mask": torch.full((4,), 0.3)}):
        found = interchange(nn.Identity(), values, values.clone(), Site(module="", **what))  # type: ignore[arg-type]
        assert torch.equal(bits(found), bits(values))


@pytest.mark.parametrize("component", ["block_output", "block_input", "attention_output", "mlp_output"])
def test_layers_and_components_are_modules_of_a_transformer(component: str) -> None:
    model = llama()
    paths = {
        "block_output": ("model.layers.1", False),
        "block_input": ("model.layers.1", True),
        "attention_output": ("model.layers.1.self_attn", False),
        "mlp_output": ("model.layers.1.mlp", False),
    }
    module, on_input = paths[component]
    base, source = ids(2, 5, seed=1), ids(2, 5, seed=2)
    with torch.no_grad():
        by_layer = interchange(model, base, source, Site(layer=1, component=component, position=2)).logits
        by_path = interchange(model, base, source, Site(module=module, on_input=on_input, position=2)).logits
        assert torch.equal(by_layer, by_path)
        assert not torch.equal(by_layer, model(base).logits)


def test_one_head_is_its_columns_before_the_output_projection() -> None:
    model = llama()
    base, source = ids(2, 5, seed=1), ids(2, 5, seed=2)
    head = Site(layer=1, component="head_output[2]", position=-1)
    columns = Site(module="model.layers.1.self_attn.o_proj", on_input=True, position=-1, units=range(8, 12))
    with torch.no_grad():
        found = interchange(model, base, source, head).logits
        assert_close(found, interchange(model, base, source, columns).logits)
        assert not torch.equal(found, model(base).logits)


def test_positions_count_real_tokens() -> None:
    model, row = llama(), ids(1, 4, seed=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), row], 1)
    mask = (torch.arange(7) >= 3).long()[None]
    for position in (1, -1, (0, 2), "p[1:3]", "l2"):
        site = Site(layer=1, position=position)
        with torch.no_grad():
            plain = collect(model, {"input_ids": row}, site)
            found = collect(model, {"input_ids": padded, "attention_mask": mask}, site)
        assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_each_row_says_its_own_position() -> None:
    model = llama()
    base = {"input_ids": ids(2, 6, seed=1), "at": torch.tensor([1, -1])}
    source = {"input_ids": ids(2, 6, seed=2), "at": torch.tensor([4, 0])}
    with torch.no_grad():
        found = interchange(model, base, source, Site(layer=0, position=Column("at"))).logits
        given = model.model(source["input_ids"], output_hidden_states=True).hidden_states[1]

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, 1], output[1, 5] = given[0, 4], given[1, 0]
            return output

        handle = model.model.layers[0].register_forward_hook(hook)
        expected = model(base["input_ids"]).logits
        handle.remove()
    assert torch.equal(found, expected)


def test_edits() -> None:
    network = mlp()
    site, value = Site(module="first", units=(0, 5)), torch.tensor([2.0, -1.0])
    with torch.no_grad():
        hidden = network.first(BASE)
        held = collect(network, BASE, site)
        assert torch.equal(held, hidden[:, [0, 5]])

        def expect(edit: Edit, change: Tensor) -> None:
            edited = hidden.clone()
            edited[:, [0, 5]] = change
            assert_close(intervene(network, BASE, edit), after(edited))

        expect(zero(site), torch.zeros(5, 2))
        expect(put(site, value), value.expand(5, 2))
        expect(add(site, value), held + value)
        expect(subtract(site, value), held - value)
        expect(mean(site, collect(network, SOURCE, site)), network.first(SOURCE)[:, [0, 5]].mean(0).expand(5, 2))
        expect(Edit(site, torch.square), held.square())


def test_noise_is_the_same_for_a_seed_and_has_the_asked_size() -> None:
    values = torch.zeros(400, 50)
    drawn = [intervene(nn.Identity(), values, noise(Site(module=""), 0.5, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert abs(float(drawn[0].std()) - 0.5) < 0.01


def test_an_edit_in_a_rotated_space_leaves_the_rest() -> None:
    rows = rotation(2, 4)
    site = Site(module="", space=Rotation(rows))
    found = intervene(nn.Identity(), BASE, put(site, torch.tensor([3.0, 4.0])))
    assert_close(found @ rows.mT, torch.tensor([3.0, 4.0]).expand(5, 2))
    complement = torch.eye(4) - rows.mT @ rows
    assert_close(found @ complement, BASE @ complement)


def test_edits_at_one_place_follow_one_another() -> None:
    site = Site(module="")
    found = intervene(nn.Identity(), BASE, [put(site, torch.ones(4)), add(site, torch.full((4,), 2.0))])
    assert_close(found, torch.full_like(BASE, 3.0))
    assert_close(collect(nn.Identity(), BASE, site, [zero(site)]), torch.zeros_like(BASE))


@pytest.mark.parametrize(("combine", "sign"), [("add", 1.0), ("subtract", -1.0), (lambda h, s: h + 2 * s, 2.0)])
def test_a_source_can_be_combined_with_the_base(combine: Any, sign: float) -> None:
    network = mlp()
    expected = after(network.first(BASE) + sign * network.first(SOURCE))
    assert_close(interchange(network, BASE, SOURCE, Site(module="first"), combine=combine), expected)


def test_gradients_flow_into_the_base_the_source_and_the_rotation() -> None:
    rows = rotation(2, 8).requires_grad_()
    base, source = BASE.clone().requires_grad_(), SOURCE.clone().requires_grad_()
    interchange(mlp(), base, source, Site(module="first", space=Rotation(rows, check=False))).sum().backward()
    for tensor in (rows, base, source):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0


def test_hooks_are_off_after_an_error() -> None:
    network = mlp()
    with pytest.raises(SiteError):
        intervene(network, BASE, put(Site(module="first"), torch.ones(3)))
    assert not network.first._forward_hooks


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.step(self.step(values))
        return out


def test_a_call_of_a_module_that_is_called_twice() -> None:
    network = Repeats()
    found = interchange(network, BASE, SOURCE, Site(module="step", call=0))
    assert_close(found, network(SOURCE))
    with pytest.raises(SiteError, match="several times"):
        interchange(network, BASE, SOURCE, Site(module="step"))
    with pytest.raises(SiteError, match="called the module 2 times"):
        interchange(network, BASE, SOURCE, Site(module="step", call=2))


@pytest.mark.parametrize(
    "second",
    [
        {"units": (1, 2)},
        {"space": Rotation(rotation(2, 8))},
        {},
    ],
    ids=lambda settings: "-".join(settings) or "whole",
)
def test_overlapping_sites_are_refused(second: dict[str, Any]) -> None:
    sites = {"X": Site(module="first", units=(0, 1)), "Y": Site(module="first", **second)}
    with pytest.raises(SiteError, match="claim the same coordinates"):
        interchange(mlp(), BASE, {"X": SOURCE, "Y": OTHER}, sites)
    interchange(mlp(), BASE, {"X": SOURCE, "Y": OTHER}, sites, disjoint=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "named by one"),
        ({"module": "a", "layer": 1}, "named by one"),
        ({"layer": 1, "on_input": True}, "block_input"),
        ({"module": "a", "units": (1,), "mask": torch.ones(2)}, "units and mask"),
        ({"module": "a", "units": (1, 1)}, "each once"),
        ({"module": "a", "units": ()}, "one or more"),
        ({"module": "a", "position": 1.5}, "a Column, or None"),
        ({"module": "a", "position": True}, "a Column, or None"),
    ],
)
def test_what_is_no_site_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError, match=message):
        Site(**settings)


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        (Site(module="nowhere"), SiteError, "its modules are"),
        (Site(layer=7), SiteError, "7"),
        (Site(layer=0, units=(16,)), SiteError, "no unit 16"),
        (Site(layer=0, position=9), LocationError, "no token 9"),
        (Site(layer=0, position=(0, -6)), LocationError, "twice"),
        (Site(layer=0, position=Column("at")), PositionError, "missing"),
        (Site(layer=0, position="tok(<s>)"), PositionError, "special token"),
    ],
    ids=["module", "layer", "unit", "token", "twice", "column", "special"],
)
def test_what_a_model_does_not_have_is_refused(site: Site, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        interchange(llama(), ids(2, 6, seed=1), ids(2, 6, seed=2), site)


def test_further_bad_input() -> None:
    with pytest.raises(ConfigError, match="not orthonormal"):
        Rotation(torch.ones(2, 4))
    with pytest.raises(ConfigError, match="1 to 3"):
        Pca.fit(torch.ones(3, 4), 4)
    with pytest.raises(SiteError, match="combine='swop'"):
        interchange(mlp(), BASE, SOURCE, Site(module="first"), combine="swop")  # type: ignore[arg-type]
    with pytest.raises(CausalModelError, match="'Q'"):
        interchange(mlp(), BASE, {"Q": SOURCE}, {"X": Site(module="first")})
    with pytest.raises(LocationError, match="as many vectors"):
        interchange(mlp(), BASE, SOURCE[:3], Site(module="first"))
    with pytest.raises(SiteError, match="keeps the shape"):
        intervene(mlp(), BASE, Edit(Site(module="first"), lambda held: held[:, :2]))
