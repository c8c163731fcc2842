"""Continuous batching gives the tokens of step-by-step decoding, and edits the tokens that the spec means."""

from __future__ import annotations

import copy
import pathlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel

import peft_reft.layer
import peft_reft.runtime.hooks
import peft_reft.runtime.requests
from contract.recording import differing, inputs_of, raw_outputs_of, reader_of
from contract.tiny import BY_NAME, base_model, reft_model, token_ids
from mixed.tiny import mixed_model
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import ConfigError, LocationError, PositionError, PromptBoundaryError
from peft_reft.hub_format.positions import parse_positions
from peft_reft.runtime.continuous import ContinuousBatching, shared_reach
from peft_reft.runtime.requests import Batch
from positions.reference import edited_tokens

from .batching import LENGTHS, STEPS, Segments, answer, batched, counted, greedily, prompts, running, small
from .stepwise import greedy
from .test_generation import model_for, spy_on

SPECS = ("f2+l2", "l4", "f3+l5", "p[1:-1]", "all", "prompt-l1", "generated", "g[1:3]", "all-f1", "f4")
OTHERS = (("gpt2", "f2+l2"), ("gpt2", "g[:2]"), ("mistral", "l4"), ("gemma2", "f2+l2"), ("qwen3", "all-f1"))


def wanted(model: Any, spec: str, steps: int = STEPS) -> list[list[int]]:
    return [greedy(model, spec, prompt, steps) for prompt in prompts()]


@pytest.mark.parametrize(("name", "spec"), [*(("llama", spec) for spec in SPECS), *OTHERS])
def test_tokens_are_those_of_stepwise_decoding(name: str, spec: str) -> None:
    """Prompts in pieces beside others that decode, and more requests than fit: some start over with what they said."""
    model = model_for(name, spec)
    with counted("requeued") as requeued:
        found = batched(model, prompts())
    assert found == wanted(model, spec)
    assert name != "llama" or any(requeued)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 64, "num_blocks": 64},
        {"max_batch_tokens": 1},
        {"scheduler_type": "prefill_first"},
        {"cpu_offload_space": 0.01},
        {"max_requests_per_batch": 2},
        {"return_logprobs": True},
        {"allow_block_sharing": False},
    ],
)
@pytest.mark.parametrize("spec", ["f2+l2"])
def test_settings(spec: str, settings: dict[str, Any]) -> None:
    model = model_for("llama", spec)
    assert batched(model, prompts(), **settings) == wanted(model, spec)


def test_eager_attention() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2+l2")
    model.get_base_model().set_attn_implementation("eager")
    assert batched(model, prompts()) == wanted(model, "f2+l2")


@pytest.mark.parametrize("spec", ["l2", "f4"])
def test_several_returned_sequences(spec: str) -> None:
    """Forks of a request share its prompt; sampling among one candidate is greedy."""
    model = model_for("llama", spec)
    how = greedily(do_sample=True, top_k=1, num_return_sequences=3)
    found = batched(model, prompts(), how=how)
    assert found == [row for row in wanted(model, spec) for _ in range(3)]


def test_an_adapter_loaded_by_transformers(tmp_path: pathlib.Path) -> None:
    model = model_for("llama", "f2+l2")
    model.save_pretrained(tmp_path)
    base = base_model("llama", dtype=torch.float64)
    base.load_adapter(str(tmp_path))
    assert batched(base, prompts()) == wanted(model, "f2+l2")


def test_a_lora_and_a_reft() -> None:
    mixed = mixed_model(strong=True, base=base_model("llama", dtype=torch.float64)).eval()
    found = batched(mixed, prompts())
    assert found == wanted(mixed, "f2+l2")
    mixed.set_adapter("default")
    assert batched(mixed, prompts()) != found


def test_two_adapters_and_switching_them() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2")
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="g[:2]", init_weights=False))
    plain_specs = {}
    for name, spec in (("default", "f2"), ("second", "g[:2]")):
        model.set_adapter(name)
        plain_specs[name] = batched(model, prompts())
        assert plain_specs[name] == wanted(model, spec)
    with model.disable_adapter():
        assert batched(model, prompts()) not in plain_specs.values()


