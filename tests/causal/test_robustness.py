"""Interchange leaves the network, its inputs and its random draws alone, and says what is wrong with bad input."""

from __future__ import annotations

import collections
import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.modeling_outputs import BaseModelOutput

from peft_reft.causal import (
    Autoencoder,
    CausalModel,
    Distribution,
    Pca,
    Rotation,
    Site,
    collect,
    interchange,
    intervene,
    mean,
    noise,
    put,
    zero,
)
from peft_reft.hub_format.errors import CausalModelError, ConfigError, SiteError
from peft_reft.training.checkpointing import recomputes_hooks

from .networks import ids, llama, mlp, numbers, rotation

BASE, SOURCE, OTHER = numbers(5, 4, seed=1), numbers(5, 4, seed=2), numbers(5, 4, seed=3)


def in_place() -> nn.Sequential:
    """Its second module writes over the output of the first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


@torch.no_grad()
def test_what_is_collected_is_what_was_there_before_the_next_module_wrote_over_it() -> None:
    network = in_place()
    assert torch.equal(collect(network, BASE, Site(module="0")), network[0](BASE))


@pytest.mark.parametrize("shape", [(5, 8), (8,)])
@torch.no_grad()
def test_a_value_that_is_put_is_not_written_over(shape: tuple[int, ...]) -> None:
    network, value = in_place(), numbers(*shape, seed=4)
    before = value.clone()
    found = intervene(network, BASE, put(Site(module="0"), value))
    assert_close(found, network[2](torch.relu(before)).expand(5, -1))
    assert torch.equal(value, before)


@pytest.mark.parametrize("position", ["before", "at", "after"])
@pytest.mark.parametrize("sites", ["one", "several"])
def test_a_source_that_is_the_base_changes_no_bit_in_training_mode(position: str, sites: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        place = {"before": "0", "at": "1", "after": "3"}[position]
        alignment = {name: Site(module=place, units=[unit]) for unit, name in enumerate("AB")}
        sources = {"A": BASE.clone(), "B": BASE.clone()}
        torch.manual_seed(5)
        plain = network(BASE)
        following = torch.rand(3)
        torch.manual_seed(5)
        if sites == "one":
            found = interchange(network, BASE, BASE.clone(), alignment["A"])
        else:
            found = interchange(network, BASE, sources, alignment)
        assert torch.equal(found, plain)
        assert torch.equal(torch.rand(3), following)  # as many numbers are drawn as in one run


@torch.no_grad()
def test_a_cache_is_extended_by_the_base_alone() -> None:
    model = llama()
    cache = model(ids(2, 4, seed=1)).past_key_values
    base = {"input_ids": ids(2, 2, seed=3), "past_key_values": cache, "attention_mask": torch.ones(2, 6).long()}
    plain = model(**{**base, "past_key_values": copy.deepcopy(cache)}).logits
    found = interchange(model, base, dict(base), Site(layer=1, position=-1, space=Rotation(rotation(3, 16)))).logits
    assert torch.equal(found, plain)
    assert cache.get_seq_length() == 6


def test_a_cache_with_gradients_is_refused() -> None:
    model = llama()
    base = {"input_ids": ids(2, 2, seed=3), "past_key_values": model(ids(2, 4, seed=1)).past_key_values}
    with pytest.raises(ConfigError, match=r"cache with gradients.*no_grad"):
        interchange(model, base, dict(base), Site(layer=1, position=-1))


@pytest.mark.parametrize("component", ["block_output", "block_input", "attention_output", "mlp_output"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_the_same_under_checkpointing(component: str, reentrant: bool) -> None:
    model = llama().train()
    site = Site(layer=1, component=component, position=2, space=Rotation(rotation(3, 16)))

    during: list[list[bool]] = []
    model.lm_head.register_forward_hook(
        lambda *_: during.append([layer.gradient_checkpointing for layer in model.model.layers])
    )

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        logits = interchange(model, ids(2, 5, seed=1), ids(2, 5, seed=2), site).logits
        logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_close(gradients(), plain)
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    # a block's own hooks are not part of what is recomputed, but for older transformers
    inside = component in ("attention_output", "mlp_output") or recomputes_hooks()
    assert during[-1] == [True, not inside, True]


class Returns(nn.Module):
    """A module whose output is of some type, inside of one that reads its first element."""

    def __init__(self, wrap: Any, take: Any) -> None:
        super().__init__()
        self.part = nn.Module()
        self.part.forward = lambda values: wrap(values)  # type: ignore[method-assign]
        self.take = take

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.take(self.part(values))
        return out


Pair = collections.namedtuple("Pair", ["state", "rest"])


@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (lambda h: (h, 1), lambda out: out[0]),
        (lambda h: [h, 1], lambda out: out[0]),
        (lambda h: {"state": h, "rest": 1}, lambda out: out["state"]),
        (lambda h: Pair(h, 1), lambda out: out.state),
        (lambda h: BaseModelOutput(last_hidden_state=h), lambda out: out.last_hidden_state),
    ],
    ids=["tuple", "list", "dict", "named tuple", "ModelOutput"],
)
def test_a_module_may_return_more_than_a_tensor(wrap: Any, take: Any) -> None:
    network = Returns(wrap, take)
    edited = BASE.clone()
    edited[:, 1] = SOURCE[:, 1]
    assert torch.equal(interchange(network, BASE, SOURCE, Site(module="part", units=[1])), edited)
    assert torch.equal(collect(network, BASE, Site(module="part", units=[1])), BASE[:, [1]])


@pytest.mark.parametrize("wrap", [lambda h: None, lambda h: {}, lambda h: (), lambda h: ("a", h), lambda h: {"n": 1}])
def test_an_output_without_a_tensor_is_refused(wrap: Any) -> None:
    with pytest.raises(SiteError, match="whose first element is one"):
        collect(Returns(wrap, lambda out: BASE), BASE, Site(module="part"))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.step(2 * self.step(values))
        return out


def test_two_calls_of_a_module_are_two_places() -> None:
    sites = {"A": Site(module="step", call=0, units=[0]), "B": Site(module="step", call=1)}
    assert torch.equal(interchange(Twice(), BASE, {"A": SOURCE, "B": OTHER}, sites), 2 * OTHER)
    with pytest.raises(SiteError, match="claim the same"):
        interchange(Twice(), BASE, {"A": SOURCE, "B": OTHER}, {**sites, "B": Site(module="step", call=0)})


def test_several_sources_at_sites_in_several_layers() -> None:
    """The second site's vectors come from its own source's run, not from a run that the first has changed."""
    model = llama()
    base, first, second = (ids(2, 5, seed=seed) for seed in (1, 2, 3))
    sites = {"A": Site(layer=0, position=1), "B": Site(layer=2, position=-1, units=range(4))}
    with torch.no_grad():
        states = [model.model(given, output_hidden_states=True).hidden_states for given in (first, second)]
        held = collect(model, second, Site(layer=2, position=-1))[:, 0, :4]
        expected = intervene(
            model, base, [put(sites["A"], states[0][1][:, [1]]), put(sites["B"], held[:, None])]
        ).logits
        found = interchange(model, base, {"A": first, "B": second}, sites).logits
        assert torch.equal(found, expected)
        assert not torch.equal(found, interchange(model, base, {"A": first}, sites).logits)


@pytest.mark.parametrize("where", ["base", "source", "edit"])
def test_hooks_are_off_after_the_network_failed(where: str) -> None:
    network = mlp()

    def fail(values: Tensor) -> Tensor:
        raise RuntimeError("no")

    wrong = numbers(5, 3, seed=1)
    given = {"base": (wrong, SOURCE), "source": (BASE, wrong), "edit": (BASE, SOURCE)}[where]
    combine = (lambda held, got: fail(held)) if where == "edit" else "swap"
    with pytest.raises(RuntimeError):
        interchange(network, *given, Site(module="first"), combine=combine)  # type: ignore[arg-type]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_one_site_is_no_obstacle_to_other_hooks() -> None:
    network, seen = mlp(), []
    handle = network.first.register_forward_hook(lambda *_: seen.append(1))
    interchange(network, BASE, SOURCE, Site(module="first"))
    assert list(network.first._forward_hooks) == [handle.id]
    assert len(seen) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_grad_mode_of_the_caller_holds(mode: Any) -> None:
    model, site = llama(), Site(layer=1, position=2, space=Rotation(rotation(2, 16)))
    with mode():
        found = interchange(model, ids(2, 5, seed=1), ids(2, 5, seed=2), site).logits
        assert not found.requires_grad
    assert_close(found.clone(), interchange(model, ids(2, 5, seed=1), ids(2, 5, seed=2), site).logits.detach())


@pytest.mark.parametrize("units", [[1, 3], (1, 3), range(1, 4, 2), torch.tensor([1, 3]), np.array([1, 3])], ids=str)
def test_units_of_any_kind(units: Any) -> None:
    found = collect(nn.Identity(), BASE, Site(module="", units=units))
    assert torch.equal(found, BASE[:, [1, 3]])


@pytest.mark.parametrize("units", [[], [1, 1], [1.0], [True], "ab", 3, torch.tensor([1.0])], ids=str)
def test_what_are_no_units_is_refused(units: Any) -> None:
    with pytest.raises(SiteError, match="they are ints, one or more, each once"):
        Site(module="", units=units)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "1"}, "layer='1'"),
        ({"layer": 1.0}, "it is an int"),
        ({"layer": True}, "it is an int"),
        ({"module": "", "call": -1}, "count from 0"),
        ({"module": "", "call": 0.0}, "call=0.0"),
        ({"module": "", "position": ()}, "a tuple of ints"),
        ({"module": "", "position": (1, "a")}, "a tuple of ints"),
        ({"module": "", "position": (1, True)}, "a tuple of ints"),
        ({"module": "", "position": [0]}, "a tuple of ints"),
        ({"module": "", "mask": [1, 0]}, "it is a tensor"),
        ({"module": "", "space": torch.eye(4)}, "space=Rotation"),
    ],
    ids=str,
)
def test_what_is_no_site_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError, match=message):
        Site(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"units": [4]},
        {"units": [-1]},
        {"space": Rotation(rotation(2, 4)), "units": [2]},
        {"space": Rotation(rotation(2, 8))},
        {"space": Pca.fit(numbers(9, 8, seed=1), 2)},
        {
            "space": Autoencoder(
                numbers(3, 8, seed=1),
                numbers(3, 8, seed=2),
                encoder_bias=torch.zeros(3),
                decoder_bias=torch.zeros(8),
            )
        },
        {"mask": torch.ones(1)},
        {"mask": torch.ones(5)},
        {"mask": torch.tensor(1.0)},
        {"mask": torch.ones(1, 1, 4)},
        {"mask": torch.ones(4, 4)},
        {"mask": torch.ones(4), "space": Rotation(rotation(2, 4))},
    ],
    ids=["unit", "minus", "row", "rotation", "pca", "autoencoder", "one", "wide", "scalar", "cube", "batch", "rank"],
)
def test_what_does_not_fit_the_vectors_there_is_refused(settings: dict[str, Any]) -> None:
    site = Site(module="", **settings)
    rule = "no unit" if site.units else "a mask of shape" if site.mask is not None else "vectors there have size 4"
    with pytest.raises(SiteError, match=rule):
        interchange(nn.Identity(), BASE, SOURCE, site)
    if site.mask is None:
        with pytest.raises(SiteError, match=rule):
            collect(nn.Identity(), BASE, site)
        with pytest.raises(SiteError, match=rule):
            intervene(nn.Identity(), BASE, zero(site))


def test_bad_edits_are_refused() -> None:
    site = Site(module="")
    for wrong in (torch.ones(4), torch.ones(0, 4)):
        with pytest.raises(SiteError, match="over the first dimension"):
            mean(site, wrong)
    for std in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SiteError, match="a finite number"):
            noise(site, std, seed=0)
    with pytest.raises(SiteError, match=r"edits hold a Site.*zero\(site\)"):
        intervene(nn.Identity(), BASE, [site])  # type: ignore[list-item]


def test_a_half_precision_state_has_coordinates_in_float32() -> None:
    values = BASE.bfloat16()
    rows = rotation(2, 4)
    found = collect(nn.Identity(), values, Site(module="", space=Rotation(rows)))
    assert_close(found, values.float() @ rows.mT)


@pytest.mark.parametrize("matrix", [[[1.0, 0.0]], torch.eye(2).long(), torch.ones(2)], ids=str)
def test_what_is_no_rotation_is_refused(matrix: Any) -> None:
    with pytest.raises(ConfigError, match="orthonormal rows"):
        Rotation(matrix)


def test_spaces_of_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mean and std \[hidden\]"):
        Pca(rotation(2, 4), torch.zeros(3))
    with pytest.raises(ConfigError, match=r"mean and std \[hidden\]"):
        Pca(rotation(2, 4), torch.zeros(4), torch.ones(2))
    good: dict[str, Any] = {
        "encoder": torch.ones(3, 4),
        "decoder": torch.ones(3, 4),
        "encoder_bias": torch.ones(3),
        "decoder_bias": torch.ones(4),
        "threshold": torch.ones(3),
    }
    Autoencoder(**good)
    for name, tensor in good.items():
        with pytest.raises(ConfigError, match="decoder_bias: "):
            Autoencoder(**{**good, name: tensor[:1, :2] if tensor.dim() == 2 else tensor[:2]})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_autoencoder_in_another_precision_than_the_network(dtype: torch.dtype) -> None:
    space = Autoencoder(
        numbers(3, 4, seed=1), numbers(3, 4, seed=2), encoder_bias=torch.zeros(3), decoder_bias=torch.ones(4)
    )
    wide = [tensor.to(dtype) for tensor in (BASE, SOURCE)]
    found = interchange(nn.Identity(), *wide, Site(module="", space=space))
    assert found.dtype == dtype
    expected = interchange(nn.Identity(), BASE, SOURCE, Site(module="", space=space))
    assert_close(found.float(), expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize(
    ("functions", "inputs", "message"),
    [
        ({"A": 3}, {"X": [1]}, "does not say its arguments"),
        ([], {"X": [1]}, "functions are list"),
        ({"A": lambda X: X}, ["X"], "inputs are list"),
        ({"A": lambda X: X}, {"X": []}, "one or more"),
        ({"A": lambda X: X}, {"X": 3}, "they are listed"),
    ],
    ids=["function", "functions", "inputs", "no value", "number"],
)
def test_what_is_no_causal_model_is_refused(functions: Any, inputs: Any, message: str) -> None:
    with pytest.raises(CausalModelError, match=message):
        CausalModel(functions, inputs=inputs)


def test_what_a_causal_model_cannot_run_on_is_refused() -> None:
    model = CausalModel({"A": lambda X: X}, inputs={"X": [1, 2]})
    for wrong in ({1: 2}, [1], None):
        with pytest.raises(CausalModelError, match="the inputs are: X"):
            model.run(wrong)  # type: ignore[arg-type]
    with pytest.raises(CausalModelError, match="map a variable to inputs"):
        model.interchange({"X": 1}, [1])  # type: ignore[arg-type]
    arrays = CausalModel({"A": lambda X: X}, inputs={"X": [torch.ones(2), torch.zeros(2)]})
    with pytest.raises(CausalModelError, match="cannot be compared"):
        arrays.run({"X": torch.zeros(2)})
    with pytest.raises(CausalModelError, match=r"output=\['A'\]"):
        CausalModel({"A": lambda X: X}, inputs={"X": [1]}, output=["A"])  # type: ignore[arg-type]
    lists = CausalModel({"A": lambda X: [X]}, inputs={"X": None})
    assert lists.run({"X": 1})["A"] == [1]
    with pytest.raises(CausalModelError, match="a tuple instead of a list"):
        lists.run({"X": Distribution.uniform([1, 2])})
    with pytest.raises(CausalModelError, match=r"Distribution\.uniform"):
        Distribution([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_chain_is_no_deep_recursion(order: int) -> None:
    functions = {f"V{n}": eval(f"lambda {'X' if n == 0 else f'V{n - 1}'}: 0") for n in range(1500)[::order]}
    assert CausalModel(functions, inputs={"X": [1]}).order == ("X", *(f"V{n}" for n in range(1500)))
    with pytest.raises(CausalModelError, match="cycle"):
        CausalModel({**functions, "V0": lambda V1499: 0}, inputs={}, output="V0")


def test_a_graph_of_many_paths_is_walked_once() -> None:
    """A hundred diamonds in a row have 2^100 paths."""
    functions = {"V0": lambda X: X}
    for n in range(1, 101):
        scope = f"V{n - 1}"
        functions[f"A{n}"], functions[f"B{n}"] = (eval(f"lambda {scope}: {scope}") for _ in range(2))
        functions[f"V{n}"] = eval(f"lambda A{n}, B{n}: 0")
    reversed_order = dict(reversed(functions.items()))
    assert len(CausalModel(reversed_order, inputs={"X": [1]}).order) == 302


@pytest.mark.parametrize("package", ["networkx", "matplotlib.figure"])
def test_a_drawing_without_its_package_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalModel({"A": lambda X: X}, inputs={"X": [1]})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"{package.partition('.')[0]} draws this: pip install 'peft-reft\[causal\]'"
    ):
        model.draw()
    assert model.to_dot().startswith("digraph")
