"""The kinds of 2024 to 2026 in whole models against their papers' formulas, written anew and put in by plain hooks.

Models, components, positions and padding that the other tests of these kinds do not have; logits, and the gradient of
every parameter of the adapter, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from contract.tiny import BY_NAME, HIDDEN, base_model, reft_model, token_ids
from peft_reft import Intervention

LENGTH = 9
MASKS = {
    "right": [[1] * 5 + [0] * 4, [1] * 9, [1] * 7 + [0] * 2],  # Gemma 2 gives NaN in float64 behind padding
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9, [0, 1, 1, 1, 1, 1, 1, 1, 1]],
    "both": [[0, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0, 0], [1] * 9],
}
Tensors = dict[str, Tensor]


def unit_rows(raw: Tensor) -> Tensor:
    """Gram and Schmidt, one row after the other: what the QR map with a positive diagonal is."""
    rows: list[Tensor] = []
    for row in raw:
        for other in rows:
            row = row - (row @ other) * other
        rows.append(row / row.norm())
    return torch.stack(rows)


def steering(h: Tensor, p: Tensors, act: Any) -> Tensor:
    """PrOSV (2605.05983): h + α v."""
    return h + torch.einsum("o,h->h", p["factor"], p["direction"])


def of_heads(h: Tensor, p: Tensors, act: Any) -> Tensor:
    """LoFiT (2406.01563) and JoLA (2502.01179): every head z becomes (1 + g₂ A) ⊙ z + g₁ v."""
    count = 4
    parts = h.unflatten(-1, (count, -1))
    scale, shift = (p[name].unflatten(0, (count, -1)) for name in ("scale", "shift"))
    if "scale_gate" in p:  # 1712.01312, equation 13, with the stretch from −0.1 to 1.1
        scale, shift = (
            torch.clamp(torch.sigmoid(p[gate]) * 1.2 - 0.1, 0, 1)[:, None] * value
            for gate, value in (("scale_gate", scale), ("shift_gate", shift))
        )
    return ((1 + scale) * parts + shift).flatten(-2)


def around(h: Tensor, p: Tensors, act: Any) -> Tensor:
    """D-Intervention (2506.06686) after training: the part of h in R's span gives way to Rᵀμ."""
    rotation = unit_rows(p["rotation"])
    outside = h - h @ rotation.T @ rotation
    return outside + act(h @ p["weight"].T + p["bias"]) @ rotation


def clamped(h: Tensor, p: Tensors, act: Any) -> Tensor:
    """(1 − s) h + s (h with its coordinate along v̂ clipped)."""
    direction = p["rotation"][0] / p["rotation"][0].square().sum().sqrt()
    along = (h * direction).sum(-1)
    bounded = torch.where(along < p["low"], p["low"], along)
    bounded = torch.where(bounded > p["high"], p["high"], bounded)
    return h + p["strength"] * (bounded - along)[..., None] * direction


def post_block(h: Tensor, p: Tensors, act: Any) -> Tensor:
    """Post-block steering (2603.00425): h + W_u φ(W_d h)."""
    return h + torch.einsum("...r,rh->...h", act(torch.einsum("rh,...h->...r", p["down"], h)), p["up"])


@dataclass(frozen=True)
class Case:
    """A kind somewhere: `path` is the module of block 1, whose output (or input) is edited."""

    kind: str
    edit: Callable[[Tensor, Tensors, Any], Tensor]
    architecture: str
    component: str
    path: str
    positions: str
    padding: str
    of_input: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}-{self.architecture}-{self.component}-{self.positions}"


GATED = {"options": {"heads": 4, "gates": True}}
CASES = (
    Case("prosv", steering, "gemma2", "mlp_output", "post_feedforward_layernorm", "p[1:-1]", "right"),
    Case("prosv", steering, "opt", "block_input", "", "f1+l2", "both", of_input=True),
    Case("heads", of_heads, "gemma2", "heads", "self_attn.o_proj", "f2+l1", "right", of_input=True,
         fields={"options": {"heads": 4}}),
    Case("heads", of_heads, "gpt_neox", "heads", "attention.dense", "all", "left", of_input=True, fields=GATED),
    Case("heads", of_heads, "gpt2", "heads", "attn.c_proj", "p[1:3]", "both", of_input=True, fields=GATED),
    Case("distribution", around, "gpt2", "attention_output", "attn", "l3", "left", fields={"r": 5}),
    Case("distribution", around, "qwen3", "block_output", "", "all-f1", "both", fields={"r": 1, "act_fn": "tanh"}),
    Case("clamp", clamped, "phi", "block_output", "", "all", "both"),
    Case("clamp", clamped, "gpt_neox", "mlp_output", "mlp", "p[1:-1]", "left"),
    Case("adapter", post_block, "opt", "block_output", "", "all", "left", fields={"act_fn": "silu", "r": 7}),
    Case("adapter", post_block, "gemma2", "attention_output", "post_attention_layernorm", "l2", "right",
         fields={"r": 2}),
)  # fmt: skip
ACTIVATIONS = {None: lambda source: source, "tanh": torch.tanh, "silu": lambda source: source * torch.sigmoid(source)}


