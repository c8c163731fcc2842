"""Named subspaces: their edits add up, each trains alone, later ones leave earlier ones as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig, set_subspaces
from peft_reft.hub_format.errors import ConfigError

NAMED: dict[str, Any] = {"style": [0, 2], "facts": [2, 4]}


def model_with(kind: str = "loreft", **changes: Any) -> PeftModel:
    given = {"intervention": kind, "r": 4, "positions": "prompt", "subspaces": NAMED, "layers_to_transform": [2]}
    return reft_model("llama", **{**given, **changes})


def unit_of(model: PeftModel) -> Any:
    return model.get_base_model().model.layers[2].reft.unit(("default", 0))


@pytest.mark.parametrize(
    "kind", ["loreft", "noreft", "direft", "direft_orthogonal", "consreft", "lobireft", "rotated_interchange"]
)
def test_the_edits_of_all_subspaces_add_up_to_the_whole(kind: str) -> None:
    model = model_with(kind)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    whole = unit_of(model)(hidden)
    parts = []
    for name in NAMED:
        set_subspaces(model, "default", [name])
        parts.append(unit_of(model)(hidden))
        assert not torch.equal(parts[-1], whole)
    assert_close(sum(parts), whole, rtol=1e-4, atol=1e-4)
    set_subspaces(model, "default", ["facts", "style"])
    assert_close(unit_of(model)(hidden), whole)
    set_subspaces(model, "default", None)
    assert torch.equal(unit_of(model)(hidden), whole)


def test_what_is_off_gets_no_gradient_and_earlier_subspaces_stay() -> None:
    model, ids = model_with(), token_ids(2, 6)
    set_subspaces(model, "default", ["style"])
    earlier = model(ids).logits.detach()
    set_subspaces(model, "default", ["facts"])
    model(ids).logits.sum().backward()
    unit = unit_of(model)
    for tensor in (unit.rotation, unit.weight, unit.bias):
        assert not tensor.grad[:2].any()
        assert tensor.grad[2:].any()
    with torch.no_grad():
        for tensor in (unit.rotation, unit.weight, unit.bias):
            tensor -= 0.1 * tensor.grad
    set_subspaces(model, "default", ["style"])
    assert_close(model(ids).logits, earlier, rtol=0, atol=1e-6)


def test_names_are_saved_and_the_choice_is_not(tmp_path: Path) -> None:
    model, ids = model_with(), token_ids(2, 6)
    whole = model(ids).logits
    set_subspaces(model, "default", ["style"])
    part = model(ids).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert torch.equal(again(ids).logits, whole)
    set_subspaces(again, "default", ["style"])
    assert torch.equal(again(ids).logits, part)


@pytest.mark.parametrize(
    "wrong", [{}, {"a": [0]}, {"a": [0, 5]}, {"a": [1, 1]}, {"a": [0, 2], "b": [1, 3]}, {"a b": [0, 1]}, [["a", 0, 1]]]
)
def test_wrong_ranges_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="subspaces"):
        ReftConfig(r=4, subspaces=wrong)


def test_a_kind_without_rows_has_no_subspaces() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        ReftConfig(intervention="bias", subspaces=NAMED)


@pytest.mark.parametrize("names", [[], "style", ["unknown"]])
def test_an_unknown_choice_is_refused(names: Any) -> None:
    with pytest.raises(ConfigError, match="style, facts"):
        set_subspaces(model_with(), "default", names)
