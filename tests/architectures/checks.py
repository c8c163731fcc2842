"""The checks of one adapted model. Each returns a remark or None, and raises where it does not hold.

The adapter is LoReFT at `f2+l2` on every block, so the edited tokens of a prompt are its first and last two.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from .decoding import generated, same_tokens, stepwise
from .findings import BaseFailsError, WrongError, told
from .models import BATCH, LENGTH, Batch, Tiny, main_output
from .plain import Columns, Site, differing, editing, outputs_of, rows_of

__all__ = ["PADDING", "POSITIONS", "Adapted", "check_decoding", "check_disabled", "check_padding", "check_saved"]

POSITIONS = "f2+l2"
PADDING = (0, 2, 5, 0, 1, 4)
"""Columns of padding of each row."""
ALONE = (1, 2)
"""Rows that are compared with themselves without padding."""
CLOSE = 1e-4
"""Difference of outputs, relative to the largest, that is rounding."""


@dataclass
class Adapted:
    """A tiny model with its adapter, a twin without, and what the base gave before the adapter came."""

    tiny: Tiny
    model: PeftModel
    twin: nn.Module
    before: Tensor
    sites: list[Site] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether all real tokens of an input are its prompt: there is no completion."""
        return self.tiny.subject.family in ("classification", "embedding", "encoder")

    def stacks(self) -> dict[str, list[Site]]:
        """Path of a stack → its sites."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.stack, []).append(site)
        return found

    def columns(self, prompt: Sequence[Sequence[int]]) -> dict[str, Columns]:
        """Role → edited columns of each row, where the rows' prompts stand in the given columns."""
        chosen = [[*one[:2], *one[-2:]] for one in prompt]
        decoder = chosen if self.whole and not self.tiny.has_decoder_input else [[0]] * len(chosen)
        return {"only": chosen, "encoder": chosen, "decoder": decoder}

    def lengths(self, batch: Batch, decoder: int | None = None) -> dict[str, int]:
        """Role → columns of a row."""
        own = batch["input_ids"].shape[1]
        given = batch["decoder_input_ids"].shape[1] if "decoder_input_ids" in batch else own
        return {"only": own, "encoder": own, "decoder": given if decoder is None else decoder}

    def reference(self, batch: Batch, prompt: Sequence[Sequence[int]]) -> Tensor:
        """The output with the edits made by plain hooks."""
        plain = editing(self.sites, self.columns(prompt), self.lengths(batch))
        with torch.no_grad(), self.model.disable_adapter(), plain:
            return main_output(self.tiny.model(**batch))

    def output(self, batch: Batch, *, adapted: bool = True) -> Tensor:
        """The output with the adapter, or of the base."""
        with torch.no_grad():
            if adapted:
                return main_output(self.model(**batch))
            with self.model.disable_adapter():
                return main_output(self.tiny.model(**batch))


def prompts(rows: int = BATCH, length: int = LENGTH, pad: Sequence[int] = (0,) * BATCH, side: str = "left") -> Any:
    """Columns of the real tokens of each row."""
    return [range(n, length) if side == "left" else range(length - n) for n in pad[:rows]]


def check_disabled(case: Adapted) -> str | None:
    """The disabled adapter gives the base's output bit for bit."""
    batch = case.tiny.batch()
    found = case.output(batch, adapted=False)
    if not torch.equal(found, case.before):
        with torch.no_grad():
            again = [main_output(case.twin(**batch)) for _ in range(2)]
            frozen = main_output(copy.deepcopy(case.twin).requires_grad_(False)(**batch))
        if torch.equal(found, frozen):
            return None  # that PEFT freezes the base changes last bits of this one, as with a LoRA
        if not torch.equal(*again):
            raise BaseFailsError("its output differs from call to call")
        raise WrongError(f"outputs of the base and of the disabled adapter differ by {_gap(found, case.before):.2g}")
    return None


def check_padding(case: Adapted, side: str) -> str | None:
    """Padding changes nothing where it changes nothing in the base, and the edited tokens move with it."""
    if not case.tiny.takes("attention_mask"):
        raise BaseFailsError("the forward takes no attention_mask")
    whole, padded, rows = case.tiny.batch(), case.tiny.padded(PADDING, side), prompts(pad=PADDING, side=side)
    base_gap = _padding_gap(case, whole, padded, rows, adapted=False)
    _check_tokens(case, padded, case.columns(rows), "only" if not case.tiny.pair else "encoder")
    if base_gap > CLOSE:
        raise BaseFailsError(f"outputs change by {base_gap:.2g}")
    gap = _padding_gap(case, whole, padded, rows, adapted=True)
    if gap > max(10 * base_gap, CLOSE):
        raise WrongError(f"padding changes the outputs by {gap:.2g}, the base's by {base_gap:.2g}")
    return None


