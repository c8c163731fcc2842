"""Gradients: of the fast path against a dense one, of the orthonormal rows, and where none are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import peft_reft.runtime.operands
from contract.recording import inputs_of, raw_outputs_of, reader_of
from contract.tiny import base_model, reft_model, token_ids
from peft_reft.interventions import Intervention, intervention_class, orthonormal_rows
from peft_reft.positions import plan_rows
from peft_reft.runtime import Edit, apply_edits

HIDDEN, RANK = 7, 3
MASKS = {
    "one unit": [[[1, 1, 0, 0, 1], [0, 0, 1, 0, 0]]],
    "two units apart": [[[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], [[0, 0, 0, 0, 1], [0, 0, 1, 1, 1]]],
    "two units overlapping": [[[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]], [[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]]],
    "a unit without tokens": [[[0] * 5] * 2, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]],
    "no tokens": [[[0] * 5] * 2],
    "all tokens": [[[1] * 5] * 2],
}


def rotation_by_qr(raw: Tensor) -> Tensor:
    """R by torch's own QR, the triangular factor's diagonal made positive."""
    rows, factor = torch.linalg.qr(raw.mT)
    return (rows * factor.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).mT


def edit_by_formula(unit: Intervention, hidden: Tensor) -> Tensor:
    """delta(h) from the equations, for every token."""
    source = hidden @ unit.weight.T + unit.bias
    source = source if unit.act_fn is None else torch.tanh(source)
    if unit.kind == "direft":
        return source @ unit.projection
    rotation = rotation_by_qr(unit.rotation)
    return (source - hidden @ rotation.T) @ rotation


def make_unit(kind: str, act_fn: str | None) -> Intervention:
    unit = intervention_class(kind)(HIDDEN, RANK, act_fn=act_fn, init_weights=False).double()
    generator = torch.Generator().manual_seed(len(kind))
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return unit


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize(
    ("kind", "act_fn"), [("loreft", None), ("loreft", "tanh"), ("direft", None), ("direft", "tanh")]
)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_the_fast_path_is_the_dense_one(kind: str, act_fn: str | None, case: str, exact: bool, scale: float) -> None:
    masks = [torch.tensor(mask, dtype=torch.bool) for mask in MASKS[case]]
    units = [make_unit(kind, act_fn), make_unit("direft", None)][: len(masks)]
    hidden = torch.randn(
        2, 5, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    weight = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted: list[Tensor] = [hidden, *(parameter for unit in units for parameter in unit.parameters())]

    plan = plan_rows(masks, int(torch.stack(masks).any(0).sum(1).max()) + 1, exact=exact)
    edits = [Edit(unit, orthonormal_rows(unit.rotation) if unit.orthonormal else None, scale) for unit in units]
    fast = apply_edits(hidden, plan, edits)
    dense = hidden
    for unit, mask in zip(units, masks, strict=True):
        dense = dense + scale * edit_by_formula(unit, hidden) * mask[..., None]
    assert_close(fast, dense)
    for one, other in zip(*(torch.autograd.grad((out * weight).sum(), wanted) for out in (fast, dense)), strict=True):
        assert_close(one, other)
    untouched = ~torch.stack(masks).any(0)
    assert torch.equal(fast[untouched], hidden[untouched])


def test_the_fast_path_passes_gradcheck() -> None:
    unit = make_unit("loreft", None)
    mask = torch.tensor(MASKS["one unit"][0], dtype=torch.bool)
    plan = plan_rows([mask], 3, exact=True)
    hidden = torch.randn(
        2, 5, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()

    def edited(hidden: Tensor, raw: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def delta(rows: Tensor, rotation: Tensor | None) -> Tensor:
            assert rotation is not None
            return (rows @ (weight - rotation).T + bias) @ rotation

        return apply_edits(hidden, plan, [Edit(delta, orthonormal_rows(raw), 1.0)])

    assert torch.autograd.gradcheck(edited, (hidden, unit.rotation, unit.weight, unit.bias))


def test_the_input_is_left_alone() -> None:
    unit, mask = make_unit("direft", None), torch.ones(2, 5, dtype=torch.bool)
    hidden = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, version = hidden.clone(), hidden._version
    apply_edits(hidden, plan_rows([mask], None, exact=True), [Edit(unit, None, 1.0)])
    assert torch.equal(hidden, before)
    assert hidden._version == version


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("share", [True, False])
def test_gradients_of_a_whole_model_are_those_of_dense_edits(name: str, share: bool) -> None:
    model = reft_model(name, dtype=torch.float64, positions="f2+l3", share_weights=share).train()
    ids = token_ids(2, 8)
    labels = torch.where(torch.arange(8) < 6, -100, ids)
    model.double()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()

    base = base_model(name, dtype=torch.float64)
    base.requires_grad_(False)
    path = {"llama": "model.layers", "gpt2": "transformer.h"}[name]
    prefix, suffix = torch.arange(8) < 2, (torch.arange(8) >= 3) & (torch.arange(8) < 6)
    masks = [prefix | suffix] if share else [prefix, suffix]
    parameters: list[Tensor] = []

    def dense_hook(layer: nn.Module) -> Callable[..., Any]:
        units = [layer.unit(("default", number)) for number in range(len(masks))]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            edited = hidden + sum(
                edit_by_formula(unit, hidden) * mask[:, None] for unit, mask in zip(units, masks, strict=True)
            )
            return edited if isinstance(output, Tensor) else (edited, *output[1:])

        parameters.extend(parameter for unit in units for parameter in unit.parameters())
        return hook

    for block, edited in zip(base.get_submodule(path), model.get_base_model().get_submodule(path), strict=True):
        block.register_forward_hook(dense_hook(edited.reft))
    dense = base(input_ids=ids, labels=labels).loss
    assert_close(loss, dense)
    for parameter, gradient in zip(parameters, torch.autograd.grad(dense, parameters), strict=True):
        assert_close(parameter.grad, gradient)
    if share:  # else nothing that is trained depends on the prefix after the last block
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_blocks_before_the_first_edit_get_no_backward(first: int) -> None:
    model = reft_model("llama", positions="f2+l2", layers_to_transform=list(range(first, 3))).train()
    ids = token_ids(2, 8)
    needs: dict[int, tuple[bool, bool]] = {}
    blocks = model.get_base_model().model.layers
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, number=number: needs.update({number: (args[0].requires_grad, False)})
        )
        for number, block in enumerate(blocks)
    ]
    raw: dict[int, bool] = {}
    handles += [
        block.register_forward_hook(
            lambda module, args, output, number=number: raw.update({number: output.requires_grad}), prepend=True
        )
        for number, block in enumerate(blocks)
    ]
    model(input_ids=ids, labels=torch.where(torch.arange(8) < 4, -100, ids)).loss.backward()
    for handle in handles:
        handle.remove()
    assert raw == {number: number > first for number in range(3)}
    assert [needs[number][0] for number in range(3)] == [number > first for number in range(3)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 7), (5, 5), (4, 2, 9), (2, 3, 4, 16), (8, 64), (64, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_rows_are_those_of_qr(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    rows = orthonormal_rows(raw)
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(rows.double(), rotation_by_qr(raw.double()), rtol=0, atol=1e-6)
    assert_close(
        (rows @ rows.mT).double(), torch.eye(shape[-2]).double().expand(*shape[:-2], -1, -1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_nearly_dependent_rows_still_agree_with_qr(condition: float) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4, 32, generator=generator, dtype=torch.float64)
    raw[1] = raw[0] + raw[1] / condition
    raw[3] *= condition
    assert_close(orthonormal_rows(raw), rotation_by_qr(raw), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 5), (4, 4), (2, 3, 6)])
def test_the_rows_pass_gradcheck(shape: tuple[int, ...]) -> None:
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(orthonormal_rows, (raw,))


@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 16)])
def test_the_rows_have_the_gradient_of_qr(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    one, other = (
        torch.autograd.grad((rows(raw) * weight).sum(), raw)[0] for rows in (orthonormal_rows, rotation_by_qr)
    )
    assert_close(one, other)


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        ({"positions": "f2+l2"}, [(3, 4, 32)]),
        ({"positions": "f2+l2", "share_weights": False}, [(6, 4, 32)]),
        ({"positions": "f2", "layers_to_transform": [1]}, [(1, 4, 32)]),
        ({"positions": "f2", "interventions": [{"r": 2}, {"r": 5}]}, [(3, 2, 32), (3, 5, 32)]),
        ({"positions": "f2", "intervention": "direft"}, []),
    ],
)
def test_all_layers_are_orthonormalised_in_one_call(
    config: dict[str, Any], calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = reft_model("llama", **config), []

    def spy(raw: Tensor, **settings: bool) -> Tensor:
        seen.append(tuple(raw.shape))
        return orthonormal_rows(raw, **settings)

    monkeypatch.setattr(peft_reft.runtime.operands, "orthonormal_rows", spy)
    monkeypatch.setattr("peft_reft.interventions.base.orthonormal_rows", spy)
    monkeypatch.setattr("peft_reft.interventions.loreft.orthonormal_rows", spy)
    model(input_ids=token_ids(2, 6))
    assert sorted(seen) == calls
    seen.clear()
    model.generate(input_ids=token_ids(2, 6), max_new_tokens=3)
    assert sorted(seen) == calls
    seen.clear()
    with torch.no_grad():
        model(input_ids=token_ids(2, 6))
    assert seen == []  # the same parameters have the same R


def test_a_rotation_follows_its_parameter_however_it_is_written() -> None:
    """TRL writes a reference through `.data`, which counts no version of a tensor."""
    model, ids = reft_model("llama", positions="f2+l2"), token_ids(2, 6)
    raw = next(parameter for name, parameter in model.named_parameters() if name.endswith("rotation"))
    with torch.no_grad():
        before, held = model(input_ids=ids).logits, raw.clone()
        for write in (lambda value: raw.data.copy_(value), raw.copy_, lambda value: setattr(raw, "data", value)):
            write(torch.randn(raw.shape, generator=torch.Generator().manual_seed(99)))
            assert not torch.equal(model(input_ids=ids).logits, before)
            write(held.clone())
            assert torch.equal(model(input_ids=ids).logits, before)


def test_generation_of_an_encoder_decoder_orthonormalises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = reft_model("t5", positions="all"), []

    def spy(raw: Tensor, **settings: bool) -> Tensor:
        seen.append(tuple(raw.shape))
        return orthonormal_rows(raw, **settings)

    monkeypatch.setattr(peft_reft.runtime.operands, "orthonormal_rows", spy)
    monkeypatch.setattr("peft_reft.interventions.base.orthonormal_rows", spy)
    monkeypatch.setattr("peft_reft.interventions.loreft.orthonormal_rows", spy)
    model.generate(input_ids=token_ids(2, 6), max_new_tokens=3)
    assert seen == [(6, 4, 32)]


def test_both_readings_of_a_block_see_the_same_edit() -> None:
    """The reader's input has a graph exactly where the edit put one."""
    model = reft_model("llama", positions="f2", layers_to_transform=[1])
    block = model.get_base_model().model.layers[1]
    with raw_outputs_of(block) as raw, inputs_of(reader_of(model, "llama", 1)) as read:
        model(input_ids=token_ids(1, 5))
    assert (raw[0] != read[0]).any(-1).tolist() == [[True, True, False, False, False]]
