"""bitsandbytes' layout of 4-bit weights for inference on a CPU: whose fault wrong gradients are, and what is refused.

Processors with AVX512-BF16 take it. Elsewhere a product of the same values stands for theirs, which has no backward
either: the weights are moved by bitsandbytes' own code in both cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from contract.tiny import token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError
from runtime.base_forms import nf4, quantised

bitsandbytes = pytest.importorskip("bitsandbytes")

IDS = token_ids(2, 9)
LABELS = torch.where(torch.arange(9) < 6, -100, IDS)

pytestmark = [
    pytest.mark.skipif(
        not hasattr(bitsandbytes.functional, "_convert_weight_packed_for_cpu"),
        reason="this bitsandbytes has one layout of 4-bit weights",
    ),
    pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered:UserWarning"),
]


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One with AVX512-BF16, real or stood for."""
    if bitsandbytes.functional.has_avx512bf16():
        yield
        return
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    product = bitsandbytes.functional.gemv_4bit

    def of_packed(hidden: Tensor, weight: Tensor, *given: Any, state: Any, **named: Any) -> Tensor:
        if not getattr(state, "packing_format_for_cpu", False):
            return product(hidden, weight, *given, state=state, **named)
        return (hidden.detach() @ weights_of(weight, state).T.to(hidden.dtype)).detach()

    monkeypatch.setattr(bitsandbytes.functional, "gemv_4bit", of_packed)
    yield


def weights_of(packed: Tensor, state: Any) -> Tensor:
    """`[out, in]`, written from the layout: nibbles of 32 rows side by side, scales `[in / block, out]`."""
    rows, columns = state.shape
    low, high = packed.reshape(-1, 32) & 0xF, packed.reshape(-1, 32) >> 4
    codes = torch.cat([low, high], 1).reshape(rows // 32, columns // 2, 32, 2).transpose(1, 2).reshape(rows, columns)
    scales = state.absmax.float().T.repeat_interleave(state.blocksize, 1)
    return state.code[codes.long()] * scales


def linear() -> Any:
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    return layer.to("cpu")


def input_gradient(layer: Any) -> Tensor:
    """Of the sum of the layer's output and its input."""
    hidden = torch.ones(3, 64, requires_grad=True)
    (layer.train()(hidden) + hidden).sum().backward()
    assert hidden.grad is not None
    return hidden.grad


def test_a_gradient_is_lost_in_bitsandbytes_alone() -> None:
    """The whole program for a report; where it fails, bitsandbytes has mended it, and our refusal can go."""
    layer = linear()
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    expected = (1 + weight.sum(0)).expand(3, 64)
    torch.testing.assert_close(input_gradient(layer), expected)
    layer = linear().eval()
    with torch.no_grad():
        layer(torch.ones(3, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = input_gradient(layer)
    assert torch.equal(found, torch.ones(3, 64))  # the layer's own part is missing


def base(folder: Path) -> nn.Module:
    return quantised(nf4)(folder)


def edited(model: nn.Module, **fields: Any) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(
            model, ReftConfig(task_type="CAUSAL_LM", r=2, positions="f2+l2", init_weights="paper", **fields)
        )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=LABELS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def evaluate(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(input_ids=IDS, labels=LABELS)


def packed(model: nn.Module) -> list[str]:
    return [
        path
        for path, part in model.named_modules()
        if getattr(getattr(getattr(part, "weight", None), "quant_state", None), "packing_format_for_cpu", False)
    ]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_an_evaluation_between_steps_leaves_gradients_as_they_are(tmp_path: Path, mode: bool) -> None:
    model = edited(base(tmp_path))
    expected = gradients(model.train(mode))
    evaluate(model)
    assert packed(model) == []
    found = gradients(model.train(mode))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_an_evaluation_before_the_first_step_leaves_them_too(tmp_path: Path) -> None:
    """As `Trainer` does with `eval_on_start`: the model was in training mode once."""
    expected = gradients(edited(base(tmp_path)).train())
    model = edited(base(tmp_path)).train()
    evaluate(model)
    found = gradients(model.train())
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("who", ["base", "model"])
def test_what_was_packed_before_is_refused_where_it_would_be_trained(tmp_path: Path, who: str) -> None:
    plain = base(tmp_path)
    if who == "base":
        evaluate(plain)
    model = edited(plain)
    evaluate(model)
    assert packed(model) != []
    with pytest.raises(ConfigError, match=r"q_proj, have their 4-bit weights in bitsandbytes' layout"):
        model.train()(input_ids=IDS, labels=LABELS)
    with pytest.raises(ConfigError, match="load the base once more"):
        model.eval()(input_ids=IDS, labels=LABELS)
    evaluate(model)


def test_inference_keeps_the_layout_and_an_adapter_that_is_taken_off_gives_the_choice_back(tmp_path: Path) -> None:
    model = edited(base(tmp_path))
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(base(tmp_path), str(tmp_path / "adapter")).eval()
    loaded(input_ids=IDS)  # frozen: gradients are on, and nobody wants one
    evaluate(loaded)
    assert packed(loaded) != []
    model.train()
    evaluate(model)
    plain = model.unload()
    evaluate(plain)
    assert packed(plain) != []