def test_requests_that_come_while_others_run() -> None:
    model, given = model_for("llama", "f2+l2"), prompts()
    manager = model.init_continuous_batching(generation_config=greedily(), continuous_batching_config=small())
    manager.start()
    try:
        names = [manager.add_request(prompt.tolist(), max_new_tokens=3 + n) for n, prompt in enumerate(given)]
        results: dict[str, list[int]] = {}
        while len(results) < len(given):
            result = manager.get_result(timeout=1)
            assert result is not None
            assert result.error is None
            if result.is_finished():
                results[result.request_id] = result.generated_tokens
    finally:
        manager.stop()
    for number, (name, prompt) in enumerate(zip(names, given, strict=True)):
        assert results[name] == greedy(model, "f2+l2", prompt, 3 + number)


# Which tokens, read from activations


def random_spec(draw: random.Random) -> str:
    terms = [
        f"f{draw.randint(1, 6)}",
        f"l{draw.randint(1, 6)}",
        f"p[{draw.randint(0, 3)}:{draw.choice([-2, -1, 4, 9])}]",
        f"g[{draw.randint(0, 2)}:{draw.randint(3, 5)}]",
        "prompt",
        "all",
    ]
    spec = "+".join(draw.sample(terms[:4], draw.randint(1, 3))) if draw.random() < 0.8 else draw.choice(terms[4:])
    return spec + draw.choice(["", "", "-f1", "-l1"] if spec not in ("f1", "l1") else [""])


def check_edited(spec: str, seed: int, layer: int = 1, **settings: Any) -> None:
    """Every token that a forward computes is edited if the spec says so of its request, and else not."""
    model, given = reft_model("llama", positions=spec), prompts(seed=seed)
    base = model.get_base_model()
    block = base.get_submodule(f"{BY_NAME['llama'].blocks['only']}.{layer}")
    with (
        Segments(base) as forwards,
        raw_outputs_of(block) as raw,
        inputs_of(reader_of(model, "llama", layer)) as read,
    ):
        outputs = batched(model, given, **settings)
    whole = [prompt.tolist() + output for prompt, output in zip(given, outputs, strict=True)]
    told, edits = 0, 0
    for segments, before, after in zip(forwards, raw, read, strict=True):
        found, column = differing(after, before), 0
        for first, tokens in segments:
            flags = {
                tuple(meant(spec, len(prompt), len(row))[first : first + len(tokens)])
                for prompt, row in zip(given, whole, strict=True)
                if row[first : first + len(tokens)] == tokens
            }
            assert flags, "a forward computes tokens of no request"
            if len(flags) == 1:  # else two requests say the same here
                told += 1
                here = tuple((0, column + number) in found for number in range(len(tokens)))
                assert here == next(iter(flags))
                edits += sum(here)
            column += len(tokens)
    assert told > len(given) * STEPS * 0.8
    assert edits or spec.endswith("-f1") or spec.endswith("-l1")


def meant(spec: str, prompt: int, total: int) -> list[bool]:
    edited = set().union(*edited_tokens(spec, [[True] * total], width=prompt))
    return [(0, token) in edited for token in range(total)]


@pytest.mark.parametrize("seed", range(10))
def test_the_tokens_that_the_spec_means_are_edited(seed: int) -> None:
    draw = random.Random(seed)
    settings = {"page_size": draw.choice([4, 8]), "max_batch_tokens": draw.randint(3, 20)}
    check_edited(random_spec(draw), 100 * seed, **settings)


# Shared prefixes


def check_shared(spec: str, first: int, second: int, *, shares: bool) -> None:
    """A request whose tokens begin as another's prompt and answer do; the first is over, its blocks are kept."""
    model, row = model_for("llama", spec), token_ids(1, 16, seed=5)[0]
    with counted("shared") as shared, running(model) as manager:
        one = answer(manager, row[:first].tolist())
        longer = torch.cat([row[:first], torch.tensor(one), row[first:]])[:second]
        two = answer(manager, longer.tolist())
    assert one == greedy(model, spec, row[:first], STEPS)
    assert two == greedy(model, spec, longer, STEPS)
    assert (max(shared, default=0) > 0) == shares


