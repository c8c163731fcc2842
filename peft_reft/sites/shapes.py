"""In which form the tensors of a site come: seen in a forward of a few tokens, once per class and config.

The forward runs on the meta device, which computes shapes and nothing else, in a ghost of the model. Where it cannot
(experts that are chosen by values), it runs on the model's own tensors, still in a ghost; where that cannot either
(sharded, offloaded, quantised), tensors are taken for `[batch, seq, hidden]`, and a batch that comes otherwise is
refused.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from peft_reft.hub_format.errors import SiteError

from .forms import PLAIN, Form, form_of, pads_inside
from .ghost import ghost_of, on_meta
from .plain_tokens import plain_tokens
from .stacks import hidden_size_of
from .tensors import hidden_of

__all__ = ["forms_at"]

BATCH, LENGTH, OWN_LENGTH = 2, 3, 5
"""Rows, tokens of a row, and of a row of a decoder beside an encoder: all different."""

Spot = tuple[str, bool]
"""(path of a module, whether its input is meant)."""
_by_shape: dict[Any, dict[Spot, torch.Size]] = {}
_by_model: WeakKeyDictionary[nn.Module, dict[Spot, Form]] = WeakKeyDictionary()


def forms_at(model: nn.Module, spots: Mapping[Spot, str], *, strict: bool = True) -> dict[Spot, Form]:
    """The form of each spot's tensor.

    Args:
        model: the whole model.
        spots: each with the role of its stack.
        strict: whether a shape that no rule knows is refused, or taken for a plain one.

    Raises:
        SiteError: a shape that no rule knows.
    """
    known = _by_model.setdefault(model, {})
    missing = {spot: role for spot, role in spots.items() if spot not in known}
    if missing:
        shapes = _shapes(model, list(missing))
        for spot, role in missing.items():
            length = OWN_LENGTH if role == "decoder" else LENGTH
            form = PLAIN
            if spot in shapes:
                form_there = form_of(shapes[spot], BATCH, length, padded=pads_inside(model, spot[0]))
                if form_there is None and strict:
                    raise _unknown(model, spot, shapes[spot], length)
                form = form_there or PLAIN
            known[spot] = form
    return known


def _unknown(model: nn.Module, spot: Spot, shape: torch.Size, length: int) -> SiteError:
    return SiteError(
        f"{spot[0]} ({type(model.get_submodule(spot[0])).__name__}) {'takes' if spot[1] else 'gives'} {list(shape)} "
        f"for {BATCH} rows of {length} tokens",
        code="site.component",
        value=list(shape),
        rule="known are [batch, seq, hidden], [seq, batch, hidden], and several residual streams, "
        "[batch, seq, streams, hidden] or [streams, batch, seq, hidden]: elsewhere it is not known which numbers are "
        "which token's",
        fix="edit another component or another stack (layers_pattern)",
    )


def _shapes(model: nn.Module, spots: list[Spot]) -> dict[Spot, torch.Size]:
    """Shapes by spot, without those that no forward showed."""
    if getattr(model, "config", None) is None:
        return {}  # no model of transformers: what it is called with is not known
    key = _key(model, spots)
    if key in _by_shape:
        return _by_shape[key]
    found: dict[Spot, torch.Size] = {}
    for place in (on_meta, None):
        if place is None and not _has_its_tensors(model):
            break
        found = {}
        try:
            _watch(ghost_of(model, place), spots, found, torch.device("meta") if place else None)
        except _Seen:
            pass
        except Exception:  # the model's own, of any kind: it needs values, or other inputs
            if not all(spot in found for spot in spots):
                continue
        break
    if not torch.compiler.is_compiling():
        _by_shape[key] = found
    return found


class _Seen(Exception):  # noqa: N818  # no error: it ends a forward of which enough was seen
    """All spots were reached."""


def _watch(ghost: nn.Module, spots: list[Spot], found: dict[Spot, torch.Size], device: torch.device | None) -> None:
    def note(spot: Spot, value: Any) -> None:
        try:
            tensor = hidden_of(value)
        except SiteError:
            return
        found.setdefault(spot, tensor.shape)
        if all(spot in found for spot in spots):
            raise _Seen

    def hook(path: str, on_input: bool) -> None:
        module = ghost.get_submodule(path)
        if on_input:
            module.register_forward_pre_hook(
                lambda _, args, kwargs: note((path, True), args[0] if args else next(iter(kwargs.values()), None)),
                with_kwargs=True,
            )
        else:
            module.register_forward_hook(lambda _, args, output: note((path, False), output))

    for path, on_input in spots:
        hook(path, on_input)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        devices = {parameter.device for parameter in ghost.parameters() if parameter.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices, key=str)))
        if device is not None:
            stack.enter_context(_Valueless())  # type: ignore[no-untyped-call]  # torch's class has no types
        ghost(**_inputs(ghost, device))


class _Valueless(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the same
    """Answers questions for values that a meta tensor does not have, so that a forward goes on: shapes are the same.

    All of something holds (no padding, nothing packed), numbers are 0, and no expert is chosen.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensor = args[0] if args else None
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if func is torch.ops.aten._local_scalar_dense.default:
                return tensor.dtype == torch.bool or torch.zeros((), dtype=tensor.dtype).item()
            if func is torch.ops.aten._grouped_mm.default:  # the meta device has it for bfloat16 only
                return tensor.new_empty((tensor.shape[0], args[1].shape[-1]))
            if func is torch.ops.aten.nonzero.default:
                return tensor.new_empty((0, tensor.dim()), dtype=torch.long)
        return func(*args, **(kwargs or {}))


