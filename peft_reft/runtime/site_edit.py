"""The hooks of a site's module: its output or its input, with the active edits applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import PositionError, SiteError
from peft_reft.sites import PLAIN, hidden_of, with_hidden, with_slice

from .activity import LiveUnit
from .affine_edit import edit_affine, edit_window
from .edit import Edit, apply_edits
from .frames import CHILD, Frame, Products
from .holders import is_seen_here_only
from .plan import StackPlan
from .situation import UnitKey

__all__ = ["CHILD", "edit_input", "edit_output"]


def edit_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of the site's module."""
    layer: Any = module._modules[CHILD]
    frame = layer.running.frame
    if frame is None:
        _outside(layer, on_input=False)
        return None
    plan = frame.plans.get(layer.stack)
    if plan is None:  # decoding, for one: whatever the adapters are, it edits nothing
        return None
    if frame.ready is None:
        if not _on_output(frame, layer):
            return None
        frame.ready = layer.ready.of(frame, hidden_of(output))
    ready = frame.ready.get(layer.path)
    if ready is not None:
        hidden = hidden_of(output)
        if ready.fits(hidden):
            # asked first: an argument that waits would be a holder too
            alone = not frame.guarded and is_seen_here_only(hidden, output)
            if alone and ready.room is not None and not ready.learns(hidden):
                edit_window(hidden, ready.room, ready.products, frame)
                return None
            edited = edit_affine(hidden, ready, in_place=alone)
            edited = _sound(edited, hidden) if frame.guarded else edited
            return None if edited is hidden else with_hidden(output, edited)
    units = _on_output(frame, layer)
    return with_hidden(output, _edited(layer, hidden_of(output), units, plan, frame)) if units else None


def _on_output(frame: Frame, layer: Any) -> list[LiveUnit]:
    return [one for one in frame.units.get(layer.path, ()) if not one.tap.on_input]


def edit_input(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the site's module: its first input is what is edited."""
    layer: Any = module._modules[CHILD]
    frame = layer.running.frame
    if frame is None:
        _outside(layer, on_input=True)
        return None
    plan = frame.plans.get(layer.stack)
    units = [] if plan is None else [one for one in frame.units.get(layer.path, ()) if one.tap.on_input]
    if plan is None or not units:
        return None
    name = None if args else next(iter(kwargs))
    edited = _edited(layer, args[0] if name is None else kwargs[name], units, plan, frame)
    return ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})


def _outside(layer: Any, *, on_input: bool) -> None:
    """Refuse to leave edits out of a module that runs where no forward of its model does."""
    if any(one.tap.on_input is on_input for one in layer.live()):
        raise PositionError(
            f"{layer.path} ran outside of its model's forward, so its positions are not known",
            code="positions.outside",
            rule="positions are worked out once, where the model's forward starts",
            fix="call the whole model; for checkpointing use the model's own `activation_checkpointing_enable`, which "
            "was `gradient_checkpointing_enable` and leaves hooks outside the recomputation",
        )


def _sound(edited: Tensor, hidden: Tensor) -> Tensor:
    """h′ where it is a number throughout, else h: attention would carry what is none into other requests' rows."""
    return torch.where(torch.isfinite(edited).all(-1, keepdim=True), edited, hidden)


def _edited(layer: Any, hidden: Tensor, units: Sequence[LiveUnit], plan: StackPlan, frame: Frame) -> Tensor:
    """The tensor of a module's call with the edits of some units applied, in the form that it has."""
    edited = _edited_form(layer, hidden, units, plan, frame)
    return _sound(edited, hidden) if frame.guarded else edited


