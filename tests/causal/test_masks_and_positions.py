"""Masks, combinations in a space, and positions that rows have different numbers of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from contract.tiny import base_model
from peft_reft import ReftConfig
from peft_reft.causal import Autoencoder, Column, Rotation, Site, collect, interchange, intervene, put
from peft_reft.hub_format.errors import LocationError, SiteError

from .networks import ids, llama, numbers, rotation

BASE, SOURCE, OTHER = numbers(5, 4, seed=1), numbers(5, 4, seed=2), numbers(5, 4, seed=3)
ROWS = rotation(3, 4)


def test_a_mask_of_booleans_takes_bits() -> None:
    """Nothing is computed with the numbers, so a large base leaves no rounding in a small source."""
    large = 1e8 * BASE
    mask = torch.tensor([True, False, True, False])
    by_units = interchange(nn.Identity(), large, SOURCE, Site(module="", units=[0, 2]))
    assert torch.equal(interchange(nn.Identity(), large, SOURCE, Site(module="", mask=mask)), by_units)


def test_a_mask_weighs_rows_of_a_rotation() -> None:
    weight = torch.tensor([1.0, 0.0, 0.25])
    site = Site(module="", space=Rotation(ROWS), mask=weight)
    held, given = BASE @ ROWS.mT, SOURCE @ ROWS.mT
    expected = BASE + (weight * (given - held)) @ ROWS
    assert_close(interchange(nn.Identity(), BASE, SOURCE, site), expected)
    value = torch.tensor([1.0, 2.0, 3.0])
    assert_close(intervene(nn.Identity(), BASE, put(site, value)), BASE + (weight * (value - held)) @ ROWS)


def test_a_mask_of_each_row_holds_for_all_of_its_positions() -> None:
    base, source = numbers(2, 3, 4, seed=1), numbers(2, 3, 4, seed=2)
    mask = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 1.0]])
    found = interchange(nn.Identity(), base, source, Site(module="", position=(0, 2), mask=mask))
    expected = base.clone()
    for column in (0, 2):
        expected[0, column, 0] = source[0, column, 0]
        expected[1, column, 2:] = source[1, column, 2:]
    assert_close(found, expected)


@pytest.mark.parametrize("units", [None, [2, 0]])
def test_sums_in_a_rotated_space(units: Any) -> None:
    site = Site(module="", space=Rotation(ROWS), units=units)
    chosen = ROWS if units is None else ROWS[units]
    expected = BASE + (SOURCE @ chosen.mT) @ chosen
    assert_close(interchange(nn.Identity(), BASE, SOURCE, site, combine="add"), expected)


def test_rows_of_base_and_source_have_as_many_vectors_each() -> None:
    """As many in all is not enough."""
    base = {"input_ids": ids(2, 3, seed=1), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    source = {"input_ids": ids(2, 3, seed=2), "attention_mask": torch.tensor([[1, 0, 0], [1, 1, 1]])}
    with pytest.raises(LocationError, match="as many vectors"):
        interchange(llama(), base, source, Site(layer=1, position="all"))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(layer=1, position=-4), "no token -4"),
        (Site(layer=1, position="p[3:]"), "no token of any row"),
        (Site(layer=1, position="all", joint=True), "different numbers of positions"),
    ],
    ids=["before the first", "none", "joint"],
)
def test_positions_that_rows_do_not_have_are_refused(site: Site, message: str) -> None:
    inputs = {"input_ids": ids(2, 3, seed=1), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    with pytest.raises((LocationError, SiteError), match=message):
        collect(llama(), inputs, site)


def test_a_decoder_has_its_own_padding() -> None:
    model = base_model("t5")
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "decoder_input_ids": torch.tensor([[0, 11, 12], [0, 0, 13]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
    }
    for stack, columns in (("encoder", [1, 0]), ("decoder", [0, 1])):
        place = {"layer": 0, "layers_pattern": f"{stack}.block"}
        whole = collect(model, inputs, Site(**place)).detach()  # type: ignore[arg-type]
        found = collect(model, inputs, Site(**place, position=0)).detach()  # type: ignore[arg-type]
        assert torch.equal(found[:, 0], whole[[0, 1], columns])


def test_a_spec_counts_in_the_prompt_that_labels_leave() -> None:
    inputs = {"input_ids": ids(2, 5, seed=1), "labels": torch.tensor([[-100] * 3 + [4, 5], [-100] * 2 + [6, 7, 8]])}
    whole = collect(llama(), inputs, Site(layer=1)).detach()
    found = collect(llama(), inputs, Site(layer=1, position="l1")).detach()
    assert torch.equal(found[:, 0], whole[[0, 1], [2, 1]])


LABELS = torch.tensor([[-100, -100, 21, 22, 23], [31, 32, 33, -100, -100], [-100, 41, 42, 43, -100]])
ENDS = [2, 0, 1]
"""The last column of each row's prompt in a decoder: its token predicts the first label."""


