"""One tiny forward of a model, watched: what the modules of its blocks take and give.

The forward leaves no trace: modes, random states and the user's own hooks are as before. These hooks do not run
meanwhile, so nobody sees a forward that he did not ask for.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .plain_tokens import device_of_inputs, plain_tokens

__all__ = ["Call", "Trace", "reached_blocks", "watched_forward"]

TOKENS = 2
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_PRODUCTS = frozenset({"scaled_dot_product_attention", "matmul", "__matmul__", "bmm", "baddbmm", "einsum"})


@dataclass(frozen=True)
class Call:
    """One call of a module: its first input and first output, where these are tensors, in float64 on the CPU.

    Attributes:
        product: shape of the last product of tensors before the call, of weights and values in an attention.
    """

    before: Tensor | None
    after: Tensor | None
    product: tuple[int, ...] | None


@dataclass
class Trace:
    """One call of a block: the calls of its modules by path (`""` is the block), and the coarsest dtype's eps."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    eps: float = 0.0


def watched_forward(model: nn.Module, blocks: Mapping[str, nn.Module], judge: Callable[[str, Trace], None]) -> None:
    """Run the model on two tokens and hand each call of a block to `judge`, as it ends.

    Args:
        model: a model that takes `input_ids`, all its weights in place.
        blocks: path → block.
        judge: called with a block's path and what was seen in it.

    Raises:
        Exception: whatever the model's forward raises.
    """
    inputs = _inputs(model)
    with _leaving_no_trace(model), _Products() as products:
        for path, block in blocks.items():
            _watch(path, block, products, judge)
        model(**inputs)


def reached_blocks(model: nn.Module, paths: Iterable[str]) -> set[str]:
    """Those of the paths whose modules' hooks run in a forward on two tokens.

    Raises:
        Exception: whatever the model's forward raises.
    """
    inputs, reached = _inputs(model), set[str]()
    with _leaving_no_trace(model):
        for path in paths:
            model.get_submodule(path).register_forward_hook(lambda *_, path=path: reached.add(path))
        model(**inputs)
    return reached


@contextmanager
def _leaving_no_trace(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_states_kept(model))
        stack.enter_context(_alone(model))
        stack.enter_context(torch.autocast(device_of_inputs(model).type, enabled=False))
        yield


def _watch(path: str, block: nn.Module, products: _Products, judge: Callable[[str, Trace], None]) -> None:
    """Hook a block and every module inside; `_alone` takes the hooks off again."""
    traces: list[Trace] = []
    open_calls: list[tuple[str, Tensor | None, tuple[int, ...] | None]] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if not name:
                traces.append(Trace())
                products.last = None
            if traces:
                given = args[0] if args else next(iter(kwargs.values()), None)
                open_calls.append((name, _kept(given, traces[-1]), products.last))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            while open_calls and open_calls[-1][0] != name:
                open_calls.pop()
            if not open_calls:
                return
            _, before, product = open_calls.pop()
            trace = traces[-1]
            trace.calls.setdefault(name, []).append(Call(before, _kept(_first(output), trace), product))
            if not name:
                judge(path, traces.pop())

        return hook

    for name, module in block.named_modules():
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        module.register_forward_hook(leave(name))


class _Products(TorchFunctionMode):
    """Keeps the shape of the last product of two tensors: a linear map is none, an attention's last step is one."""

    last: tuple[int, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _PRODUCTS and isinstance(result, Tensor):
            self.last = tuple(result.shape)
        return result


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Without any hook on the model's modules; afterwards each has those it had, and no other."""
    found = [(module, name, module.__dict__[name]) for module in model.modules() for name in _HOOKS]
    try:
        for module, name, hooks in found:
            module.__dict__[name] = type(hooks)()
        yield
    finally:
        for module, name, hooks in found:
            module.__dict__[name] = hooks


@contextmanager
def _states_kept(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module's mode and every random state are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    python, array = random.getstate(), numpy.random.get_state()  # models draw from the global one
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            for module, _ in modes:
                module.training = False
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        for module, training in modes:
            module.training = training


def _inputs(model: nn.Module) -> dict[str, Any]:
    """Two plain tokens, and what else a text model is called with."""
    ids = plain_tokens(model, 1, TOKENS)
    takes = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return inputs


def _first(output: Any) -> Any:
    found = next(iter(output.values()), None) if isinstance(output, Mapping) else output
    return found[0] if isinstance(found, (tuple, list)) and found else found


def _kept(value: Any, trace: Trace) -> Tensor | None:
    """A copy, as `[tokens, width]` in float64: models change tensors in place later."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    trace.eps = max(trace.eps, torch.finfo(value.dtype).eps)
    return value.detach().to("cpu", torch.float64, copy=True).flatten(0, -2)
