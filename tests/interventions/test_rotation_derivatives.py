"""R's derivatives of every order, and those of the edit that writes its rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from peft_reft.interventions import orthonormal_rows
from peft_reft.positions import plan_rows
from peft_reft.runtime import Edit, apply_edits

SHAPES = [(1, 1), (1, 4), (3, 5), (4, 4), (2, 3, 6)]
WHOLE = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def rotation_by_qr(raw: Tensor) -> Tensor:
    rows, factor = torch.linalg.qr(raw.mT)
    return (rows * factor.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).mT


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_pass_every_check(shape: tuple[int, ...], padded: bool) -> None:
    raw = random(*shape)
    assert gradcheck(lambda one: orthonormal_rows(one, padded=padded), (raw,), **WHOLE)
    assert gradgradcheck(lambda one: orthonormal_rows(one, padded=padded), (raw,), check_fwd_over_rev=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_second_and_third_derivatives_are_those_of_qr(shape: tuple[int, ...]) -> None:
    raw, weight = random(*shape).detach(), random(*shape, seed=1).detach()

    def number(rows: Tensor) -> Tensor:
        return (weight * rows).sin().sum()

    for second in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        found, wanted = (second(lambda one: number(map_(one)))(raw) for map_ in (orthonormal_rows, rotation_by_qr))  # noqa: B023 - run at once
        assert_close(found, wanted)
    results = []
    for map_ in (orthonormal_rows, rotation_by_qr):
        leaf = raw.clone().requires_grad_()
        value = number(map_(leaf))
        for _ in range(3):
            (value,) = torch.autograd.grad((value * weight).sum(), leaf, create_graph=True)
        results.append(value)
    assert_close(*results)


def test_rows_of_zeros_get_no_derivative() -> None:
    raw = random(4, 6).detach()
    raw[[1, 3]] = 0
    dense = raw[[0, 2]]
    wanted = jacrev(orthonormal_rows)(dense)

    def kept(one: Tensor) -> Tensor:
        return orthonormal_rows(one, padded=True)

    for found in (jacrev(kept)(raw), jacfwd(kept)(raw), torch.autograd.functional.jacobian(kept, raw)):
        assert_close(found[[0, 2]][:, :, [0, 2]], wanted)
        assert not found[:, :, [1, 3]].any()
        assert not found[[1, 3]].any()
    along = random(4, 6, seed=2).detach()
    leaf = raw.clone().requires_grad_()
    (first,) = torch.autograd.grad(kept(leaf).sin().sum(), leaf, create_graph=True)
    (again,) = torch.autograd.grad((first * along).sum(), leaf)
    second = jvp(jacrev(lambda one: orthonormal_rows(one).sin().sum()), (dense,), (along[[0, 2]],))[1]
    assert_close(again[[0, 2]], second)
    assert not again[[1, 3]].any()


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_vmap_over_any_dimension_is_a_loop(dim: int) -> None:
    raw = random(3, 3, 3).detach()
    wanted = torch.stack([orthonormal_rows(one) for one in raw.unbind(dim)])
    assert_close(vmap(orthonormal_rows, in_dims=dim)(raw), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_has_second_derivatives_too(dtype: torch.dtype) -> None:
    raw = random(2, 5).detach().to(dtype).requires_grad_()
    (first,) = torch.autograd.grad(orthonormal_rows(raw).sin().sum(), raw, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), raw)
    wanted = jvp(jacrev(lambda one: rotation_by_qr(one).sin().sum()), (raw.double(),), (torch.ones(2, 5).double(),))[1]
    assert second.dtype == dtype
    assert_close(second.double(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("units", [1, 2])
def test_an_edit_passes_every_check(exact: bool, units: int) -> None:
    marks = [[[1, 1, 0, 0], [0, 0, 1, 0]], [[0, 1, 0, 1], [0, 0, 0, 0]]][:units]
    plan = plan_rows([torch.tensor(mask, dtype=torch.bool) for mask in marks], 3, exact=exact)
    given = (random(2, 4, 5), random(2, 5, seed=1), random(2, 5, seed=2), random(2, seed=3))

    def edited(hidden: Tensor, raw: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def delta(rows: Tensor, rotation: Tensor | None) -> Tensor:
            assert rotation is not None
            return (torch.tanh(rows @ weight.T + bias) - rows @ rotation.T) @ rotation

        return apply_edits(hidden, plan, [Edit(delta, orthonormal_rows(raw), 0.5)] * units)

    assert gradcheck(edited, given, **WHOLE)
    assert gradgradcheck(edited, given, check_fwd_over_rev=True)


def test_what_is_written_is_no_view() -> None:
    hidden, plan = random(2, 4, 5), plan_rows([torch.ones(2, 4, dtype=torch.bool)], None, exact=True)
    written = apply_edits(hidden, plan, [Edit(lambda rows, rotation: rows, None, 1.0)])
    assert written._base is None
    assert_close(written, 2 * hidden)
