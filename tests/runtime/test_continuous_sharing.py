"""Blocks of keys and values are shared by requests only where the edits in them are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contract.tiny import reft_model, token_ids
from peft_reft import ReftConfig
from peft_reft.generation.continuous import ContinuousBatching, shared_reach
from peft_reft.hub_format.errors import PositionError
from peft_reft.hub_format.positions import parse_positions

from .batching import (
    STEPS,
    answer,
    counted,
    greedily,
    prompts,
    running,
    small,
)
from .stepwise import greedy
from .test_generation import model_for

pytestmark = pytest.mark.usefixtures("quick_collection")


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
    [
        *[("f4", 4), ("f4+p[2:9]", 9), ("all-f2", 2), ("p[:3]", 3), ("all", 0), ("f1+l1", None), ("p[2:]", None)],
        *[("p[-3:-1]", None), ("all-l1", None), ("g[:1]", None), ("prompt", None), ("p[1:-1]", None)],
    ],
)
def test_how_long_prompts_must_be_to_share(spec: str, reach: int | None) -> None:
    assert shared_reach(parse_positions(spec)) == reach


def test_kept_managers_do_not_mix_edits() -> None:
    """Blocks that were computed with other edits, or with none, are not used."""
    model = reft_model("llama", dtype=torch.float64, positions="f2")
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="l2", init_weights=False))
    rows = [prompt for prompt in prompts() if len(prompt) > 4]
    given = [prompt.tolist() for prompt in rows]
    how: dict[str, Any] = {"generation_config": greedily(), "persistent_manager": True}
    model.generate_batch(inputs=given, continuous_batching_config=small(), **how)
    again = model.generate_batch(inputs=given, **how)
    assert [output.generated_tokens for output in again.values()] == [greedy(model, "f2", row, STEPS) for row in rows]
    with model.disable_adapter(), pytest.raises(PositionError, match="active edits changed"):
        model.generate_batch(inputs=given, **how)
    model.set_adapter("second")
    with pytest.raises(PositionError, match="destroy_cached"):
        model.generate_batch(inputs=given, **how)
    model.destroy_cached_continuous_batching_manager()
    found = model.generate_batch(inputs=given, continuous_batching_config=small(), **how)
    assert [output.generated_tokens for output in found.values()] == [greedy(model, "l2", row, STEPS) for row in rows]
    model.destroy_cached_continuous_batching_manager()
    model.set_adapter("default")
    with torch.no_grad():
        model.generate_batch(inputs=given, continuous_batching_config=small(), **how)
        next(p for n, p in model.named_parameters() if "default" in n).mul_(2.0)
    with pytest.raises(PositionError, match="active edits changed"):
        model.generate_batch(inputs=given, **how)
    model.destroy_cached_continuous_batching_manager()


@pytest.mark.parametrize(
    ("spec", "first", "second"), [("l2", 9, 13), ("p[:-1]", 9, 13), ("f4", 2, 9), ("g[:2]", 2, 9)]
)
def test_sharing_as_transformers_does_by_default_is_caught(
    spec: str, first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard's mutant: blocks are shared whatever the spec, and tokens change."""
    monkeypatch.setattr(ContinuousBatching, "_reach", lambda self: 0)
    with pytest.raises(AssertionError, match=r"== \["):
        check_shared(spec, first, second, shares=True)