def _edited_form(layer: Any, hidden: Tensor, units: Sequence[LiveUnit], plan: StackPlan, frame: Frame) -> Tensor:
    form = units[0].tap.form
    if form is not PLAIN and form != PLAIN:  # a copied model has a copy of it
        if not form.fits(hidden):
            raise _other_shape(layer, hidden, plan)
        states = form.states(hidden, plan.shape[1])
        return form.put_back(_edited_states(layer, states, units, plan, frame), hidden)
    flat = hidden.dim() == 2  # OPT's feed-forward part
    if not flat:
        return _edited_states(layer, hidden, units, plan, frame)
    return _edited_states(layer, hidden.reshape(*plan.shape, -1), units, plan, frame).flatten(0, 1)


def _edited_states(layer: Any, hidden: Tensor, units: Sequence[LiveUnit], plan: StackPlan, frame: Frame) -> Tensor:
    """h `[batch, seq, hidden]` with the edits of some units applied."""
    _check_shape(layer, hidden, plan)
    prepared = layer.operands.of(frame, hidden)
    stack = None if frame.rows is None else frame.rows.stack
    for tap in dict.fromkeys(one.tap for one in units):
        members = [one for one in units if one.tap == tap]
        chosen = [one.key for one in members]
        if stack is not None:
            edits = [Edit(stack.unit(layer.path, key[1], plan.batch), None, 1.0, wide=True) for key in chosen]
        else:
            edits = [_at_work(layer, one, prepared.get((layer.path, one.key)), plan, chosen) for one in members]
        if frame.penalties is not None or frame.noise is not None:
            edits = [_in_training(layer, one, edit, frame, hidden) for one, edit in zip(members, edits, strict=True)]
        whole = tap.width is None
        part = apply_edits(
            hidden if whole else hidden[..., tap.start : tap.stop], plan.rows(chosen), edits, tap.factor
        )
        hidden = part if whole else with_slice(hidden, tap, part)
    return hidden


def _check_shape(layer: Any, hidden: Tensor, plan: StackPlan) -> None:
    if not torch.compiler.is_compiling() and (hidden.dim() != 3 or hidden.shape[:2] != plan.shape):
        raise _other_shape(layer, hidden, plan)


def _other_shape(layer: Any, hidden: Tensor, plan: StackPlan) -> SiteError:
    return SiteError(
        f"{layer.path} gave hidden states of shape {list(hidden.shape)}",
        code="site.shape",
        rule=f"[batch, seq, hidden] = [{plan.batch}, {plan.length}, …], as the model was called",
    )


def _at_work(
    layer: Any, one: LiveUnit, given: Products | Tensor | None, plan: StackPlan, chosen: Sequence[UnitKey]
) -> Edit:
    """One unit with what it needs in this call; a compiled graph reads no name and no factor as a number."""
    compiling = torch.compiler.is_compiling()
    factor = one.factor if compiling else layer.scaling[one.name]
    if isinstance(given, Products):
        return Edit(_product_of(given), None, factor, None, wide=one.module.broadcasts and not layer.training)
    unit = one.module if compiling else layer.unit((one.name, one.key[1]))
    return Edit(
        unit,
        given,
        factor,
        plan.sequences(chosen) if unit.across_tokens else None,
        wide=unit.broadcasts and not layer.training,
    )


def _in_training(layer: Any, one: LiveUnit, edit: Edit, frame: Frame, hidden: Tensor) -> Edit:
    """The edit with what a training forward has alone: what its kind adds to the loss, and what it draws from."""
    unit = layer.unit((one.name, one.key[1]))
    penalty = None if frame.penalties is None else frame.penalties.of(unit)
    drawn = unit.samples and frame.noise is not None
    generator = frame.noise.generator(layer.path, one.key, hidden.device) if drawn else None
    return replace(edit, penalty=penalty, generator=generator)


def _product_of(products: Products) -> Callable[..., Tensor]:
    """Gathered rows `[n, hidden]` → their delta."""

    def delta(rows: Tensor, rotation: None) -> Tensor:
        down = products.down if products.source is None else products.source.mT
        down, bias, up = (held.to(rows.dtype) for held in (down, products.bias, products.up))
        return torch.addmm(bias, rows, down) @ up

    return delta