@pytest.mark.parametrize(
    ("spec", "first", "second", "shares"),
    [
        ("f2", 9, 13, True),
        ("f4", 4, 9, True),
        ("f4", 2, 9, False),
        ("all", 2, 9, True),
        ("all-f3", 9, 13, True),
        ("p[1:3]", 3, 9, True),
        ("p[1:3]", 2, 9, False),
        ("l2", 9, 13, False),
        ("prompt", 9, 13, False),
        ("generated", 2, 9, False),
        ("f2-l1", 9, 13, False),
        ("p[:-1]", 9, 13, False),
    ],
)
def test_a_shared_prefix(spec: str, first: int, second: int, shares: bool) -> None:
    """Blocks are shared only where the edits of both requests are the same in them."""
    check_shared(spec, first, second, shares=shares)


def test_a_prompt_too_short_ends_sharing_for_those_that_come_back() -> None:
    """What a short prompt generated goes back into the queue with it, where a longer prompt's blocks would fit."""
    spec = "f4"
    model, row = model_for("llama", spec), token_ids(1, 16, seed=5)[0]
    said = greedy(model, spec, row[:2], STEPS)
    longer = torch.cat([row[:2], torch.tensor(said)])
    with running(model) as manager:
        assert answer(manager, longer.tolist()) == greedy(model, spec, longer, STEPS)
        assert manager.batch_processor.cache.use_prefix_sharing
        assert answer(manager, row[:2].tolist()) == said
        assert not manager.batch_processor.cache.use_prefix_sharing
        assert answer(manager, longer.tolist()) == greedy(model, spec, longer, STEPS)


@pytest.mark.parametrize(
    ("spec", "reach"),
    [("f4", 4), ("f4+p[2:9]", 9), ("all-f2", 2), ("p[:3]", 3), ("all", 0), ("f1+l1", None), ("p[2:]", None)]
    + [("p[-3:-1]", None), ("all-l1", None), ("g[:1]", None), ("prompt", None), ("p[1:-1]", None)],
)
def test_how_long_prompts_must_be_to_share(spec: str, reach: int | None) -> None:
    assert shared_reach(parse_positions(spec)) == reach


def test_kept_managers_do_not_mix_edits() -> None:
    """Blocks that were computed with other edits, or with none, are not used."""
    model = reft_model("llama", dtype=torch.float64, positions="f2")
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="l2", init_weights=False))
    given = [prompt.tolist() for prompt in prompts()]
    how: dict[str, Any] = {"generation_config": greedily(), "persistent_manager": True}
    model.generate_batch(inputs=given, continuous_batching_config=small(), **how)
    again = model.generate_batch(inputs=given, **how)
    assert [output.generated_tokens for output in again.values()] == wanted(model, "f2")
    with model.disable_adapter(), pytest.raises(PositionError, match="active edits changed"):
        model.generate_batch(inputs=given, **how)
    model.set_adapter("second")
    with pytest.raises(PositionError, match="destroy_cached"):
        model.generate_batch(inputs=given, **how)
    model.destroy_cached_continuous_batching_manager()
    found = model.generate_batch(inputs=given, continuous_batching_config=small(), **how)
    assert [output.generated_tokens for output in found.values()] == wanted(model, "l2")
    model.destroy_cached_continuous_batching_manager()
    model.set_adapter("default")
    with torch.no_grad():
        model.generate_batch(inputs=given, continuous_batching_config=small(), **how)
        next(p for n, p in model.named_parameters() if "default" in n).mul_(2.0)
    with pytest.raises(PositionError, match="active edits changed"):
        model.generate_batch(inputs=given, **how)
    model.destroy_cached_continuous_batching_manager()


# What costs nothing


