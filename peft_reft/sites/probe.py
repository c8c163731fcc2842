"""Whether a component is what it is said to be: one tiny forward of the model settles it, once per class and config.

- `attention_output`, `mlp_output`: the block adds them, so that input + attention + feed-forward = output, in whatever
  order and number of steps.
- `head_output[n]`, `heads`: the heads concatenated are what the attention's output projection takes.

What fails is refused by name. A model that cannot run here (on the meta device, sharded, offloaded, or with inputs
that are no tokens) is judged by the table of blocks that were probed before, `known_blocks.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from peft_reft.hub_format.errors import SiteError

from .components import Place
from .judge import ATTENTION, FAINT, FEED_FORWARD, HEADS, Found, judge
from .stacks import text_config
from .watch import Trace, watched_forward

__all__ = ["check_components", "judged", "probed"]

_FIX = "use component='block_output' or 'block_input', or in the causal toolkit Site(module=…)"
_by_shape: dict[Any, dict[tuple[str, str], Found]] = {}
_by_model: WeakKeyDictionary[nn.Module, dict[tuple[str, str], str]] = WeakKeyDictionary()


def probed(component: str) -> bool:
    """Whether a component is one that is probed; a block's own input and output need no proof."""
    return component in (ATTENTION, FEED_FORWARD) or _kind(component) == HEADS


def check_components(
    model: nn.Module, wanted: Mapping[tuple[str, str], Sequence[Place]]
) -> dict[tuple[str, str], Place]:
    """Where components are, of the places where they may be; those that are not what they are said to be are refused.

    Args:
        model: the whole model.
        wanted: (path of a block, name of a component) → where it may be, the likeliest place first.

    Raises:
        SiteError: one of them fails, or cannot be told.
    """
    known = _by_model.setdefault(model, {})
    missing = {
        (path, _kind(name)): [place.path for place in places]
        for (path, name), places in wanted.items()
        if known.get((path, _kind(name))) not in [place.path for place in places]
    }
    found = _found(model, missing) if missing else {}
    chosen = {}
    for (path, name), places in wanted.items():
        kind = _kind(name)
        if (path, kind) in found:
            here = found[path, kind]
            if here.reason is not None:  # not kept with the model: its weights may come later
                raise _refuse(type(model.get_submodule(path)).__name__, path, name, here.reason)
            known[path, kind] = here.path
        chosen[path, name] = next(place for place in places if place.path == known[path, kind])
    return chosen


def judged(model: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[tuple[str, str], Found]:
    """(path of a block, component) → where it is, or why it fails, for all that the blocks have, by a forward.

    Raises:
        Exception: whatever the model's forward raises on two tokens.
    """
    found: dict[tuple[str, str], Found] = {}
    config = text_config(model)

    def note(path: str, trace: Trace) -> None:
        for kind, here in judge(blocks[path], trace, config).items():
            before = found.get((path, kind), here)  # a block may run several times
            if before.reason is None and before.path != here.path:
                here = replace(
                    here, reason=here.reason or f"it is {before.path} in one call and {here.path} in another"
                )
            found[path, kind] = before if before.reason is not None else here

    watched_forward(model, blocks, note)
    return found


def _found(model: nn.Module, missing: Mapping[tuple[str, str], Sequence[str]]) -> dict[tuple[str, str], Found]:
    blocks = {path: model.get_submodule(path) for path, _ in missing}
    cause = _cannot_run(model)
    key = _shape(model, blocks)
    found = {} if cause else _by_shape.get(key, {})
    if not cause and not all(place in found for place in missing):
        try:
            found = judged(model, blocks)
        except Exception as error:  # the model's own, of any kind: the table speaks instead
            cause = f"its forward on two tokens raised {type(error).__name__}: {str(error)[:200]}"
        else:
            if not any(here.reason == FAINT for here in found.values()):  # other weights may tell
                _by_shape[key] = found
    answers = {}
    for (path, kind), paths in missing.items():
        here = found.get((path, kind))
        if here is None:
            here = Found(paths[0], f"no forward was run: {cause}" if cause else "the forward did not reach it")
        elif here.reason is None and here.path not in paths:
            here = replace(here, reason=f"it is {here.path}, which the block's structure does not say")
        untold = (path, kind) not in found or here.reason == FAINT
        held = next((one for one in paths if _is_known(blocks[path], kind, one)), None) if untold else None
        answers[path, kind] = here if held is None else Found(held, None)
    return answers


def _cannot_run(model: nn.Module) -> str | None:
    """Why no forward is run: the weights are not all here, or the model is one process's part of a larger one."""
    if torch.compiler.is_compiling():
        return "the model is being compiled"
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            return f"{name} is on the meta device, or offloaded"
        if hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id"):
            return f"{name} is sharded"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        if any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules()):
            return "the model is wrapped by FSDP"
    return None


def _shape(model: nn.Module, blocks: Mapping[str, nn.Module]) -> Any:
    """What two models share of which one answers for the other: classes, config, and the modules of the blocks."""
    config: Any = getattr(model, "config", None)
    fields = config.to_dict() if hasattr(config, "to_dict") else repr(config)
    modules = tuple(
        (path, name, type(module)) for path, block in blocks.items() for name, module in block.named_modules()
    )
    return type(model), json.dumps(fields, sort_keys=True, default=repr), modules


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    text = files(__package__).joinpath("known_blocks.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[str]]] = json.loads(text)
    return table


def _is_known(block: nn.Module, kind: str, path: str) -> bool:
    """Whether the table says that a component of this class of block holds at this module.

    The class counts with its module: another library's block of the same name is another block.
    """
    cls = type(block)
    return path in _table().get(f"{cls.__module__}.{cls.__qualname__}", {}).get(kind, ())


def _kind(component: str) -> str:
    return HEADS if component.startswith(HEADS) or component == "heads" else component


def _refuse(block: str, path: str, component: str, reason: str) -> SiteError:
    return SiteError(
        f"component={component!r} of {path} ({block}): {reason}",
        code="site.component",
        value=component,
        rule="attention_output and mlp_output are what the block adds to its input, head_output[n] is what the "
        "attention's output projection takes from head n; a short forward checks it when the model is made, or a "
        "table of known blocks where none can run",
        fix=_FIX,
    )
