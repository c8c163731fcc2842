"""What continuous batching refuses instead of editing other tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from contract.tiny import base_model, reft_model
from peft_reft.hub_format.errors import ConfigError, LocationError, PositionError, PromptBoundaryError

from .batching import (
    STEPS,
    batched,
    greedily,
    prompts,
    running,
    small,
    wanted,
)
from .stepwise import greedy
from .test_generation import model_for

pytestmark = pytest.mark.usefixtures("quick_collection")


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


def test_turns_that_nothing_tells_are_refused() -> None:
    """A conversation comes as one prompt; the manager's thread hands the refusal to the caller."""
    model = reft_model("llama", positions="l1", turns="each")
    with pytest.raises(PromptBoundaryError, match="turns='each'"):
        batched(model, prompts()[:2])


@pytest.mark.parametrize("ids", [None, 5, "ab", [], [5.5, 6], [[5, 6]], [None]], ids=str)
def test_a_prompt_that_is_no_list_of_token_ids_is_refused_before_any_is_sent(ids: Any) -> None:
    """A float would be cut, and an empty prompt computed from another request's tokens."""
    model = model_for("llama", "f2+l2")
    manager = model.init_continuous_batching(generation_config=greedily(), continuous_batching_config=small())
    for send in (
        lambda: manager.add_request(ids),
        lambda: manager.add_request(ids, adapter_names="default"),
        lambda: manager.add_requests([[5, 6], ids], adapter_names=["default", "default"]),
        lambda: model.generate_batch([[5, 6], ids], generation_config=greedily(), adapter_names=["default"] * 2),
    ):
        with pytest.raises(ConfigError) as found:
            send()
        assert found.value.code == "continuous.prompt"
    assert manager.input_queue.empty()


@pytest.mark.parametrize("names", [["default", "nope"], ["default", None], ["default"], "default", 5], ids=str)
def test_names_are_refused_before_the_first_of_several_requests_is_sent(names: Any) -> None:
    model = model_for("llama", "f2+l2")
    manager = model.init_continuous_batching(generation_config=greedily(), continuous_batching_config=small())
    with pytest.raises(ConfigError):
        manager.add_requests([[5, 6], [7, 8]], adapter_names=names)
    assert manager.input_queue.empty()
    with pytest.raises(ConfigError, match="inputs is None"):
        manager.add_requests(None, adapter_names=["default"])


def test_an_id_stands_for_one_request_with_its_adapters_until_it_ends() -> None:
    model = model_for("llama", "f2+l2")
    manager = model.init_continuous_batching(generation_config=greedily(), continuous_batching_config=small())
    manager.add_request([5, 6], "mine", adapter_names="default")
    with pytest.raises(ConfigError) as found:
        manager.add_request([5, 6], "mine", adapter_names="__base__")
    assert found.value.code == "continuous.id"
    with pytest.raises(ConfigError, match=r"request_id is \['mine'\]"):
        manager.add_request([5, 6], ["mine"], adapter_names="default")
    manager.add_request([5, 6], "reft_0", adapter_names="default")
    assert manager.add_request([5, 6], adapter_names="__base__") == "reft_1"  # not the id that was taken
    assert manager.input_queue.qsize() == 3
