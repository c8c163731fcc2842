"""A tiny Llama with one kind of edit, and the same with the edits written out by hand, for higher derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call

from contract.tiny import base_model, reft_model, token_ids

Tensors = dict[str, Tensor]

LENGTH, PROMPTS, PADDING = 12, (9, 8, 9), (0, 2, 5)
"""Columns; of each row the column where the answer starts, and how many columns of padding stand before it."""


@dataclass(frozen=True)
class Batch:
    """A left-padded batch, `[batch, seq]` each."""

    ids: Tensor
    real: Tensor
    labels: Tensor

    def arguments(self) -> Tensors:
        return {"input_ids": self.ids, "attention_mask": self.real, "labels": self.labels}


def padded_batch() -> Batch:
    ids = token_ids(len(PROMPTS), LENGTH)
    columns = torch.arange(LENGTH)
    padding, prompts = torch.tensor(PADDING)[:, None], torch.tensor(PROMPTS)[:, None]
    real = (columns >= padding).long()
    ids = torch.where(real.bool(), ids, 0)
    return Batch(ids, real, torch.where(columns < prompts, -100, ids))


def edited_columns(batch: Batch, first: int, last: int) -> Tensor:
    """Where `f<first>+l<last>` edits, bool `[batch, seq]`, row by row in plain Python."""
    mask = torch.zeros_like(batch.ids, dtype=torch.bool)
    for row in range(len(batch.ids)):
        prompt = [c for c in range(LENGTH) if batch.real[row, c] and batch.labels[row, c] == -100]
        mask[row, prompt[:first] + prompt[max(0, len(prompt) - last) :]] = True
    return mask


def edited_llama(kind: str, *, dtype: torch.dtype = torch.float64, **config: Any) -> PeftModel:
    """A Llama with one kind of edit in every block.

    In float32 it attends in single steps: transformers looks at the values of a mask for the fused attention, which
    no vmap allows. In float64 those give NaN on padding, so there it attends by torch's own function.
    """
    base = base_model("llama", dtype=dtype)
    if dtype == torch.float32:
        base.set_attn_implementation("eager")
    config = {"positions": "f3+l3", "r": 3, **config}
    return reft_model("llama", base=base, intervention=kind, **config).to(dtype)


def trained(model: nn.Module) -> Tensors:
    """The trained parameters by name; small ones, so that the loss is smooth around them."""
    generator = torch.Generator().manual_seed(3)
    found = {name: one for name, one in model.named_parameters() if one.requires_grad}
    with torch.no_grad():
        for parameter in found.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3)
    return {name: one.detach().clone() for name, one in found.items()}


def loss_of(model: nn.Module, parameters: Tensors, arguments: Mapping[str, Tensor]) -> Tensor:
    """The loss as a function of the trained parameters."""
    loss: Tensor = functional_call(model, parameters, (), {**arguments, "use_cache": False}).loss
    return loss


def direction(parameters: Tensors, seed: int = 11) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(one.shape, generator=generator, dtype=one.dtype) for n, one in parameters.items()}


def rotation_by_qr(raw: Tensor) -> Tensor:
    """R by torch's own QR, the triangular factor's diagonal made positive."""
    rows, factor = torch.linalg.qr(raw.mT)
    return (rows * factor.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]).mT


def mean_of_edited(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def source(t: Tensors, h: Tensor) -> Tensor:
    return h @ t["weight"].T + t["bias"]


def loreft(t: Tensors, h: Tensor, mask: Tensor) -> Tensor:
    rotation = rotation_by_qr(t["rotation"])
    return (source(t, h) - h @ rotation.T) @ rotation


def reft_r1(t: Tensors, h: Tensor, mask: Tensor) -> Tensor:
    w = t["rotation"][0] / t["rotation"][0].norm()
    return mean_of_edited(torch.relu(h @ w), mask)[..., None] * w


FORMULAS: dict[str, Callable[[Tensors, Tensor, Tensor], Tensor]] = {
    "loreft": loreft,
    "noreft": lambda t, h, mask: (source(t, h) - h @ t["projection"].T) @ t["projection"],
    "direft": lambda t, h, mask: source(t, h) @ t["projection"],
    "direft_orthogonal": lambda t, h, mask: source(t, h) @ rotation_by_qr(t["rotation"]),
    "consreft": lambda t, h, mask: (t["bias"] - h @ (q := rotation_by_qr(t["rotation"])).T) @ q,
    "lobireft": lambda t, h, mask: (t["bias"] @ rotation_by_qr(t["rotation"])).expand_as(h),
    "bias": lambda t, h, mask: t["shift"].expand_as(h),
    "red": lambda t, h, mask: (t["scale"] - 1) * h + t["shift"],
    "gated": lambda t, h, mask: torch.sigmoid(h @ t["gate_weight"].T + t["gate_bias"]) * loreft(t, h, mask),
    "reft_r1": reft_r1,
}
"""delta(h) `[batch, seq, hidden]` of each kind from its equation, for every token."""


def dense_loss(kind: str, batch: Batch) -> Callable[[Tensors], Tensor]:
    """The loss of the base model with the edits added by plain hooks, everywhere but where the mask is 0."""
    base = base_model("llama", dtype=torch.float64).requires_grad_(False)
    mask = edited_columns(batch, 3, 3)
    given: Tensors = {}
    for number, block in enumerate(base.model.layers):

        def edit(module: nn.Module, args: Any, hidden: Tensor, number: int = number) -> Tensor:
            own = {name.split(".")[-1]: one for name, one in given.items() if f"layers.{number}." in name}
            return hidden + FORMULAS[kind](own, hidden, mask) * mask[..., None] if own else hidden

        block.register_forward_hook(edit)

    def loss(parameters: Tensors) -> Tensor:
        given.update(parameters)
        found: Tensor = base(**batch.arguments(), use_cache=False).loss
        return found

    return loss
