"""The callables that are timed: a method's work in a case, and the floor's beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.cases import VOCABULARY, Case, llama
from benchmarks.speed.methods import FIRST, METHODS

__all__ = ["FLOORS", "batch", "compile_base", "floor_on", "floor_work", "method_on", "method_work", "seconds_of"]

Work = Callable[[], object]

FLOORS = {
    "train": "the frozen base, called with its embedded input, of which a gradient is asked: forward, loss, and "
    "backward through all blocks. It has no parameters to update; a method's step is forward, loss, backward to "
    "what it trains, and AdamW. Where the first thing trained sits behind the first block (every ReFT here), the "
    "method's backward ends there, one block before the floor's, and a ratio below 1 is right",
    "forward": "the plain base in evaluation mode, the same forward without gradients; it makes a cache as the "
    "methods' does",
    "generate": "the plain base's own greedy `generate` of as many tokens, with its cache",
    "loaded": "the same method with one adapter on the model instead of many",
}
"""Kind of work → what the floor does, for the table."""


def batch(case: Case, device: str) -> tuple[dict[str, Any], Any]:
    """(input_ids and attention_mask, labels), [batch, tokens]; no padding, the first half is the prompt."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, VOCABULARY, (case.batch, case.tokens), generator=generator).to(device)
    labels = ids.clone()
    labels[:, : case.tokens // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def floor_work(case: Case, device: str) -> Work:
    """The frozen base's; see `FLOORS`."""
    base = llama(case.shape, device)
    compile_base(base, case)
    return floor_on(base, case, device)


def floor_on(base: Any, case: Case, device: str) -> Work:
    """The same on a base that is there."""
    inputs, labels = batch(case, device)
    if case.work == "train":
        base.train()
        embed = base.get_input_embeddings()
        if case.own_cost:
            base.model.layers[0].register_forward_hook(lambda block, given, out: out.detach().requires_grad_())

        def run() -> object:
            embedded = embed(inputs["input_ids"]).detach().requires_grad_(not case.own_cost)
            told = {"attention_mask": inputs["attention_mask"], "labels": labels}
            return base(inputs_embeds=embedded, **told).loss.backward()

        return run
    if case.work == "forward":
        return torch.no_grad()(lambda: base(**inputs))
    return lambda: base.generate(**inputs, **_settings(case))


def method_work(
    name: str, case: Case, device: str, *, loaded: int | None = None, folder: str | None = None, update: bool = True
) -> Work:
    """A method's, on a base of its own, with a fresh adapter or with the one that was saved in `folder`.

    `update=False` leaves the optimiser out of a training step. RuntimeError where the adapter does nothing, or where
    the method cannot have as many as the case loads.
    """
    method = METHODS[name]
    loaded = case.loaded if loaded is None else loaded
    if loaded > 1 and not method.several:
        raise RuntimeError("a model has one adapter")
    base = llama(case.shape, device)
    inputs, _ = batch(case, device)
    with torch.no_grad():
        own = base(**inputs).logits
    model = method.attach(base, case) if folder is None else method.load(base, folder)
    for number in range(1, loaded):
        method.further(model, case, f"a{number}")
    method.train(model, False)
    with torch.no_grad():
        if torch.equal(own, method.forward(model, inputs).logits):
            raise RuntimeError("the adapter changes nothing: it is not active, and its figures would be the base's")
    compile_base(base, case)
    return method_on(model, name, case, device, update=update)


def method_on(model: Any, name: str, case: Case, device: str, *, update: bool = True) -> Work:
    """The same on a model that is there, with its adapters."""
    method = METHODS[name]
    inputs, labels = batch(case, device)
    if case.named > 1:
        names = [FIRST, *(f"a{number}" for number in range(1, case.named))]
        inputs["adapter_names"] = [names[row * case.named // case.batch] for row in range(case.batch)]
    method.train(model, case.work == "train")
    if case.work == "train":
        parameters = method.trainable(model)
        # no weight decay: torch's orthogonal parametrization, which the peers use, does not survive it
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)

        def run() -> object:
            method.forward(model, inputs, labels).loss.backward()
            if update:
                optimiser.step()
            return optimiser.zero_grad()

        return run
    if case.work == "forward":
        return torch.no_grad()(lambda: method.forward(model, inputs))
    return lambda: method.generate(model, inputs, **_settings(case))


def seconds_of(work: Work, calls: int, device: str) -> float:
    """Seconds of one call: computing time of this process on a CPU, synchronised wall time on an accelerator."""
    if device == "cpu":
        clock, wait = time.process_time, _nothing
    else:
        clock, wait = time.perf_counter, torch.cuda.synchronize
    wait()
    start = clock()
    for _ in range(calls):
        work()
    wait()
    return (clock() - start) / calls


def compile_base(base: Any, case: Case) -> None:
    """In place, inside whatever a method puts around the base; a generation compiles its own decoding."""
    if case.compiled is not None and case.work != "generate":
        base.compile(backend=case.compiled)


def _settings(case: Case) -> dict[str, Any]:
    new = case.new_tokens
    told = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    if case.compiled is None:
        return told
    from transformers import CompileConfig

    how = CompileConfig(backend=case.compiled, mode=None)
    how._compile_all_devices = True  # transformers decodes by itself in eager mode on a CPU
    return {**told, "cache_implementation": "static", "compile_config": how}


def _nothing() -> None:
    """A CPU has done its work when a call returns."""
