"""One tensor of an adapter frozen, the others learn: gradients as if all learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import reft_model, token_ids


@pytest.mark.parametrize("kind", ["direft", "noreft", "loreft"])
@pytest.mark.parametrize("frozen", ["weight", "bias", "rotation", "projection"])
def test_a_tensor_that_is_frozen_beside_others_that_learn(kind: str, frozen: str) -> None:
    """Every gradient is that of the same model with all of them learning."""
    ids = token_ids(2, 6)
    labels = ids.clone()
    labels[:, :4] = -100

    def gradients(*, keep: bool) -> dict[str, Tensor]:
        model = reft_model("gpt2", dtype=torch.float64, positions="f2+l2", intervention=kind).train()
        for name, parameter in model.named_parameters():
            if not keep and name.endswith(f".{frozen}"):
                parameter.requires_grad_(False)
        model(input_ids=ids, labels=labels).loss.backward()
        return {
            name: parameter.grad
            for name, parameter in model.named_parameters()
            if ".reft." in name and parameter.grad is not None
        }

    found, whole = gradients(keep=False), gradients(keep=True)
    assert found.keys() == {name for name in whole if not name.endswith(f".{frozen}")}
    for name, gradient in found.items():
        assert_close(gradient, whole[name])
