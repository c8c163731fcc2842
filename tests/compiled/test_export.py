"""`torch.export` of the prefill: outputs of eager mode for any batch and length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export
from torch.testing import assert_close

from .counting import batch, reft

ROWS, LONGEST = 64, 512


def exported(model: torch.nn.Module, shortest: int) -> Any:
    sizes = {0: Dim("rows", min=1, max=ROWS), 1: Dim("length", min=shortest, max=LONGEST)}
    shapes = {"input_ids": sizes, "attention_mask": sizes, "use_cache": None}
    with torch.no_grad():
        return export(model, (), {**batch(2, 9, left=2), "use_cache": False}, dynamic_shapes=shapes).module()


@torch.no_grad()
def logits(model: Any, given: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**given, use_cache=False).logits
    return found[given["attention_mask"].bool()]


def check_export(name: str, kind: str, positions: str, shortest: int) -> None:
    model = reft(name, intervention=kind, positions=positions)
    program = exported(model.get_base_model(), shortest)
    for given in (batch(2, 9, left=2), batch(1, shortest), batch(5, 21, right=4), batch(3, 12, left=5)):
        assert_close(logits(program, given), logits(model, given))
    with model.disable_adapter():
        assert not torch.equal(logits(program, batch(2, 9)), logits(model, batch(2, 9)))


def test_a_program_gives_the_outputs_of_eager_mode() -> None:
    check_export("llama", "loreft", "f2+l2", 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("kind", "positions", "shortest"),
    [
        ("noreft", "p[1:-1]", 2),
        ("gated", "prompt", 2),
        ("red", "all-f1", 2),
        ("bias", "l3", 4),
        ("consreft", "f2", 3),
        ("direft", "all", 2),
    ],
)
def test_a_program_of_every_kind_gives_the_outputs_of_eager_mode(
    name: str, kind: str, positions: str, shortest: int
) -> None:
    check_export(name, kind, positions, shortest)
