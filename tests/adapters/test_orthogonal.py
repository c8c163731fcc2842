"""`orthogonal_to`: a new adapter's R keeps out of the rows of former ones, trained, saved and reloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import BLOCKS, HIDDEN, base_model, reft_model, token_ids
from peft_reft import ReftConfig, scale_adapter
from peft_reft.hub_format.errors import ConfigError, ReftError
from peft_reft.interventions import orthonormal_rows

FIRST: dict[str, Any] = {"r": 3, "positions": "f2+l2", "init_weights": False}


def two_adapters(first: dict[str, Any] = FIRST, **second: Any) -> PeftModel:
    model = reft_model("llama", **first)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.add_adapter("second", made(**second))
    return model


def made(**fields: Any) -> ReftConfig:
    given = {"r": 2, "positions": "prompt", "init_weights": False, "orthogonal_to": ["default"], **fields}
    return ReftConfig(task_type="CAUSAL_LM", **given)


def unit_of(model: PeftModel, adapter: str, layer: int, number: int = 0) -> Any:
    return model.get_base_model().model.layers[layer].reft.unit((adapter, number))


def rows_of(unit: Any) -> Tensor:
    """R by Gram-Schmidt, one row after the other: first what is taken, then the raw rows."""
    done: list[Tensor] = []
    taken = unit.taken if unit.taken is not None else torch.zeros(0, unit.hidden_size)
    for row in torch.cat([taken, unit.rotation.detach()]).double():
        for other in done:
            row = row - (row @ other) * other
        done.append(row / row.norm())
    return torch.stack(done[len(taken) :])


def train(model: PeftModel, steps: int = 4) -> None:
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".second." in name)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    ids = token_ids(3, 8)
    labels = ids.clone()
    labels[:, :5] = -100
    model.train()
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


@torch.no_grad()
def logits(model: PeftModel) -> Tensor:
    return model(input_ids=token_ids(2, 6)).logits


@pytest.mark.parametrize("kind", ["loreft", "direft_orthogonal", "consreft", "lobireft", "gated"])
def test_r_is_that_of_gram_schmidt_after_what_is_taken_and_orthogonal_to_it_after_training(kind: str) -> None:
    model = two_adapters(intervention=kind)
    train(model)
    for layer in range(BLOCKS):
        first, second = unit_of(model, "default", layer), unit_of(model, "second", layer)
        rotation = orthonormal_rows(second.raw_rotation())
        assert_close(rotation.double(), rows_of(second), atol=1e-6, rtol=0)
        assert (rotation.double() @ rows_of(first).mT).abs().max() < 1e-6
        assert_close(rotation @ rotation.mT, torch.eye(2).to(rotation), atol=1e-6, rtol=0)
        inside = first.rotation.detach().double()
        assert (second.rotation.detach().double() @ inside.mT).abs().max() > 1e-3  # the raw matrix is left alone


def test_training_moves_the_new_adapter_and_neither_the_former_nor_what_is_taken() -> None:
    model = two_adapters()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(".second." in name and not name.endswith("complement") for name in moved)


def test_the_identity_start_is_the_identity() -> None:
    model = two_adapters(init_weights=None)
    model.set_adapter("second")
    with model.disable_adapter():
        base = logits(model)
    assert_close(logits(model), base, atol=1e-5, rtol=1e-5)


def test_of_three_in_a_chain_each_keeps_out_of_both_others() -> None:
    model = two_adapters()
    model.add_adapter("third", made(orthogonal_to=["default", "second"]))
    for layer in range(BLOCKS):
        third = orthonormal_rows(unit_of(model, "third", layer).raw_rotation())
        for name in ("default", "second"):
            other = rows_of(unit_of(model, name, layer))
            assert (third.double() @ other.mT).abs().max() < 1e-6
        assert unit_of(model, "third", layer).taken.shape == (5, HIDDEN)


def test_equal_rows_of_two_former_adapters_are_taken_once() -> None:
    model = two_adapters(orthogonal_to=None, r=3)
    for layer in range(BLOCKS):
        one, other = unit_of(model, "default", layer), unit_of(model, "second", layer)
        with torch.no_grad():
            other.rotation.copy_(2.0 * one.rotation.flip(0))
    model.add_adapter("third", made(orthogonal_to=["default", "second"]))
    assert unit_of(model, "third", 0).taken.shape == (3, HIDDEN)


def test_only_sites_in_common_take_anything() -> None:
    model = two_adapters({**FIRST, "layers_to_transform": [1]})
    assert [unit_of(model, "second", layer).taken is None for layer in range(BLOCKS)] == [True, False, True]
    other = two_adapters({**FIRST, "component": "block_input"}, component="block_output")
    assert all(unit_of(other, "second", layer, 0).taken is None for layer in range(BLOCKS))


def test_it_loads_without_the_former_adapter_with_equal_logits_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = two_adapters()
    train(model)
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(base_model("llama"), tmp_path / "second", adapter_name="alone")
    model.set_adapter("second")
    assert torch.equal(logits(alone), logits(model))
    again = PeftModel.from_pretrained(base_model("llama"), tmp_path, is_trainable=True)
    again.load_adapter(tmp_path / "second", "second", is_trainable=True)
    train(again)
    train(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    content = {
        folder: json.loads((tmp_path / folder / "adapter_config.json").read_text())["reft"]
        for folder in (".", "second")
    }
    assert content["second"]["spec_version"] == "1.2"
    assert content["second"]["orthogonal_to"] == ["default"]
    assert content["."]["spec_version"] == "1.0"
    assert "orthogonal_to" not in content["."]


def test_a_weighted_sum_is_exact_and_needs_no_directions() -> None:
    model = two_adapters()
    train(model)
    model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "sum")
    assert unit_of(model, "sum", 0).taken is None
    model.base_model.set_adapter(["default", "second"])
    scale_adapter(model, "default", 0.5)
    scale_adapter(model, "second", 2.0)
    together = logits(model)
    model.set_adapter("sum")
    assert_close(logits(model), together, atol=1e-5, rtol=1e-5)


def test_rows_of_one_batch_give_what_each_adapter_gives_alone() -> None:
    model = two_adapters().eval()
    ids = token_ids(2, 6)
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=["default", "second"]).logits
        for row, name in enumerate(("default", "second")):
            model.set_adapter(name)
            assert_close(model(input_ids=ids).logits[row], mixed[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"orthogonal_to": ["nobody"]}, "nobody"),
        ({"orthogonal_to": ["second"]}, "second"),
        ({"orthogonal_to": []}, "orthogonal_to"),
        ({"orthogonal_to": "default"}, "orthogonal_to"),
        ({"orthogonal_to": ["default", "default"]}, "orthogonal_to"),
        ({"intervention": "bias"}, "no R"),
        ({"r": HIDDEN - 2}, "leaves"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_model_as_it_was(fields: dict[str, Any], told: str) -> None:
    model = reft_model("llama", **FIRST)
    before = set(model.state_dict())
    with pytest.raises(ConfigError, match=told):
        model.add_adapter("second", made(**fields))
    assert set(model.state_dict()) == before


def test_former_adapters_without_an_r_are_refused() -> None:
    with pytest.raises(ReftError, match="none of them has an R"):
        two_adapters({"intervention": "direft", "positions": "l1"})