def test_a_decode_only_batch_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's adapter resolves no positions and calls no unit once every request of the batch decodes."""
    model = model_for("llama", "f2+l2")
    log: list[str] = []
    spy_on(monkeypatch, peft_reft.runtime.requests, "unit_masks", log)
    spy_on(monkeypatch, peft_reft.layer, "apply_edits", log)
    spy_on(monkeypatch, peft_reft.runtime.hooks, "orthonormal_rows", log)
    base = model.get_base_model()
    handle = base.register_forward_pre_hook(lambda *args: log.append("forward"), prepend=True)
    try:
        with Segments(base) as forwards:
            batched(model, prompts()[:3], num_blocks=64, max_batch_tokens=64)
    finally:
        handle.remove()
    names = {"forward": "|", "apply_edits": "e", "unit_masks": "m", "orthonormal_rows": "r"}
    work = "".join(names[entry] for entry in log).split("|")[1:]
    decodes = [all(len(tokens) == 1 and first >= 2 for first, tokens in segments) for segments in forwards]
    assert decodes == [False, *[True] * (STEPS - 1)]
    assert work == ["mreee", *[""] * (STEPS - 1)]


# What is refused


@pytest.mark.parametrize("name", ["prompt_mask", "prompt_lengths", "intervention_locations"])
def test_explicit_positions_are_refused(name: str) -> None:
    """`generate_batch` would drop the keyword."""
    model, said = model_for("llama", "f2+l2"), {name: torch.ones(1, 1, 1, dtype=torch.long)}
    with pytest.raises(LocationError, match=f"{name} is not supported by continuous batching"):
        model.generate_batch(inputs=[[5, 6]], generation_config=greedily(), **said)
    with running(model) as manager:
        with pytest.raises(LocationError, match=name):
            manager.add_request([5, 6], **said)
        with pytest.raises(LocationError, match=name):
            manager.add_requests([[5, 6]], **said)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cuda_graph": True},
        {"use_cuda_graph": (False, True)},
        {"default_compile_level": 1},
        {"varlen_compile_config": hf.CompileConfig()},
        {"decode_compile_config": hf.CompileConfig()},
    ],
)
def test_replays_are_refused(settings: dict[str, Any]) -> None:
    model = model_for("llama", "f2")
    with pytest.raises(ConfigError, match=next(iter(settings))):
        model.init_continuous_batching(generation_config=greedily(), continuous_batching_config=small(**settings))


def test_guidance_is_refused() -> None:
    model = model_for("llama", "f2")
    with pytest.raises(PromptBoundaryError, match="guidance_scale"):
        model.generate_batch(inputs=[[5, 6]], generation_config=greedily(guidance_scale=2.0))


def test_a_manager_that_the_model_does_not_know_is_refused() -> None:
    """Made without the model's own method: its forwards name no request."""
    from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

    model = model_for("llama", "l1")
    manager = ContinuousBatchingManager(model.get_base_model(), greedily(), small(allow_block_sharing=False))
    manager.start()
    try:
        name = manager.add_request([5, 6, 7])
        assert "init_continuous_batching" in next(manager.request_id_iter(name)).error
    finally:
        manager.stop()


def test_a_kind_that_looks_across_tokens_needs_its_prompt_whole() -> None:
    """Its edit depends on the whole sequence: exact in one piece, an error in several, never shared."""
    model = reft_model("llama", dtype=torch.float64, positions="f4", intervention="reft_r1", init_weights=None)
    given = prompts()[:3]
    found = batched(model, given, max_batch_tokens=64, num_blocks=64)
    assert found == [greedy(model, "f4", prompt, STEPS) for prompt in given]
    with pytest.raises(PositionError, match="whole sequence"):
        batched(model, given, max_batch_tokens=3)
    with running(model) as manager:
        assert not manager.continuous_batching_config.allow_block_sharing


@pytest.mark.parametrize("way", ["bind", "defaults", "base"])
def test_arguments_as_the_model_takes_them(way: str) -> None:
    """Positional arguments, none at all, and the base by itself."""
    model = model_for("llama", "l2")
    own = model.get_base_model()
    given = [prompt.tolist() for prompt in prompts()]
    ways: dict[str, Callable[[], Any]] = {
        "bind": lambda: model.generate_batch(given, greedily(), small()),
        "defaults": lambda: own.generate_batch(given, max_new_tokens=STEPS, continuous_batching_config=small()),
        "base": lambda: own.generate_batch(
            inputs=given, generation_config=greedily(), continuous_batching_config=small()
        ),
    }
    settings = small()
    own.generation_config.do_sample = False
    assert [output.generated_tokens for output in ways[way]().values()] == wanted(model, "l2")
    assert settings.allow_block_sharing  # a caller's settings are left as they are


