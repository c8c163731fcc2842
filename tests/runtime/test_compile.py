"""One graph without a break, and the same edits as without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from contract.open_frames import open_frames
from contract.tiny import reft_model, token_ids

IDS = token_ids(2, 8)
LABELS = torch.where(torch.arange(8) < 5, -100, IDS)
BATCHES: dict[str, dict[str, Any]] = {
    "plain": {"input_ids": IDS},
    "padded": {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 8, [0] * 3 + [1] * 5])},
    "another length": {"input_ids": token_ids(3, 11)},
    "labels": {"input_ids": IDS, "labels": LABELS},
    "packed": {"input_ids": IDS[:1], "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])},
    "stated": {"input_ids": IDS, "intervention_locations": torch.tensor([[[1, 2]], [[5, -1]]])},
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_forward_is_one_graph() -> None:
    model = reft_model("llama", positions="f2+l2")
    compiled = torch.compile(model.get_base_model(), backend="eager", fullgraph=True)
    with torch.no_grad():
        for form, batch in BATCHES.items():
            assert_close(
                compiled(**batch).logits, model(**batch).logits, msg=lambda text, form=form: f"{form}: {text}"
            )
    assert open_frames(model) == []


def test_a_training_step_is_one_graph() -> None:
    model = reft_model("llama", positions="f2+l2").train()
    compiled = torch.compile(model.get_base_model(), backend="aot_eager", fullgraph=True)
    gradients = []
    for forward in (model, compiled):
        forward(input_ids=IDS, labels=LABELS).loss.backward()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        gradients.append({name: parameter.grad.clone() for name, parameter in trained.items()})
        model.zero_grad()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)
