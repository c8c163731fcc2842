"""An alignment becomes an adapter: its edits are interchanges with the points of its values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from contract.tiny import base_model
from peft_reft import ReftConfig, set_value
from peft_reft.causal import (
    AlignmentSearch,
    Answers,
    Autoencoder,
    CausalModel,
    Column,
    Distribution,
    PadRows,
    Pca,
    Rotation,
    Site,
    class_loss,
    collect,
    interchange,
    intervene,
    put,
    sample_pairs,
    to_adapter,
)
from peft_reft.hub_format.errors import CausalModelError, ConfigError, PositionSyntaxError, SiteError
from peft_reft.layer import ReftLayer

from .networks import llama, mlp, rotation

WORDS = range(1, 6)
PAIR = CausalModel(
    {"A": lambda X: X, "S": lambda A, Y: A + Y}, inputs={"X": WORDS, "Y": WORDS, "Pad": (0, 2)}, output="S"
)
"""A has one input word for each value, so that the sources of a value differ in Y and in their padding alone."""


def encode(rows: Sequence[Any]) -> dict[str, Tensor]:
    """X stands at position 2 of five tokens, Y at 4; rows are padded on the left."""
    ids = [[*[0] * row["Pad"], 7, 8, row["X"], 9, row["Y"], *[0] * (2 - row["Pad"])] for row in rows]
    mask = [[*[0] * row["Pad"], *[1] * 5, *[0] * (2 - row["Pad"])] for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


EVERY = list(PAIR.every_input())
ROWS = rotation(5, 16)


def site(**changes: Any) -> Site:
    return Site(**{"layer": 1, "position": 2, "space": Rotation(ROWS), "units": [1, 3, 4], **changes})


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found


def units_of(model: PeftModel, adapter: str = "default") -> list[Any]:
    layers = [module for module in model.modules() if isinstance(module, ReftLayer)]
    return [layer.unit((adapter, number)) for layer in layers for number in layer.units.get(adapter, ())]


def where(values: Any, **given: Any) -> list[dict[str, Any]]:
    return [row for row in EVERY if all(row[name] == value for name, value in given.items()) and row["Pad"] in values]


@pytest.mark.parametrize("value", [1, 5])
def test_setting_a_value_is_an_interchange_with_a_source_that_has_it(value: int) -> None:
    """At position 2 a causal model has seen nothing but X: every source of a value has the same point."""
    network, base = llama(), encode(EVERY[::7])
    source = encode(where([0], X=value)[:1] * len(EVERY[::7]))
    expected = interchange(network, base, source, site()).logits.detach()
    model = to_adapter(network, PAIR, {"A": site()}, encode=encode)
    plain = logits(model, base)
    set_value(model, "default", "A", value)
    assert_close(logits(model, base), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_the_point_of_a_value_is_the_mean_of_its_sources() -> None:
    """The sum is not known at position 2 alone, so there its sources differ."""
    network = llama()
    place = site(position=4)
    sources = [row for row in EVERY if row["X"] + row["Y"] == 4]
    values = collect(network, encode(sources), place).detach().double().mean(0)
    assert values.std() > 0.05
    base = encode(EVERY[:3])
    expected = intervene(network, base, put(place, values.float())).logits.detach()
    model = to_adapter(network, PAIR, {"S": place}, encode=encode, batch_size=3)
    assert units_of(model)[0].options["values"] == list(range(2, 11))
    set_value(model, "default", "S", 4)
    assert_close(logits(model, base), expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_set_at_first_and_the_network_keeps_its_mode_and_weights() -> None:
    network, base = llama().train(), encode(EVERY[:3])
    network.model.layers[0].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before, state = logits(network, base), {name: t.clone() for name, t in network.state_dict().items()}
    model = to_adapter(network, PAIR, {"A": site()}, encode=encode)
    assert {name: module.training for name, module in network.named_modules() if name in modes} == modes
    assert model.training
    assert not to_adapter(llama(), PAIR, {"A": site()}, encode=encode).training
    assert not any(module.training for module in to_adapter(llama(), PAIR, {"A": site()}, encode=encode).modules())
    assert all(torch.equal(network.state_dict()[name], t) for name, t in state.items())
    model.eval()
    assert torch.equal(logits(model, base), before)
    assert model.unload() is network
    assert not any(isinstance(module, ReftLayer) for module in network.modules())


def test_points_are_taken_without_dropout() -> None:
    network = llama()
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = units_of(to_adapter(network.train(), PAIR, {"A": site(position=4)}, encode=encode))[0].points
    assert_close(found, units_of(to_adapter(llama(), PAIR, {"A": site(position=4)}, encode=encode))[0].points)


def test_variables_at_one_site_are_set_alone() -> None:
    network, base = llama(), encode(EVERY[::9])
    second = CausalModel(
        {"A": lambda X: X, "B": lambda X: "odd" if X % 2 else "even", "S": lambda A, B: (A, B)},
        inputs={"X": WORDS, "Y": WORDS, "Pad": (0, 2)},
    )
    sites = {"A": site(units=[0, 1]), "B": site(units=[4])}
    one, other = (encode(where([0], X=x)[:1] * len(EVERY[::9])) for x in (5, 2))
    inputs = where([0, 2], X=5) + where([2], X=2)
    model = to_adapter(network, second, sites, encode=encode, inputs=inputs)
    set_value(model, "default", "A", 5)
    set_value(model, "default", "B", None)
    found = logits(model, base)
    set_value(model, "default", "A", None)
    free = logits(model, base)
    set_value(model, "default", "B", "even")
    even = logits(model, base)
    model.unload()
    assert_close(found, interchange(network, base, {"A": one}, sites).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(free, network(**base).logits)
    assert_close(even, interchange(network, base, {"B": other}, sites).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [1, 2])
def test_variables_at_one_or_two_sites_are_set_together(layer: int) -> None:
    """Definition 3 of 2303.02536: disjoint rows, a source for each, the rest from the base."""
    network, base = llama(), encode(EVERY[::9])
    both = CausalModel({"A": lambda X: X, "B": lambda X: -X, "S": lambda A, B: A + B}, inputs=PAIR.inputs)
    sites = {"A": site(units=[0, 1]), "B": site(units=[4], layer=layer)}
    one, two = (encode(where([0], X=x)[:1] * len(EVERY[::9])) for x in (5, 3))
    expected = interchange(network, base, {"A": one, "B": two}, sites).logits.detach()
    model = to_adapter(network, both, sites, encode=encode)
    set_value(model, "default", "A", 5)
    set_value(model, "default", "B", -3)
    assert_close(logits(model, base), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "place",
    [
        site(units=None),
        site(space=None, units=[2, 9]),
        site(space=None, units=None, mask=torch.arange(16) % 3 == 0),
        site(units=None, mask=torch.tensor([1.0, 0, 0, 1, 0])),
        site(component="block_input"),
        site(component="attention_output"),
        site(component="mlp_output"),
        site(component="head_output[1]", space=None, units=[0, 3]),
        site(layer=-2),
        site(layer=None, module="model.layers.1"),
        site(layer=None, module="model.layers.1", on_input=True),
        site(layer=None, module="model.layers.1.mlp"),
        site(position=-3),
        site(position="p[2:3]"),
        site(position=0),
        site(position=(0, 2)),
        site(position=(-4, -3)),
        site(joint=True),
    ],
    ids=lambda place: place.describe(),
)
def test_every_form_of_site(place: Site) -> None:
    network, base = llama(), encode(EVERY[::5])
    source = encode(where([0], X=4)[:1] * len(EVERY[::5]))
    expected = interchange(network, base, source, place).logits.detach()
    model = to_adapter(network, PAIR, {"A": place}, encode=encode)
    set_value(model, "default", "A", 4)
    assert_close(logits(model, base), expected, atol=1e-5, rtol=1e-5)


def test_tokens_of_a_spec_share_a_point_and_those_of_a_tuple_do_not() -> None:
    shared = units_of(to_adapter(llama(), PAIR, {"A": site(position="f3")}, encode=encode))
    apart = units_of(to_adapter(llama(), PAIR, {"A": site(position=(0, 1, 2))}, encode=encode))
    assert (len(shared), len(apart)) == (1, 3)
    assert_close(shared[0].points, torch.stack([unit.points for unit in apart]).mean(0))


def test_rows_with_different_numbers_of_tokens_share_the_mean_of_all() -> None:
    network = llama()

    def ragged(rows: Sequence[Any]) -> dict[str, Tensor]:
        batch = encode(rows)
        batch["attention_mask"][0, :3] = 0  # the first row of a batch has fewer
        return batch

    states = collect(network, ragged(where([0], X=1)), Site(layer=1, position="all"))
    assert states.dim() == 2
    model = to_adapter(network, PAIR, {"A": site(position="all")}, encode=ragged, inputs=where([0], X=1))
    (unit,) = units_of(model)
    assert_close(unit.points[0], states.detach().mean(0) @ ROWS[[1, 3, 4]].mT, atol=1e-5, rtol=1e-5)


def test_values_with_different_numbers_of_tokens_share_their_own_mean() -> None:
    """Every input of a value may be as long as the next one, and those of another value longer."""
    network = llama()

    def lengths(rows: Sequence[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[7] * rows[0]["X"] + [9] for _ in rows])}

    model = to_adapter(network, PAIR, {"A": site(position="all")}, encode=lengths, inputs=where([0]))
    (unit,) = units_of(model)
    model.unload()
    for value in WORDS:
        states = collect(network, lengths([{"X": value}]), Site(layer=1, position="all")).detach()
        expected = states[0].mean(0) @ ROWS[[1, 3, 4]].mT
        assert_close(unit.points[value - 1], expected, atol=1e-5, rtol=1e-5)


def test_columns_of_other_variables_are_taken_off_too() -> None:
    def encode_with_columns(rows: Sequence[Any]) -> dict[str, Tensor]:
        return {**encode(rows), "first": torch.full((len(rows),), 2), "second": torch.full((len(rows),), 4)}

    sites = {"A": site(position=Column("first")), "S": site(position=Column("second"))}
    network, keys = llama(), set()
    network.register_forward_pre_hook(lambda module, args, kwargs: keys.update(kwargs), with_kwargs=True)
    found = units_of(to_adapter(network, PAIR, sites, encode=encode_with_columns, positions="l1"))
    assert keys == {"input_ids", "attention_mask"}
    expected = units_of(to_adapter(llama(), PAIR, {"A": site(), "S": site(position=4)}, encode=encode))
    for unit, same in zip(found, expected, strict=True):
        assert_close(unit.points, same.points)


@pytest.mark.parametrize(("stack", "layer"), [("encoder", 1), ("decoder", 0)])
@pytest.mark.parametrize("by_module", [True, False])
def test_a_stack_of_an_encoder_decoder(stack: str, layer: int, by_module: bool) -> None:
    network = base_model("t5")

    def pairs(rows: Sequence[Any]) -> dict[str, Tensor]:
        ids = torch.tensor([[10 + row["X"], 20 + row["Y"], 8] for row in rows])
        return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}

    address = (
        {"module": f"{stack}.block.{layer}"} if by_module else {"layer": layer, "layers_pattern": stack + ".block"}
    )
    place = Site(**address, position=0, units=range(0, 32, 3))
    source, base = pairs(where([0], X=4)[:1] * 5), pairs(EVERY[::10])
    expected = interchange(network, base, source, place).logits.detach()
    model = to_adapter(network, PAIR, {"A": place}, encode=pairs, inputs=where([0], X=4)[:1])
    assert model.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    set_value(model, "default", "A", 4)
    assert_close(logits(model, base), expected, atol=1e-5, rtol=1e-5)


def test_positions_can_be_said_where_the_site_has_none() -> None:
    """A column is where the point is read; without a position it is read where the adapter edits."""

    def encode_with_column(rows: Sequence[Any]) -> dict[str, Tensor]:
        return {**encode(rows), "at": torch.full((len(rows),), 2)}

    column = site(position=Column("at"))
    model = to_adapter(llama(), PAIR, {"A": column}, encode=encode_with_column, positions="l1")
    expected = to_adapter(llama(), PAIR, {"A": site()}, encode=encode)
    assert model.peft_config["default"].positions == "l1"
    assert_close(units_of(model)[0].points, units_of(expected)[0].points)
    model = to_adapter(llama(), PAIR, {"A": site(position=None)}, encode=encode, positions="p[2:3]")
    assert_close(units_of(model)[0].points, units_of(expected)[0].points)


def test_saved_loaded_and_shared(tmp_path: Path) -> None:
    network, base = llama(), encode(EVERY[:4])
    network.save_pretrained(tmp_path / "base")
    network.name_or_path = network.config._name_or_path = str(tmp_path / "base")
    model = to_adapter(network, PAIR, {"A": site()}, encode=encode).eval()
    set_value(model, "default", "A", 3)
    expected = logits(model, base)
    model.save_pretrained(tmp_path / "adapter")
    for again in (
        PeftModel.from_pretrained(llama(), str(tmp_path / "adapter")).eval(),
        AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).eval(),
    ):
        assert torch.equal(logits(again, base), expected)
        set_value(again, "default", "A", 2)
        assert not torch.equal(logits(again, base), expected)


SUM = CausalModel({"S": lambda X, Y: X + Y, "O": lambda S: S}, inputs=dict.fromkeys("XY", range(5)))


def encode_sum(rows: Sequence[Any]) -> Tensor:
    return torch.tensor([[1 + row["X"], 1 + row["Y"], 30] for row in rows])


@pytest.fixture(scope="module")
def adder() -> transformers.LlamaForCausalLM:
    """Trained to answer "X Y =" with their sum S, and any S after that with 3 S modulo 7."""
    prompts = encode_sum(list(SUM.every_input())).repeat_interleave(9, 0)
    said = torch.arange(9).repeat(25)
    after = torch.stack([prompts[:, 0] + prompts[:, 1] + 8, 20 + 3 * said % 7], 1)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(120):
        optimiser.zero_grad()
        scores = network(torch.cat([prompts, 10 + said[:, None]], 1)).logits[:, 2:4]
        cross_entropy(scores.flatten(0, 1), after.flatten()).backward()
        optimiser.step()
    return network.eval()


def test_a_variable_that_was_searched_is_set_at_generation(
    adder: transformers.LlamaForCausalLM, tmp_path: Path
) -> None:
    """Whatever X and Y are: the sum that is set is what a model that computes with S answers, both times."""
    loss = class_loss(range(9), logits=lambda output: output.logits[:, -1, 10:19])
    search = AlignmentSearch(adder, SUM, Site(layer=0, position=-1), {"S": 12}, encode=encode_sum, loss=loss, seed=0)
    pairs = sample_pairs(SUM, ["S"], 400, seed=0, changing=0.8)
    search.fit(pairs, steps=60, learning_rate=0.02, batch_size=64, seed=0)
    rows = list(SUM.every_input())
    ids = encode_sum(rows)
    model = search.to_adapter()
    config = model.peft_config["default"]
    assert (config.layers_to_transform, config.positions, config.r) == ([0], "l1", 12)

    def answers(model: Any) -> list[list[int]]:
        found: list[list[int]] = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)[:, 3:].tolist()
        return found

    own = [[10 + row["X"] + row["Y"], 20 + 3 * (row["X"] + row["Y"]) % 7] for row in rows]
    assert answers(model) == own
    for value in range(9):
        set_value(model, "default", "S", value)
        assert answers(model) == [[10 + value, 20 + 3 * value % 7]] * 25
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model.unload()), str(tmp_path)).eval()
    assert answers(again) == [[18, 23]] * 25
    set_value(again, "default", "S", None)
    assert answers(again) == own


def test_a_base_that_has_the_value_already_moves_to_the_mean_of_its_like(
    adder: transformers.LlamaForCausalLM,
) -> None:
    """By as much as the rows hold of anything else; here the rows of a random rotation, which hold X and Y too."""
    place = Site(layer=0, position=-1, space=Rotation(rotation(8, 32)))
    same = [row for row in SUM.every_input() if row["X"] + row["Y"] == 4]
    ids = encode_sum(same)
    held = collect(adder, ids, place).detach()
    model = to_adapter(adder, SUM, {"S": place}, encode=encode_sum)
    set_value(model, "default", "S", 4)
    moved = collect(model, ids, place).detach()
    model.unload()
    assert_close(moved, held.mean(0, keepdim=True).expand_as(held), atol=1e-5, rtol=1e-5)
    assert (moved - held).abs().max() > 1e-2


@pytest.mark.parametrize("where", [{"layer": 0}, {"module": "model.model.layers.0"}])
def test_answers_and_tokenised_rows(adder: transformers.LlamaForCausalLM, where: dict[str, Any]) -> None:
    """The search reads answers and gets tokenised rows; the adapter belongs to the language model itself."""
    answers = Answers(adder, {value: 10 + value for value in range(9)})
    search = AlignmentSearch(
        answers,
        SUM,
        Site(**where, position=-1),
        {"S": 12},
        encode=PadRows(0, padding_side="left"),
        loss=answers.loss(),
        seed=0,
        example={"input_ids": [1, 1, 30]},
    )

    def row(values: Any) -> dict[str, list[int]]:
        return {"input_ids": encode_sum([values])[0].tolist()}

    model = search.to_adapter(row=row)
    assert model.get_base_model() is adder
    (unit,) = units_of(model)
    model.unload()
    place = Site(layer=0, position=-1, space=Rotation(search.rotation.detach()))
    (expected,) = units_of(to_adapter(copy.deepcopy(adder), SUM, {"S": place}, encode=encode_sum))
    assert_close((unit.rotation, unit.points), (expected.rotation, expected.points))


def test_an_adapter_is_added_beside_others_that_stay_active() -> None:
    base = encode(EVERY[:4])
    edited = get_peft_model(llama(), ReftConfig(intervention="bias", init_weights=False, positions="f1")).eval()
    before = logits(edited, base)
    model = to_adapter(edited, PAIR, {"A": site()}, encode=encode, adapter_name="a")
    assert model is edited
    assert torch.equal(logits(model, base), before)
    set_value(model, "a", "A", 3)
    source = encode(where([0], X=3)[:1] * 4)
    found = logits(model, base)
    model.base_model.set_adapter(["default"])
    assert_close(found, interchange(edited, base, source, site()).logits, atol=1e-5, rtol=1e-5)


def test_values_get_names_where_no_option_can_hold_them() -> None:
    tuples = CausalModel({"T": lambda X, Y: (X, Y), "S": lambda T: sum(T)}, inputs=PAIR.inputs)
    with pytest.raises(ConfigError, match="pass label="):
        to_adapter(llama(), tuples, {"T": site(position=4)}, encode=encode)
    model = to_adapter(llama(), tuples, {"T": site(position=4)}, encode=encode, label=str)
    assert units_of(model)[0].options["values"][0] == "(1, 1)"
    with pytest.raises(ConfigError, match="both named 0"):
        to_adapter(llama(), tuples, {"T": site(position=4)}, encode=encode, label=lambda value: 0)


def test_numbers_of_numpy_and_torch_are_plain_values_and_mixed_ones_keep_their_order() -> None:
    numbers = CausalModel({"A": lambda X: np.int64(X), "S": lambda A: torch.tensor(A)}, inputs=PAIR.inputs)
    model = to_adapter(llama(), numbers, {"A": site(), "S": site(units=[0])}, encode=encode)
    for unit in units_of(model):
        assert unit.options["values"] == [1, 2, 3, 4, 5]
        assert {type(value) for value in unit.options["values"]} == {int}
    mixed = CausalModel({"A": lambda X: "big" if X > 3 else X, "S": lambda A: A}, inputs=PAIR.inputs)
    model = to_adapter(llama(), mixed, {"A": site()}, encode=encode, inputs=EVERY[::-1])
    assert units_of(model)[0].options["values"] == ["big", 3, 2, 1]


@pytest.mark.parametrize(
    ("place", "match"),
    [
        (site(position=Column("at")), "each row of the inputs says it.*pass positions"),
        (site(position=None), "every vector there is.*pass positions"),
        (site(position=(0, 2), joint=True), "vector by vector"),
        (site(call=0), "every call"),
        (site(layer=None, module="lm_head"), "no component of a block.*block_output"),
        (site(layer=None, module="model.layers.1.mlp.down_proj"), "no component of a block"),
        (site(space=Pca(ROWS, torch.zeros(16)), units=None), "space=Pca"),
        (site(space=Autoencoder(ROWS, ROWS, encoder_bias=torch.zeros(5), decoder_bias=torch.zeros(16))), "space=Auto"),
        (site(units=None, mask=torch.tensor([1.0, 0.5, 0, 1, 0])), "a soft mask"),
        (site(units=None, mask=torch.ones(1, 5)), "the same for every row"),
        (site(units=None, mask=torch.zeros(5)), "one or more of 0 to 4"),
        (site(units=[5]), "0 to 4"),
        (site(layer=7), "no layer 7"),
    ],
    ids=lambda given: given if isinstance(given, str) else given.describe(),
)
def test_a_site_without_the_form_of_an_adapter_is_refused(place: Site, match: str) -> None:
    network = llama()
    with pytest.raises(SiteError, match=match):
        to_adapter(network, PAIR, {"A": place}, encode=encode)
    assert not any(isinstance(module, ReftLayer) for module in network.modules())


def test_a_network_without_blocks_is_refused_with_the_reason() -> None:
    with pytest.raises(SiteError, match=r"Mlp has no blocks.*edits a component of a block"):
        to_adapter(mlp(), PAIR, {"A": Site(module="first")}, encode=encode)


def test_refusals() -> None:
    network = llama()
    with pytest.raises(CausalModelError, match="no variable was given"):
        to_adapter(network, PAIR, {}, encode=encode)
    with pytest.raises(CausalModelError, match="0 inputs"):
        to_adapter(network, PAIR, {"A": site()}, encode=encode, inputs=[])
    with pytest.raises(CausalModelError, match="batches of 0"):
        to_adapter(network, PAIR, {"A": site()}, encode=encode, batch_size=0)
    with pytest.raises(PositionSyntaxError):
        to_adapter(network, PAIR, {"A": site()}, encode=encode, positions="x7")
    many = CausalModel({"A": lambda X: X}, inputs={"X": range(10_001)})
    with pytest.raises(CausalModelError, match=r"10001 inputs.*sample_inputs"):
        to_adapter(network, many, {"A": site()}, encode=encode)
    coin = CausalModel({"A": lambda X: Distribution({X: 0.5, 0: 0.5}), "S": lambda A: A}, inputs=PAIR.inputs)
    with pytest.raises(CausalModelError, match="certain on every input"):
        to_adapter(network, coin, {"A": site()}, encode=encode)
    lora = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="merge_and_unload"):
        to_adapter(lora, PAIR, {"A": site()}, encode=encode)
    taken = to_adapter(llama(), PAIR, {"A": site()}, encode=encode)
    with pytest.raises(ConfigError, match="already"):
        to_adapter(taken, PAIR, {"A": site()}, encode=encode)
