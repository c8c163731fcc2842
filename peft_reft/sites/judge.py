"""What one watched call of a block says of its components: that they hold, or why they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .parts import (
    attention_output,
    attentions,
    head_count,
    mlp_output,
    multiplier,
    other_outputs,
    output_projection,
    stream_multiplier,
)
from .residual import Flow, equal, follow
from .watch import Call, Trace

__all__ = ["ATTENTION", "FAINT", "FEED_FORWARD", "HEADS", "Found", "Verdict", "judge"]

ATTENTION, FEED_FORWARD, HEADS = "attention_output", "mlp_output", "head_output"
FAINT = "what it adds vanishes in the rounding of the residual stream, as with zero weights, so nothing can be told"
Verdict = str | None
"""Why a component is refused; None where it holds."""

_KEEPS_STREAM = re.compile(r"Norm|^LN$|Dropout|Identity")


@dataclass(frozen=True)
class Found:
    """A component of a block: the path of its module, and why it is refused there, or None."""

    path: str
    reason: Verdict


def judge(block: nn.Module, trace: Trace, config: Any) -> dict[str, Found]:
    """Component → where it is, or why it fails, in this call of the block, for those that the block's structure has.

    Where a norm may belong to a part or stand in the stream, the places are those with which all holds; where none
    does, the likeliest.

    Args:
        block: the block.
        trace: what was seen in the call.
        config: the text model's, for the number of heads.
    """
    tries = ((True, True), (False, False), (True, False), (False, True))
    pairs = dict.fromkeys((attention_output(block, behind=one), mlp_output(block, behind=two)) for one, two in tries)
    answers = []
    for attention, mlp in pairs:
        found = _judged_at(block, trace, config, {ATTENTION: attention, FEED_FORWARD: mlp})
        reasons = {one.reason for kind, one in found.items() if kind != HEADS}
        if reasons <= {None} or FAINT in reasons:
            return found
        answers.append(found)
    return answers[0]


def _judged_at(block: nn.Module, trace: Trace, config: Any, places: Mapping[str, str | None]) -> dict[str, Found]:
    whole = trace.calls[""][-1]
    projection = output_projection(block)
    if whole.before is None or whole.after is None or whole.before.shape != whole.after.shape:
        reason = "the block does not take and give hidden states of one shape"
        every = {**places, HEADS: projection}
        return {name: Found(path, reason) for name, path in every.items() if path is not None}
    verdicts: dict[str, Found] = {}
    named = {**places, **{path: path for path in other_outputs(block)}}
    parts = {
        name: multiplier(block, name) * part
        for name, path in named.items()
        if (part := _only(trace, path, whole.before)) is not None
    }
    inside = [(path, call) for path, calls in trace.calls.items() if path for call in calls]
    flow = follow(
        whole.before,
        whole.after,
        [tensor for _, call in inside for tensor in _both(call, whole.before)],
        [
            (pair[0], pair[1])
            for path, call in inside
            if _KEEPS_STREAM.search(type(block.get_submodule(path)).__name__)
            and len(pair := _both(call, whole.before)) == 2
        ],
        parts,
        trace.eps,
        {name: stream_multiplier(block, name) for name in parts},
    )
    for name, path in places.items():
        if path is not None:
            verdicts[name] = Found(path, _added(name, path, flow, parts))
    if projection is not None:
        proven = places[ATTENTION] == projection and ATTENTION in flow.added
        verdicts[HEADS] = Found(projection, _heads(block, trace, projection, config, proven=proven))
    return verdicts


def _added(name: str, path: str, flow: Flow, parts: Mapping[str, Tensor]) -> Verdict:
    if name not in parts:
        return f"{path} is not called once in the block, or gives no hidden states"
    if name in flow.faint:
        return FAINT
    if name not in flow.added:
        return f"what {path} gives is not what the block adds"
    return None if flow.closed else "the block's output is not its input plus its attention and its feed-forward part"


def _heads(block: nn.Module, trace: Trace, projection: str, config: Any, *, proven: bool) -> Verdict:
    """The projection gives what its attention gives, and takes the products of weights and values, head by head."""
    calls = trace.calls.get(projection, [])
    taken, given = (calls[0].before, calls[0].after) if len(calls) == 1 else (None, None)
    if taken is None or given is None:
        return f"{projection} is not called once in the block"
    if not bool(given.any()):
        return FAINT
    owner = next(path for path in attentions(block) if projection.startswith(f"{path}."))
    parts = projection.removeprefix(f"{owner}.").split(".")[:-1]
    around = [_only(trace, ".".join([owner, *parts[:end]]), given) for end in range(len(parts) + 1)]
    if not proven and not any(found is not None and equal(found, given, trace.eps) for found in around):
        return f"{projection} does not give what {owner} gives"
    heads, width = head_count(block, projection, config), taken.shape[-1]
    if heads is None or width % heads:
        return f"{projection} takes {width} numbers, which are not {heads} heads"
    sizes = _head_sizes(trace, owner, calls[0])
    if sizes - {width // heads}:
        return f"{owner} has heads of {sorted(sizes)} numbers, and {projection} takes {heads} × {width // heads}"
    return None


def _head_sizes(trace: Trace, owner: str, projection: Call) -> set[int]:
    """How wide a head is by the last product before the projection, and by norms of single heads after it."""
    if projection.product is None or projection.before is None:
        return set()
    width = projection.before.shape[-1]
    inside = [call for path, calls in trace.calls.items() if path.startswith(f"{owner}.") for call in calls]
    after = [call.before for call in inside if call.product == projection.product and call.before is not None]
    norms = {seen.shape[-1] for seen in after if seen.numel() == projection.before.numel()}
    return {projection.product[-1], *(size for size in norms if size != width)}


def _only(trace: Trace, path: str | None, like: Tensor) -> Tensor | None:
    """What a module gave, if it ran once in the call and gave a tensor of this shape."""
    calls = [] if path is None else trace.calls.get(path, [])
    found = calls[0].after if len(calls) == 1 else None
    return found if found is not None and found.shape == like.shape else None


def _both(call: Call, like: Tensor) -> list[Tensor]:
    return [tensor for tensor in (call.before, call.after) if tensor is not None and tensor.shape == like.shape]
