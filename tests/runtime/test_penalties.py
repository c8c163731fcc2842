"""What a kind adds to the loss: once per training forward, of the edited rows alone, and never where no loss is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import reft_model, token_ids
from peft_reft import Intervention, register_intervention
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.kinds import _KINDS

KIND = "penalised"
FIRST = 4
"""The column where the answer starts."""


@pytest.fixture(scope="module", autouse=True)
def kind() -> Iterator[None]:
    @register_intervention(KIND)
    class Penalised(Intervention):
        """A vector, the square of its length, and how far the edited rows reach along it."""

        tensors = {"shift": ("hidden",)}  # noqa: RUF012  # the base class's declaration

        def edit_delta(self, hidden: Tensor) -> Tensor:
            return self.parameter("shift", hidden).expand_as(hidden)

        def penalty(self) -> Tensor:
            return self.shift.square().sum()

        def row_penalty(self, hidden: Tensor) -> Tensor:
            return (hidden * self.shift).sum(-1)

    yield
    _KINDS.pop(KIND)


def model_with(kind: str = KIND, **fields: Any) -> PeftModel:
    return reft_model("llama", intervention=kind, positions="f2+l1", **fields).double().train()


def batch(rows: int = 3) -> dict[str, Tensor]:
    ids = token_ids(rows, 8)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    columns = torch.arange(8)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(columns < FIRST, -100, ids)}


def units_of(model: PeftModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Intervention)]


def by_hand(model: PeftModel, given: dict[str, Tensor]) -> Tensor:
    """The mean over the edited tokens, `f2+l1`, of what plain hooks see before each edit."""
    seen: list[Tensor] = []
    blocks = model.get_base_model().model.layers
    with torch.no_grad():
        handles = [block.register_forward_hook(lambda m, a, out: seen.append(out), prepend=True) for block in blocks]
        model(**given)
    for handle in handles:
        handle.remove()
    edited = torch.zeros_like(given["input_ids"], dtype=torch.bool)
    for row, real in enumerate(given["attention_mask"].tolist()):
        prompt = [column for column in range(FIRST) if real[column]]
        edited[row, [*prompt[:2], prompt[-1]]] = True
    total = torch.zeros((), dtype=torch.float64)
    for unit, hidden in zip(units_of(model), seen, strict=True):
        total = total + (unit.shift**2).sum() + (hidden[edited] @ unit.shift).mean()
    return total


def test_the_loss_of_training_is_that_of_evaluation_and_the_penalties() -> None:
    model, given = model_with(), batch()
    expected = by_hand(model, given)
    loss = model(**given).loss
    assert_close(loss - model.eval()(**given).loss, expected.to(loss.dtype), rtol=1e-5, atol=1e-5)
    assert abs(float(expected)) > 1


def test_gradients_are_those_of_the_sum() -> None:
    model, given = model_with(layers_to_transform=[0]), batch()
    (unit,) = units_of(model)
    model(**given).loss.backward()
    whole, unit.shift.grad = unit.shift.grad, None
    model.eval()(**given).loss.backward()
    plain = unit.shift.grad
    hidden: list[Tensor] = []
    block = model.get_base_model().model.layers[0]
    block.register_forward_hook(lambda m, a, out: hidden.append(out.detach()), prepend=True)
    with torch.no_grad():
        model(**given)
    rows = torch.stack([hidden[0][row, columns].sum(0) for row, columns in enumerate(([2, 3], [0, 1, 3], [0, 1, 3]))])
    assert_close(whole - plain, 2 * unit.shift.detach() + rows.sum(0) / 8, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["tuple", "no labels", "no gradients", "frozen", "evaluation", "backbone"])
def test_where_it_is_added_and_where_not(how: str) -> None:
    model, given = model_with(), batch()
    plain = float(model.eval()(**given).loss)
    model.train()
    if how == "tuple":
        assert float(model(**given, return_dict=False)[0]) == float(model(**given).loss) != plain
    elif how == "no labels":
        given["prompt_lengths"] = torch.tensor([2, 4, 4])
        del given["labels"]
        assert model(**given).get("loss") is None
    elif how == "no gradients":
        with torch.no_grad():
            assert float(model(**given).loss) == plain
    elif how == "frozen":
        model.requires_grad_(False)
        assert float(model(**given).loss) == plain
    elif how == "evaluation":
        assert float(model.eval()(**given).loss) == plain
    else:
        backbone = model.get_base_model().model
        lengths = torch.tensor([2, 4, 4])
        given = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
        assert backbone(**given, prompt_lengths=lengths).last_hidden_state.requires_grad


def gradients(model: PeftModel, given: dict[str, Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    model.zero_grad()
    model(**given).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("component", ["block_output", "attention_output", "mlp_output"])
@pytest.mark.parametrize("kind", [KIND, "distribution"])
def test_a_block_that_is_recomputed_adds_it_once(kind: str, component: str) -> None:
    options = {"penalty": 0.5} if kind == "distribution" else None
    model, given = model_with(kind, component=component, options=options), batch()
    expected = gradients(model, given)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    for found, wanted in zip(gradients(model, given), expected, strict=True):
        assert_close(found, wanted)


def test_reentrant_checkpointing_of_a_rows_penalty_is_refused_inside_of_a_block() -> None:
    model, given = model_with(component="mlp_output"), batch()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ConfigError, match="use_reentrant"):
        model(**given)


def test_two_forwards_before_one_backward_have_their_own() -> None:
    model, given = model_with(layers_to_transform=[0]), batch()
    once = gradients(model, given)
    model.zero_grad()
    (model(**given).loss + model(**given).loss).backward()
    assert_close([p.grad for p in model.parameters() if p.requires_grad], [2 * grad for grad in once])


def test_the_parts_of_an_accumulated_batch_add_up_to_one_penalty() -> None:
    model, given = model_with(layers_to_transform=[0]), batch(2)
    given["labels"][0, :6] = -100
    del given["attention_mask"]
    supervised = int((given["labels"][:, 1:] != -100).sum())
    given["prompt_lengths"] = torch.tensor([4, 4])
    (unit,) = units_of(model)
    type(unit).row_penalty, kept = Intervention.row_penalty, type(unit).row_penalty
    try:
        whole = gradients(model, {**given, "num_items_in_batch": torch.tensor(supervised)})
        assert_close(whole, gradients(model, given))
        model.zero_grad()
        for row in range(2):
            part = {name: value[row : row + 1] for name, value in given.items()}
            model(**part, num_items_in_batch=torch.tensor(supervised)).loss.backward()
        assert_close([p.grad for p in model.parameters() if p.requires_grad], whole)
    finally:
        type(unit).row_penalty = kept


def test_the_model_compiles_and_gives_the_same_loss() -> None:
    model, given = model_with(layers_to_transform=[0, 1]), batch()
    del given["attention_mask"]
    expected = model(**given).loss
    assert_close(torch.compile(model, backend="eager")(**given).loss, expected)


def test_a_penalty_that_is_no_number_is_refused() -> None:
    model, given = model_with(layers_to_transform=[0]), batch()
    (unit,) = units_of(model)
    unit.penalty = lambda: unit.shift
    with pytest.raises(ConfigError, match=r"gave \[32\]"):
        model(**given)


def test_a_forward_that_edits_nothing_adds_nothing_of_rows() -> None:
    model, given = model_with("distribution", options={"penalty": 1.0}), batch()
    plain = model.eval()(**given).loss
    nowhere = torch.full((3, 1, 1), -1)
    assert model.train()(**given).loss != plain
    unedited = model(**given, intervention_locations=nowhere).loss
    with model.disable_adapter():
        assert torch.equal(unedited, model(**given).loss)