@pytest.mark.parametrize("mask", [None, "encoder", "decoder"])
def test_a_decoders_labels_stand_where_they_are_predicted(mask: str | None) -> None:
    """The prompt is the start and forced tokens: up to the one that predicts the first label."""
    model = base_model("t5")
    inputs: dict[str, Any] = {"input_ids": ids(3, 5, seed=1), "labels": LABELS}
    if mask == "encoder":
        inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    if mask == "decoder":
        inputs["decoder_attention_mask"] = torch.ones(3, 5, dtype=torch.long)
    place = {"layer": 0, "layers_pattern": "decoder.block"}
    whole = collect(model, inputs, Site(**place)).detach()  # type: ignore[arg-type]
    last = collect(model, inputs, Site(**place, position="l1")).detach()  # type: ignore[arg-type]
    assert torch.equal(last[:, 0], whole[[0, 1, 2], ENDS])
    first = collect(model, inputs, Site(**place, position="prompt")).detach()  # type: ignore[arg-type]
    prompt = torch.arange(5)[None] <= torch.tensor(ENDS)[:, None]
    assert torch.equal(first, whole[prompt])
    rest = collect(model, inputs, Site(**place, position="generated")).detach()  # type: ignore[arg-type]
    ends = [5 if mask == "decoder" else end for end in (5, 3, 4)]
    behind = torch.arange(5)[None] < torch.tensor(ends)[:, None]
    assert torch.equal(rest.reshape(-1, rest.shape[-1]), whole[behind & ~prompt])


def test_labels_of_tokens_leave_no_prompt() -> None:
    """A model that tags tokens completes nothing: as in the tuner, its prompt is all that is real."""
    inputs = {"input_ids": ids(2, 5, seed=1), "labels": torch.tensor([[-100, 1, 0, 1, -100], [0, 1, 1, 0, 1]])}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForTokenClassification(transformers.BertConfig(vocab_size=40, **sizes)).eval()
    whole = collect(model, inputs, Site(layer=0)).detach()
    assert torch.equal(collect(model, inputs, Site(layer=0, position="l1")).detach()[:, 0], whole[:, 4])


@pytest.mark.parametrize(("stack", "positions"), [("encoder", "l1"), ("encoder", "f2"), ("decoder", "l1")])
def test_a_site_of_a_pair_is_where_the_tuner_edits(stack: str, positions: str) -> None:
    """The same tokens change in a model with an adapter; the encoder's prompt is its input, whatever the labels."""
    inputs = {"input_ids": ids(3, 5, seed=1), "labels": LABELS}
    config = ReftConfig(
        task_type="SEQ_2_SEQ_LM",
        layers_pattern=f"{stack}.block",
        layers_to_transform=0,
        positions=positions,
        init_weights=False,
    )
    place = {"layer": 0, "layers_pattern": f"{stack}.block"}
    site = Site(**place, position=positions)  # type: ignore[arg-type]
    plain = base_model("t5")
    before = collect(plain, inputs, Site(**place)).detach()  # type: ignore[arg-type]
    chosen = collect(plain, inputs, site).detach()
    adapted = get_peft_model(base_model("t5"), config).eval()
    seen: list[Tensor] = []
    handle = (
        adapted.get_base_model()
        .get_submodule(f"{stack}.block.0")
        .register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    )
    adapted(**inputs)
    handle.remove()
    changed = (seen[0] - before).abs().amax(2) > 1e-6
    assert torch.equal(before[changed], chosen.reshape(-1, chosen.shape[-1]))


def test_two_autoencoders_at_one_place_are_refused() -> None:
    def space(seed: int) -> Autoencoder:
        return Autoencoder(
            numbers(3, 4, seed=seed), numbers(3, 4, seed=9), encoder_bias=torch.zeros(3), decoder_bias=torch.zeros(4)
        )

    sites = {"A": Site(module="", space=space(1)), "B": Site(module="", space=space(2))}
    with pytest.raises(SiteError, match="claim the same coordinates"):
        interchange(nn.Identity(), BASE, {"A": SOURCE, "B": OTHER}, sites)


def test_columns_of_a_variable_without_a_source_are_taken_off_too() -> None:
    network, keys = llama(), set[str]()
    network.register_forward_pre_hook(lambda module, args, kwargs: keys.update(kwargs), with_kwargs=True)
    sites = {name: Site(layer=1, position=Column(name), units=[place]) for place, name in enumerate("AB")}
    at: dict[str, Tensor] = {"A": torch.tensor([1, 2]), "B": torch.tensor([0, 0])}
    base, source = {"input_ids": ids(2, 4, seed=1), **at}, {"input_ids": ids(2, 4, seed=2), **at}
    interchange(network, base, {"A": source}, sites)
    assert keys == {"input_ids"}
