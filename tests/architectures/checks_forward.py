"""The checks of a forward and a backward: edited tokens, the outputs they lead to, the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import CLOSE, Adapted, _gap, compare, prompts
from .findings import BaseFailsError, WrongError, told
from .models import BATCH, LENGTH, Batch, main_output
from .plain import Site, differing, hidden_in, outputs_of, rows_of, with_hidden

__all__ = ["check_gradients", "check_outputs", "check_square", "check_tokens"]

ANSWER = 7
"""Column of the first supervised label."""


def check_tokens(case: Adapted) -> str | None:
    """A prefill edits exactly the tokens of the spec at every site, and nothing but the edit happens there."""
    batch = case.tiny.batch()
    columns, lengths = case.columns(prompts()), case.lengths(batch)
    modules = [site.module for site in case.sites]
    if not modules:
        raise WrongError("no site")
    with torch.no_grad(), outputs_of(modules, first=True) as raw, outputs_of(modules) as edited:
        case.model(**batch)
    for site, before, after in zip(case.sites, raw, edited, strict=True):
        compare(case, site, before, after, columns, lengths[site.role])
    first = case.sites[0]
    with torch.no_grad(), case.model.disable_adapter(), outputs_of([first.module]) as disabled:
        case.model(**batch)
    found = differing(edited[0][0], disabled[0][0], BATCH, lengths[first.role])
    wanted = {(row, column) for row, chosen in enumerate(columns[first.role]) for column in chosen}
    if found != wanted and first.role != "decoder":
        raise WrongError(f"{first.path}: with and without the adapter {len(found)} tokens differ, not {len(wanted)}")
    return _remark(case, [len(calls) for calls in raw])


def _remark(case: Adapted, calls: list[int]) -> str | None:
    """Blocks that run several times, and layers that carry no edit."""
    parts = []
    if max(calls) > 1:
        parts.append(f"blocks run {max(calls)} times a forward")
    depth = getattr(case.tiny.config.get_text_config(), "num_hidden_layers", None)
    edited = max(len(sites) for sites in case.stacks().values())
    if isinstance(depth, int) and depth != edited:
        parts.append(f"{edited} sites for num_hidden_layers={depth}")
    return ", ".join(parts) or None


def check_square(case: Adapted) -> str | None:
    """What is refused for its shape is refused too where a batch has as many rows as columns."""
    batch = case.tiny.batch(length=BATCH)
    if case.tiny.has_decoder_input:
        batch["decoder_input_ids"] = batch["input_ids"].clone()
    with torch.no_grad():
        case.model(**batch)
    raise WrongError(f"{BATCH} rows of {BATCH} tokens are not refused, {BATCH} rows of {LENGTH} tokens are")


def check_outputs(case: Adapted) -> str | None:
    """The outputs are those of the equation in plain hooks, and the edits reach them."""
    batch = case.tiny.batch()
    wanted = case.reference(batch, prompts())
    found, base = case.output(batch), case.output(batch, adapted=False)
    effect, gap = _gap(wanted, base), _gap(found, wanted)
    if effect < 10 * CLOSE:
        raise BaseFailsError(f"edits of these tokens by plain hooks change the outputs by {effect:.2g} only")
    if gap > CLOSE:
        raise WrongError(f"outputs are off the equation's by {gap:.2g}, where the whole effect is {effect:.2g}")
    return None


def check_gradients(case: Adapted) -> str | None:
    """A training step edits the prompt's tokens only; every parameter of the adapter gets a gradient, and no other."""
    batch, prompt = case.tiny.batch(), prompts()
    if not case.tiny.pair and not case.whole and case.tiny.takes("labels"):
        labels = batch["input_ids"].clone()
        labels[:, :ANSWER] = -100
        batch, prompt = {**batch, "labels": labels}, [range(ANSWER)] * BATCH
    elif "decoder_input_ids" in batch and case.tiny.takes("labels"):
        labels = batch["input_ids"][:, : ANSWER - 2].clone()
        batch = {name: value for name, value in batch.items() if name != "decoder_input_ids"} | {"labels": labels}
    lengths = case.lengths(batch, decoder=batch["labels"].shape[1] if "labels" in batch else None)
    case.model.train()
    try:
        with case.model.disable_adapter():
            _base_loss(case, batch)
        modules = [site.module for site in case.sites]
        with outputs_of(modules, first=True) as raw, outputs_of(modules) as edited:
            loss = _loss(case.model(**batch))
        if not loss.requires_grad and not any(_matters(case, site, batch) for site in case.sites):
            raise BaseFailsError("training: no gradient passes through the base's blocks")
        loss.backward()
        columns = case.columns(prompt)
        for site, before, after in zip(case.sites, raw, edited, strict=True):
            compare(case, site, before, after, columns, lengths[site.role])
        _check_reached(case, batch)
    finally:
        case.model.zero_grad(set_to_none=True)
        case.model.eval()
    return None


def _loss(output: Any) -> Tensor:
    if getattr(output, "loss", None) is not None and output.loss.requires_grad:
        loss: Tensor = output.loss
        return loss
    found = main_output(output).float()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    return (found.nan_to_num(neginf=0.0) * weights).sum()


def _base_loss(case: Adapted, batch: Batch) -> None:
    try:
        with torch.no_grad():
            output = case.tiny.model(**batch)
    except Exception as error:
        raise BaseFailsError(f"training: {told(error)}") from error
    if "labels" in batch and getattr(output, "loss", None) is None:
        raise BaseFailsError("training: the forward gives no loss for labels")


def _check_reached(case: Adapted, batch: Batch) -> None:
    reached = [name for name, one in case.model.named_parameters() if one.grad is not None]
    bare = [name for name in reached if ".reft." not in name and ".modules_to_save." not in name]  # a head is trained
    if bare:
        raise WrongError(f"parameters of the base get gradients: {bare[:3]}")
    for site in case.sites:
        for name, parameter in site.module.get_submodule("reft").named_parameters():
            grad = parameter.grad
            if grad is not None and not grad.isfinite().all():
                raise WrongError(f"the gradient of {site.path}.{name} is not finite")
            if (grad is None or not grad.any()) and _matters(case, site, batch):
                raise WrongError(f"no gradient reaches {site.path}.{name}")


def _matters(case: Adapted, site: Site, batch: Batch) -> bool:
    """Whether the base's loss depends on what this site gives at the edited tokens."""
    added: list[Tensor] = []
    lengths = {value.shape[1] for value in batch.values() if isinstance(value, Tensor) and value.dim() == 2}

    def add(module: Any, args: Any, output: Any) -> Any:
        hidden = hidden_in(output)
        added.append(torch.zeros_like(hidden, requires_grad=True))
        return with_hidden(output, hidden + added[-1])

    handle = site.module.register_forward_hook(add)
    try:
        with case.model.disable_adapter():
            loss = _loss(case.tiny.model(**batch))
            if loss.requires_grad:
                loss.backward()
    finally:
        handle.remove()
    for one in added:
        if one.grad is not None:
            length = next(size for size in one.shape[:-1] if size in lengths)
            rows = rows_of(one.grad, BATCH, length)[0]
            if rows[:, :2].any():
                return True
    return False
