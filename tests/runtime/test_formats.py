"""Dtypes, autocast, and what a block may return."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from contract.recording import inputs_of, raw_outputs_of, reader_of
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.interventions import orthonormal_rows


def edit_by_hand(hidden: Tensor, unit: Any, columns: list[int]) -> Tensor:
    """LoReFT from its equation, in float32 at least, on some columns of hidden `[batch, seq, hidden]`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rotation = orthonormal_rows(unit.rotation).to(wide)
    weight, bias = unit.weight.to(wide), unit.bias.to(wide)
    rows = hidden[:, columns].to(wide)
    edited = hidden.clone()
    edited[:, columns] = (rows + (rows @ weight.T + bias - rows @ rotation.T) @ rotation).to(hidden.dtype)
    return edited


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("narrow_adapter", [False, True])
def test_the_edit_is_computed_wide_and_cast_back(name: str, dtype: torch.dtype, narrow_adapter: bool) -> None:
    base = base_model(name, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = ReftConfig(task_type="CAUSAL_LM", init_weights=False, positions="f2+l2")
        model = get_peft_model(base, config, autocast_adapter_dtype=not narrow_adapter).eval()
    blocks = base.get_submodule({"llama": "model.layers", "gpt2": "transformer.h"}[name])
    unit = blocks[1].reft.unit(("default", 0))
    assert unit.rotation.dtype == (dtype if narrow_adapter else torch.float32)
    with torch.no_grad(), raw_outputs_of(blocks[1]) as raw, inputs_of(reader_of(model, name, 1)) as read:
        model(input_ids=token_ids(2, 7))
    assert read[0].dtype == dtype
    expected = edit_by_hand(raw[0], unit, [0, 1, 5, 6])
    assert torch.equal(read[0][:, 2:5], raw[0][:, 2:5])
    # the same to the rounding of the block's own dtype
    torch.testing.assert_close(read[0], expected)


def test_autocast_does_not_narrow_the_edit() -> None:
    model = reft_model("llama", positions="f2+l2")
    block = model.get_base_model().model.layers[1]
    reader, narrow = reader_of(model, "llama", 1), torch.autocast("cpu", torch.bfloat16)
    with torch.no_grad(), narrow, raw_outputs_of(block) as raw, inputs_of(reader) as read:
        model(input_ids=token_ids(2, 7))
    expected = edit_by_hand(raw[0], block.reft.unit(("default", 0)), [0, 1, 5, 6])
    torch.testing.assert_close(read[0], expected, rtol=1e-5, atol=1e-5)  # bfloat16 would be off by 1e-2


def test_training_under_autocast_gives_float32_gradients() -> None:
    model = reft_model("llama", positions="f2+l2", dtype=torch.bfloat16).train()
    ids = token_ids(2, 7)
    labels = torch.where(torch.arange(7) < 4, -100, ids)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "reft_" in name
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


Pair = namedtuple("Pair", "hidden extra")  # what a model may return, made the short way

OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda hidden: hidden,
    "tuple": lambda hidden: (hidden, "extra"),
    "tuple of one": lambda hidden: (hidden,),
    "list": lambda hidden: [hidden, "extra"],
    "named tuple": lambda hidden: Pair(hidden, "extra"),
    "model output": lambda hidden: BaseModelOutput(last_hidden_state=hidden, hidden_states="extra"),
}


class Block(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.wrap = wrap

    def forward(self, hidden: Tensor) -> Any:
        return self.wrap(hidden + self.linear(hidden))


class PlainModel(nn.Module):
    """No model of transformers: blocks that return whatever they return."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=8, num_hidden_layers=2, model_type="plain")
        self.embed = nn.Embedding(32, 8)
        self.blocks = nn.ModuleList([Block(wrap), Block(wrap)])
        self.kinds: list[type] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            output = block(hidden)
            self.kinds.append(type(output))
            assert isinstance(output, Tensor) or len(output) == 1 or output[1] == "extra"
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden


@pytest.mark.parametrize("form", OUTPUTS)
def test_a_block_may_return_a_tensor_or_hold_it_first(form: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = PlainModel(OUTPUTS[form])
        ids = torch.randint(0, 32, (2, 6))
        plain = base(ids)
        model = get_peft_model(base, ReftConfig(init_weights=False, positions="f1+l1", layers_to_transform=[1]))
    changed = (model(ids) != plain).any(-1)
    assert changed.tolist() == [[True, False, False, False, False, True]] * 2
    assert base.kinds[1] is base.kinds[3]
    assert torch.equal(model.unload()(ids), plain)