def places(positions: str, mask: list[int]) -> list[int]:
    """The columns that a row's positions name, one by one."""
    real = [column for column, value in enumerate(mask) if value]
    return {
        "p[1:-1]": real[1:-1],
        "p[1:3]": real[1:3],
        "f1+l2": real[:1] + real[-2:],
        "f2+l1": real[:2] + real[-1:],
        "all": real,
        "all-f1": real[1:],
        "l2": real[-2:],
        "l3": real[-3:],
    }[positions]


def model_of(case: Case) -> tuple[Any, Intervention]:
    """The adapter at block 1, its parameters all drawn."""
    model = reft_model(
        case.architecture,
        intervention=case.kind,
        component=case.component,
        positions=case.positions,
        layers_to_transform=[1],
        **case.fields,
    ).double()
    (unit,) = [module for module in model.modules() if isinstance(module, Intervention)]
    generator = torch.Generator().manual_seed(5)
    for parameter in unit.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if case.kind == "clamp":
        unit.low.data.fill_(-0.1)
        unit.high.data.fill_(0.1)
    return model.eval(), unit


def by_hook(case: Case, unit: Intervention, given: Tensors) -> tuple[Tensor, Tensors]:
    """Logits of the plain base with the formula at a module, and leaf copies of the parameters that it used."""
    base = base_model(case.architecture).double().eval()
    block = base.get_submodule(f"{BY_NAME[case.architecture].blocks['only']}.1")
    module: nn.Module = block.get_submodule(case.path) if case.path else block
    held = {name: tensor.detach().clone().requires_grad_() for name, tensor in unit.named_parameters()}
    act = ACTIVATIONS[case.fields.get("act_fn")]
    chosen = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, mask in enumerate(given["attention_mask"].tolist()):
        chosen[row, places(case.positions, mask)] = True

    def edited(hidden: Tensor) -> Tensor:
        wide = hidden.reshape(3, LENGTH, -1)
        return torch.where(chosen[..., None], case.edit(wide, held, act), wide).reshape(hidden.shape)

    if case.of_input:
        module.register_forward_pre_hook(lambda _, args: (edited(args[0]), *args[1:]))
    else:
        module.register_forward_hook(
            lambda _, args, out: (edited(out[0]), *out[1:]) if isinstance(out, tuple) else edited(out)
        )
    return base(**given).logits, held


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kind_is_its_papers_formula_at_the_tokens_that_are_named(case: Case) -> None:
    model, unit = model_of(case)
    given = {"input_ids": token_ids(3, LENGTH, seed=4), "attention_mask": torch.tensor(MASKS[case.padding])}
    expected, held = by_hook(case, unit, given)
    found = model(**given).logits
    plain = base_model(case.architecture).double().eval()(**given).logits
    real = given["attention_mask"].bool()
    assert_close(found[real], expected[real], rtol=1e-9, atol=1e-9)
    assert float((found.detach() - plain)[real].abs().max()) > 1e-2
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    weights = weights * real[..., None]
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    used = {name for name, tensor in held.items() if tensor.grad is not None}
    assert used >= set(held) - {"spread_weight", "spread_bias"}
    for name, parameter in unit.named_parameters():
        if name in used:
            assert_close(parameter.grad, held[name].grad, rtol=1e-7, atol=1e-8)
            assert float(held[name].grad.abs().max()) > 1e-6
        else:
            assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [one for one in CASES if one.component in ("block_output", "heads")], ids=str)
def test_of_a_base_in_half_precision_the_edited_rows_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    """What the module gives is seen before and after: the formula in float64 of those numbers, rounded."""
    model, unit = model_of(case)
    unit.float()
    base = model.get_base_model().to(dtype)
    unit.float()
    block = base.get_submodule(f"{BY_NAME[case.architecture].blocks['only']}.1")
    module = block.get_submodule(case.path) if case.path else block
    seen: list[Tensor] = []
    if case.of_input:
        for prepend in (True, False):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()), prepend=prepend)
    else:
        for prepend in (True, False):
            module.register_forward_hook(
                lambda _, args, out: seen.append((out[0] if isinstance(out, tuple) else out).detach().clone()),
                prepend=prepend,
            )
    mask = torch.tensor(MASKS[case.padding])
    with torch.no_grad():
        model(input_ids=token_ids(3, LENGTH, seed=4), attention_mask=mask)
    before, after = (one.reshape(3, LENGTH, -1) for one in seen)
    held = {name: tensor.detach().double() for name, tensor in unit.named_parameters()}
    wanted = case.edit(before.double(), held, ACTIVATIONS[case.fields.get("act_fn")])
    chosen = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, values in enumerate(mask.tolist()):
        chosen[row, places(case.positions, values)] = True
    assert torch.equal(after[~chosen], before[~chosen])
    step = torch.finfo(dtype).eps * wanted[chosen].abs().clamp(min=1e-3)
    assert bool(((after[chosen].double() - wanted[chosen]).abs() <= step).all())
    assert before.shape[-1] == HIDDEN
