"""The second formulation: plain hooks that read a site's activations, and that edit chosen tokens by the equation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .findings import WrongError

__all__ = [
    "Columns",
    "Edit",
    "ShapeError",
    "Site",
    "differing",
    "editing",
    "hidden_in",
    "outputs_of",
    "rows_of",
    "sites_of",
    "with_hidden",
]

Columns = Sequence[Sequence[int]]
"""For each row of a batch the columns that are edited."""
Tokens = set[tuple[int, int]]
WINDOW = 512
"""To so many tokens Longformer and LED pad every row inside, on the right; what they pad is no token of the batch."""


class ShapeError(Exception):
    """An activation in which rows and columns of the batch cannot be told."""


@dataclass(frozen=True)
class Edit:
    """LoReFT's parameters as they are stored: raw rotation and weight `[rank, hidden]`, bias `[rank]`."""

    raw: Tensor
    weight: Tensor
    bias: Tensor

    def of(self, hidden: Tensor) -> Tensor:
        """h + Rᵀ(Wh + b − Rh), hidden `[..., hidden]`; R is the Q of rawᵀ's QR with a positive diagonal."""
        q, r = torch.linalg.qr(self.raw.double().mT)
        rotation = (q * r.diagonal().sign()).mT
        wide = hidden.double()
        source = wide @ self.weight.double().mT + self.bias.double()
        return (wide + (source - wide @ rotation.mT) @ rotation).to(hidden.dtype)


@dataclass(frozen=True)
class Site:
    """A module that carries an adapter: its path, the path and role of its stack, what it edits with."""

    path: str
    stack: str
    role: str
    module: nn.Module
    edit: Edit


def sites_of(model: nn.Module, *, pair: bool) -> list[Site]:
    """The sites of the adapter `default` on a base model, in the order of the modules.

    In an encoder-decoder (`pair`) the outermost name that says so gives the role: a decoder may have an `encoder`.
    """
    found = []
    for path, module in model.named_modules():
        if not path.endswith(".reft"):
            continue
        site = path.removesuffix(".reft")
        state = {name.rpartition(".")[2]: value for name, value in module.named_parameters()}
        edit = Edit(state["rotation"].detach(), state["weight"].detach(), state["bias"].detach())
        named = re.search(r"encoder|decoder", site) if pair else None
        role = "only" if named is None else named[0]
        found.append(Site(site, site.rpartition(".")[0], role, model.get_submodule(site), edit))
    return found


def hidden_in(output: Any) -> Tensor:
    """The hidden states in a block's output: itself, or the first entry."""
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            output = next(iter(output.values()))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            raise ShapeError(f"a block gave {type(output).__name__}")
    return output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's output, of its own type, with other hidden states."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, Mapping):
        return type(output)(**{**output, next(iter(output)): hidden})
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: with_hidden(output[0], hidden)})
    return type(output)([with_hidden(output[0], hidden), *output[1:]])


def rows_of(hidden: Tensor, batch: int, length: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """An activation as `[batch, seq, state]`, whatever its layout, and the way back to that layout.

    A token's state is all it holds: streams × hidden where a block gives several residual streams.

    Raises:
        ShapeError: no dimensions of this size, or several.
    """
    shape = list(hidden.shape)
    if shape[:1] == [batch * length]:
        return hidden.reshape(batch, length, -1), lambda rows: rows.reshape(shape)
    row = [place for place, size in enumerate(shape[:-1]) if size == batch]
    column = [place for place, size in enumerate(shape[:-1]) if size == length]
    if row == [0] and len(shape) == 3 and shape[1] == WINDOW > length:

        def beside(rows: Tensor) -> Tensor:
            return torch.cat([rows, hidden[:, length:]], 1)

        return hidden[:, :length], beside
    if batch == length or len(row) != 1 or len(column) != 1:
        raise ShapeError(f"a block gave {shape} for {batch} rows of {length} tokens")
    moved = hidden.movedim((row[0], column[0]), (0, 1))

    def back(rows: Tensor) -> Tensor:
        return rows.reshape(moved.shape).movedim((0, 1), (row[0], column[0]))

    return moved.flatten(2), back


@contextmanager
def outputs_of(modules: Sequence[nn.Module], *, first: bool = False) -> Iterator[list[list[Tensor]]]:
    """What each module gives, one tensor per call; `first`: before any other hook has seen it."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def noting(notes: list[Tensor]) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            notes.append(hidden_in(output).detach().clone())

        return note

    handles = [
        module.register_forward_hook(noting(notes), prepend=first) for module, notes in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def differing(one: Tensor, other: Tensor, batch: int, length: int) -> Tokens:
    """Tokens (row, column) whose states are not the same to the last bit."""
    if one.shape != other.shape:
        raise ShapeError(f"{list(one.shape)} beside {list(other.shape)}")
    left, right = rows_of(one, batch, length)[0], rows_of(other, batch, length)[0]
    return {(row, column) for row, column in (left != right).any(-1).nonzero().tolist()}


@contextmanager
def editing(sites: Sequence[Site], columns: Mapping[str, Columns], length: Mapping[str, int]) -> Iterator[None]:
    """Edit the given columns of each role's stacks by hooks of our own; the adapter itself is to be disabled.

    Args:
        sites: where.
        columns: role → columns of each row.
        length: role → how many columns a row has.
    """

    def hook(site: Site) -> Callable[..., Any]:
        def edit(module: nn.Module, args: Any, output: Any) -> Any:
            chosen = columns[site.role]
            rows, back = rows_of(hidden_in(output), len(chosen), length[site.role])
            if rows.shape[2] != site.edit.weight.shape[1]:
                raise WrongError(f"a token's state has {rows.shape[2]} numbers, the edit {site.edit.weight.shape[1]}")
            mask = torch.zeros(rows.shape[:2], dtype=torch.bool)
            for row, places in enumerate(chosen):
                mask[row, list(places)] = True
            return with_hidden(output, back(torch.where(mask[..., None], site.edit.of(rows), rows)))

        return edit

    handles = [site.module.register_forward_hook(hook(site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