def test_nothing_is_left_on_an_unloaded_model() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="l2")
    base = model.get_base_model()
    before = batched(model, prompts())
    twin = copy.deepcopy(model)
    assert batched(twin, prompts()) == before
    model.unload()
    assert not {"init_continuous_batching", "generate_batch"} & set(vars(base))
    assert batched(base, prompts()) == batched(base_model("llama", dtype=torch.float64), prompts())
    assert batched(twin, prompts()) == before


# Mutants: each takes one guard out, and a check above must fail


def requests_changed(change: Callable[[Batch], Batch]) -> Callable[[pytest.MonkeyPatch], None]:
    original = Batch.of.__func__  # type: ignore[attr-defined]

    def mutate(patch: pytest.MonkeyPatch) -> None:
        def of(cls: Any, processor: Any, call: Any) -> Any:
            batch = original(cls, processor, call)
            return batch if batch is None else change(batch)

        patch.setattr(Batch, "of", classmethod(of))

    return mutate


def each(change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return requests_changed(lambda batch: replace(batch, requests=tuple(map(change, batch.requests))))


def reversed_order(batch: Batch) -> Batch:
    """Each request's prompt and place are taken for another's."""
    swapped: Sequence[Any] = [
        replace(own, prompt=other.prompt, past=other.past)
        for own, other in zip(batch.requests, reversed(batch.requests), strict=True)
    ]
    return replace(batch, requests=tuple(swapped))


def requeued_prompts_grow(patch: pytest.MonkeyPatch) -> None:
    """What a request said before it was put back counts as its prompt."""
    original = Batch.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, processor: Any, call: Any) -> Any:
        batch = original(cls, processor, call)
        states = [future.state for future in processor.inputs_and_outputs.requests_in_batch]
        lengths = [len(state.initial_tokens) for state in states]
        requests = [replace(own, prompt=n) for own, n in zip(batch.requests, lengths, strict=True)]
        return replace(batch, requests=tuple(requests))

    patch.setattr(Batch, "of", classmethod(of))


def always_shared(patch: pytest.MonkeyPatch) -> None:
    """transformers' default, whatever the spec."""
    patch.setattr(ContinuousBatching, "_reach", lambda self: 0)


def check_tokens(spec: str) -> None:
    test_tokens_are_those_of_stepwise_decoding("llama", spec)


MUTANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = [
    (always_shared, lambda: check_shared("l2", 9, 13, shares=False)),
    (always_shared, lambda: check_shared("f4", 2, 9, shares=False)),
    (always_shared, test_a_prompt_too_short_ends_sharing_for_those_that_come_back),
    (requeued_prompts_grow, lambda: check_tokens("l4")),
    (requeued_prompts_grow, lambda: check_edited("l2", 0)),
    (each(lambda request: replace(request, past=0)), lambda: check_tokens("f2+l2")),
    (each(lambda request: replace(request, past=0)), lambda: check_edited("f3", 0)),
    (each(lambda request: replace(request, prompt=max(LENGTHS))), lambda: check_tokens("l4")),
    (requests_changed(reversed_order), lambda: check_tokens("f2+l2")),
    (requests_changed(reversed_order), lambda: check_edited("f2+l2", 0)),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
def test_a_mutant_is_caught(mutant: Callable[..., None], check: Callable[[], None]) -> None:
    check()
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises(AssertionError):
            check()


def test_the_prompts_tell_the_specs_apart() -> None:
    """Else the comparisons above would prove nothing."""
    found = [wanted(model_for("llama", spec), spec) for spec in SPECS]
    assert len({str(tokens) for tokens in found}) == len(SPECS)
    model: PeftModel = model_for("llama", "f2+l2")
    with model.disable_adapter():
        assert batched(model, prompts()) not in found