def _padding_gap(case: Adapted, whole: Batch, padded: Batch, rows: Sequence[range], *, adapted: bool) -> float:
    """How far the padded rows are from the same rows alone, at most."""
    gaps = []
    try:
        together = case.output(padded, adapted=adapted)
        for row in ALONE:
            real = rows[row]
            alone = {name: value[row : row + 1] for name, value in whole.items()}
            for name in ("input_ids", "attention_mask"):
                alone[name] = padded[name][row : row + 1, real.start : real.stop]
            one, other = case.output(alone, adapted=adapted), together[row : row + 1]
            if other.dim() > 2 and other.shape[1] == padded["input_ids"].shape[1]:
                other = other[:, real.start : real.stop]
            if one.shape != other.shape:
                raise BaseFailsError(f"outputs have the shapes {list(one.shape)} and {list(other.shape)}")
            gaps.append(_gap(one, other))
    except Exception as error:
        if adapted or isinstance(error, BaseFailsError):
            raise
        raise BaseFailsError(told(error)) from error
    return max(gaps)


def _check_tokens(case: Adapted, batch: Batch, columns: dict[str, Columns], *roles: str) -> None:
    """What blocks give before and after the edits: exactly the columns differ, at every site of the roles."""
    sites = [site for site in case.sites if site.role in roles]
    modules = [site.module for site in sites]
    with torch.no_grad(), outputs_of(modules, first=True) as raw, outputs_of(modules) as edited:
        case.model(**batch)
    for site, before, after in zip(sites, raw, edited, strict=True):
        compare(case, site, before, after, columns, case.lengths(batch)[site.role])


def compare(
    case: Adapted, site: Site, before: list[Tensor], after: list[Tensor], columns: dict[str, Columns], length: int
) -> None:
    """Raise where other tokens than the spec's changed in a call of a site."""
    wanted = {(row, column) for row, chosen in enumerate(columns[site.role]) for column in chosen}
    if not before:
        raise WrongError(f"{site.path} never ran")
    for one, other in zip(before, after, strict=True):
        state = rows_of(one, BATCH, length)[0].shape[2]
        if state != site.edit.weight.shape[1]:
            raise WrongError(f"{site.path}: a token's state has {state} numbers, the edit {site.edit.weight.shape[1]}")
        found = differing(one, other, BATCH, length)
        if found != wanted:
            raise WrongError(f"{site.path}: edited {_said(found)}, wanted {_said(wanted)}")


def check_decoding(case: Adapted, side: str | None) -> str | None:
    """Tokens decoded with a cache are those of whole forwards with the edits made by plain hooks."""
    batch = case.tiny.batch() if side is None else case.tiny.padded(PADDING, side)
    prompt = prompts() if side is None else prompts(pad=PADDING, side=side)
    columns, width = case.columns(prompt), batch["input_ids"].shape[1]

    def plain(width: int) -> AbstractContextManager[Any]:
        return editing([], columns, {})

    def edits(length: int) -> AbstractContextManager[Any]:
        pair = case.tiny.pair
        return editing(case.sites, columns, {"only": length, "encoder": width, "decoder": length if pair else 0})

    try:
        with case.model.disable_adapter():
            wanted, leads = stepwise(case.tiny, batch, plain)
            agrees = same_tokens(generated(case.tiny, case.tiny.model, batch), wanted, leads)
    except Exception as error:
        raise BaseFailsError(told(error)) from error
    found = generated(case.tiny, case.model, batch)
    with case.model.disable_adapter():
        wanted, leads = stepwise(case.tiny, batch, edits)
    if not agrees:
        raise BaseFailsError("tokens with a cache are not those without")
    if not same_tokens(found, wanted, leads):
        raise WrongError(f"decoded {found.tolist()}, stepwise {wanted.tolist()}")
    return None


def check_saved(case: Adapted) -> str | None:
    """A folder loaded onto another copy of the base gives the same output bit for bit."""
    batch = case.tiny.batch()
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(case.twin, folder).eval()
    with torch.no_grad():
        found = main_output(loaded(**batch))
    wanted = case.output(batch)
    if not torch.equal(found, wanted):
        if not torch.equal(case.output(batch), wanted):
            raise BaseFailsError("its output differs from call to call")
        raise WrongError(f"outputs before and after differ by {_gap(found, wanted):.2g}")
    return None


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest number."""
    finite = one.isfinite() & other.isfinite()  # a head may mask tokens with −inf
    scale = other[finite].abs().max().clamp(min=1e-6)
    return float(((one - other)[finite].abs().max() / scale).item())


def _said(tokens: set[tuple[int, int]]) -> str:
    """Columns by row."""
    rows = sorted({row for row, _ in tokens})
    return ", ".join(f"row {row}: {sorted(column for one, column in tokens if one == row)}" for row in rows) or "none"
