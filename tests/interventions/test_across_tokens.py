"""ReFT-r1 takes a mean over the edited tokens of each sequence: rows of a batch, padded or packed, do not mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from contract.recording import inputs_of, raw_outputs_of
from contract.tiny import reft_model, token_ids
from peft_reft.hub_format.errors import PositionError


def model_with(positions: str, **changes: Any) -> Any:
    given = {"intervention": "reft_r1", "options": {"topk": 2}, "layers_to_transform": [1], "positions": positions}
    return reft_model("llama", **{**given, **changes})


def by_hand(hidden: Tensor, columns: list[int], direction: Tensor) -> Tensor:
    """One sequence `[seq, hidden]`, edited at some columns."""
    w = direction / direction.norm()
    seen = torch.relu(hidden[columns] @ w).sort(descending=True).values[:2]
    edited = hidden.clone()
    edited[columns] += seen.sum() / min(2, len(columns)) * w
    return edited


def run(model: Any, **call: Any) -> tuple[Tensor, Tensor]:
    """The block's output before and after the edit."""
    layers = model.get_base_model().model.layers
    with raw_outputs_of(layers[1]) as raw, inputs_of(layers[2]) as given, torch.no_grad():
        model(**call)
    return raw[0], given[0]


def direction_of(model: Any) -> Tensor:
    return model.get_base_model().model.layers[1].reft.unit(("default", 0)).rotation.detach()[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("positions", "columns"), [("all", range(3, 8)), ("f3", range(3, 6)), ("l1", [7])])
def test_padded_rows(positions: str, columns: Any) -> None:
    model, ids = model_with(positions), token_ids(2, 8)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    before, after = run(model, input_ids=ids, attention_mask=mask)
    assert_close(after[1], by_hand(before[1], list(columns), direction_of(model)))


def test_packed_rows() -> None:
    model, ids = model_with("all"), token_ids(1, 9)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    before, after = run(model, input_ids=ids, position_ids=places)
    w = direction_of(model)
    assert_close(
        after[0], torch.cat([by_hand(before[0, :4], [0, 1, 2, 3], w), by_hand(before[0, 4:], [*range(5)], w)])
    )


def test_two_units_at_one_site_have_their_own_means() -> None:
    model, ids = model_with("f2+l3", share_weights=False), token_ids(2, 7)
    before, after = run(model, input_ids=ids)
    units = model.get_base_model().model.layers[1].reft
    first, second = (units.unit(("default", number)).rotation.detach()[0] for number in (0, 1))
    expected = by_hand(by_hand(before[0], [0, 1], first), [4, 5, 6], second)
    assert_close(after[0], expected)


def test_generation_with_the_prompt_edited_is_exact_and_over_a_cache_refused() -> None:
    ids = token_ids(2, 6)
    model = model_with("prompt")
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    cached, uncached = (model.generate(ids, use_cache=use, **given) for use in (True, False))
    assert torch.equal(cached, uncached)
    with pytest.raises(PositionError, match="whole sequence"):
        model_with("all").generate(ids, **given)
    model_with("all").generate(ids, use_cache=False, **given)
