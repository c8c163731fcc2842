"""Five hundred and twelve adapters and few slots: every request gets its own, whatever was in the slots before."""

from __future__ import annotations

import random

import torch
from torch import Tensor

import peft_reft.integrations.vllm.op  # noqa: F401  # registers the operators
from peft_reft import ReftConfig
from peft_reft.integrations.vllm.editor import Editor
from peft_reft.integrations.vllm.packed import Packed, PackedUnit
from peft_reft.integrations.vllm.pool import Pool
from peft_reft.runtime.views import AdapterView

from .test_tracking import new, step

LAYERS, HIDDEN, RANK, MANY, SLOTS = 2, 16, 4, 512, 64
CPU = torch.device("cpu")


def adapter(number: int) -> Packed:
    """A random edit of its own, of rank 1 to 4, on the last token of a prompt."""
    generator = torch.Generator().manual_seed(number)
    rank = 1 + number % RANK
    source, projection = (torch.randn(LAYERS, rank, HIDDEN, generator=generator) for _ in range(2))
    bias = torch.randn(LAYERS, rank, generator=generator)
    view = AdapterView(f"a{number}", ReftConfig(positions="l1", r=rank).groups())
    unit = PackedUnit(tuple(range(LAYERS)), source, bias, projection)
    return Packed(view, {0: unit}, {}, {0: frozenset(range(LAYERS))}, 0)


def edited(packed: Packed, layer: int, hidden: Tensor) -> Tensor:
    unit = packed.affine[0]
    inner = hidden.double() @ unit.source[layer].double().mT + unit.bias[layer].double()
    return (hidden.double() + inner @ unit.projection[layer].double()).float()


def test_five_hundred_adapters_share_sixty_four_slots() -> None:
    made = Editor(LAYERS, Pool(layers=LAYERS, slots=SLOTS, rank=RANK, hidden_size=HIDDEN, device=CPU))
    made.adapters = {f"a{number}": adapter(number) for number in range(MANY)}
    choose, generator = random.Random(0), torch.Generator().manual_seed(0)
    for turn, count in enumerate((SLOTS, 3, SLOTS + 30, 1, SLOTS, SLOTS // 2)):
        names = choose.sample(sorted(made.adapters), count)
        lengths = [choose.randint(1, 3) for _ in names]
        requests = [f"{turn}.{name}" for name in names]
        fresh = [new(*pair, adapter=name) for *pair, name in zip(requests, lengths, names, strict=True)]
        made.begin(step(dict(zip(requests, lengths, strict=True)), fresh=fresh))
        with made.forward(requests, lengths, None):
            for layer in range(LAYERS):
                hidden = torch.randn(sum(lengths), HIDDEN, generator=generator)
                before = hidden.clone()
                torch.ops.peft_reft.edit_plain(hidden, layer)
                last = torch.tensor(lengths).cumsum(0) - 1
                for row, name in zip(last.tolist(), names, strict=True):
                    expected = edited(made.adapters[name], layer, before[row])
                    torch.testing.assert_close(hidden[row], expected, atol=1e-4, rtol=1e-5)
                rest = torch.ones(len(hidden), dtype=torch.bool)
                rest[last] = False
                assert torch.equal(hidden[rest], before[rest])
    report = made.report()
    assert report["adapters"] == MANY
    assert report["slots_used"] == SLOTS
