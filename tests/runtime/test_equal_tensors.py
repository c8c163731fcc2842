"""Adapters of other kinds whose tensors are equal edit by their own equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import BLOCKS, base_model, reft_model, token_ids
from peft_reft import ReftConfig

IDS = token_ids(2, 6)
COLUMNS = [0, 1, 4, 5]
Equation = Callable[[Tensor, dict[str, Tensor]], Tensor]


def rows_of(raw: Tensor) -> Tensor:
    """R by the reduced QR of rawᵀ with a positive diagonal."""
    columns, triangle = torch.linalg.qr(raw.T)
    return (columns * triangle.diagonal().sign()).T


def loreft(h: Tensor, p: dict[str, Tensor]) -> Tensor:
    rotation = rows_of(p["rotation"])
    return (h @ p["weight"].T + p["bias"] - h @ rotation.T) @ rotation


def direft_orthogonal(h: Tensor, p: dict[str, Tensor]) -> Tensor:
    return (h @ p["weight"].T + p["bias"]) @ rows_of(p["rotation"])


def noreft(h: Tensor, p: dict[str, Tensor]) -> Tensor:
    return (h @ p["weight"].T + p["bias"] - h @ p["projection"].T) @ p["projection"]


def direft(h: Tensor, p: dict[str, Tensor]) -> Tensor:
    return (h @ p["weight"].T + p["bias"]) @ p["projection"]


EQUATIONS: dict[str, Equation] = {f.__name__: f for f in (loreft, direft_orthogonal, noreft, direft)}


@torch.no_grad()
def by_hooks(kind: str, tensors: list[dict[str, Tensor]], dtype: torch.dtype) -> Tensor:
    base = base_model("gpt2", dtype=dtype)

    def edits(number: int) -> Callable[..., Tensor]:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            h = output.clone()
            h[:, COLUMNS] = h[:, COLUMNS] + EQUATIONS[kind](h[:, COLUMNS], tensors[number])
            return h

        return hook

    for number, block in enumerate(base.transformer.h):
        block.register_forward_hook(edits(number))
    return base(input_ids=IDS).logits


def tensors_of(model: Any, adapter: str) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = [{} for _ in range(BLOCKS)]
    for name, tensor in model.named_parameters():
        parts = name.split(".")
        if "reft" in parts and adapter in parts:
            found[int(parts[parts.index("h") + 1])][parts[-1]] = tensor.detach().double()
    return found


def pair(first: str, second: str) -> Any:
    """A model with an adapter `default` of one kind and one `other` of another, whose tensors are the same."""
    model = reft_model("gpt2", dtype=torch.float64, positions="f2+l2", intervention=first)
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", intervention=second, init_weights=False)
    model.add_adapter("other", config)
    with torch.no_grad():
        for mine, theirs in zip(tensors_of(model, "other"), tensors_of(model, "default"), strict=True):
            assert mine.keys() == theirs.keys()
        named = dict(model.named_parameters())
        for name, tensor in named.items():
            if ".other." in name:
                tensor.copy_(named[name.replace(".other.", ".default.")])
    return model.double().eval()


@pytest.mark.parametrize(
    ("first", "second"),
    [("loreft", "direft_orthogonal"), ("direft_orthogonal", "loreft"), ("noreft", "direft"), ("direft", "noreft")],
)
def test_a_switch_to_another_kind_with_equal_tensors(first: str, second: str) -> None:
    model = pair(first, second)
    for adapter, kind in (("default", first), ("other", second), ("default", first)):
        model.set_adapter(adapter)
        with torch.no_grad():
            logits = model(input_ids=IDS).logits
        assert_close(logits, by_hooks(kind, tensors_of(model, adapter), torch.float64), rtol=0, atol=1e-8)


def test_parameters_that_are_made_double_are_computed_with_anew() -> None:
    model = reft_model("gpt2", dtype=torch.float64, positions="f2+l2", intervention="loreft").eval()
    for name, tensor in model.named_parameters():
        if ".reft." in name:
            tensor.data = tensor.data.float()
    with torch.no_grad():
        model(input_ids=IDS)
        logits = model.double()(input_ids=IDS).logits
    assert_close(logits, by_hooks("loreft", tensors_of(model, "default"), torch.float64), rtol=0, atol=1e-12)