def _inputs(ghost: nn.Module, device: torch.device | None) -> dict[str, Any]:
    """Plain tokens, and what else a text model is called with."""
    config: Any = getattr(ghost, "config", None)
    takes = inspect.signature(ghost.forward).parameters
    inputs: dict[str, Any] = {}
    if getattr(ghost, "main_input_name", "input_ids") in ("input_ids", "inputs_embeds"):
        inputs["input_ids"] = plain_tokens(ghost, BATCH, LENGTH, device=device)
    elif "encoder_outputs" in takes:
        start = plain_tokens(ghost, BATCH, 1, device=device)
        states = torch.zeros(BATCH, LENGTH, _encoder_size(ghost), device=start.device, dtype=_dtype(ghost))
        inputs["encoder_outputs"] = (states,)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = plain_tokens(ghost, BATCH, OWN_LENGTH, device=device)
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return inputs


def _encoder_size(ghost: nn.Module) -> int:
    config: Any = getattr(getattr(ghost, "config", None), "encoder", None)
    size = getattr(config, "hidden_size", None)
    return size if isinstance(size, int) else hidden_size_of(ghost)


def _dtype(ghost: nn.Module) -> torch.dtype:
    return next((p.dtype for p in ghost.parameters() if p.is_floating_point()), torch.float32)


def _has_its_tensors(model: nn.Module) -> bool:
    """Whether a forward on the model's tensors is one without a trace: all are here, whole, and plain."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False  # other processes would have to run it too
    tensors = list(model.parameters())
    return all(_is_plain(tensor) for tensor in tensors) and not any("_hf_hook" in m.__dict__ for m in model.modules())


def _is_plain(tensor: Tensor) -> bool:
    return (
        not tensor.is_meta
        and tensor.is_floating_point()
        and type(tensor) in (nn.Parameter, Tensor)
        and not hasattr(tensor, "ds_id")
    )


def _key(model: nn.Module, spots: list[Spot]) -> Any:
    """What two models share of which one answers for the other: classes, config, and the modules that are watched."""
    config: Any = getattr(model, "config", None)
    fields = config.to_dict() if hasattr(config, "to_dict") else repr(config)
    watched = tuple((path, on_input, type(model.get_submodule(path))) for path, on_input in spots)
    return type(model), json.dumps(fields, sort_keys=True, default=repr), watched
