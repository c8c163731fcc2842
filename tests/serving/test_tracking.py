"""What a worker knows of its requests, from the scheduler's messages alone, through chunks, preemption and the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from peft_reft.integrations.vllm.tracking import Part, Tracker


def new(request: str, prompt: int, *, adapter: str | None = "a", computed: int = 0) -> Any:
    extra = None if adapter is None else {"reft": adapter}
    return SimpleNamespace(
        req_id=request,
        prompt_token_ids=list(range(prompt)),
        num_computed_tokens=computed,
        sampling_params=SimpleNamespace(extra_args=extra),
    )


def step(
    scheduled: dict[str, int],
    *,
    fresh: list[Any] | None = None,
    cached: dict[str, int] | None = None,
    resumed: set[str] | None = None,
    finished: set[str] | None = None,
) -> Any:
    cached = cached or {}
    return SimpleNamespace(
        scheduled_new_reqs=fresh or [],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=list(cached.values()), resumed_req_ids=resumed or set()
        ),
        num_scheduled_tokens=scheduled,
        finished_req_ids=finished or set(),
    )


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(lambda key: key == "all")


def test_a_prompt_in_chunks_is_followed_to_its_end_and_no_further(tracker: Tracker) -> None:
    assert tracker.step(step({"x": 4}, fresh=[new("x", 10)])) == [Part("x", "a", 10, 0, 4)]
    assert tracker.step(step({"x": 4}, cached={"x": 4})) == [Part("x", "a", 10, 4, 4)]
    assert tracker.step(step({"x": 2}, cached={"x": 8})) == [Part("x", "a", 10, 8, 2)]
    assert tracker.step(step({"x": 1}, cached={"x": 10})) == []


def test_what_was_generated_before_a_preemption_is_no_prompt(tracker: Tracker) -> None:
    tracker.step(step({"x": 10}, fresh=[new("x", 10)]))
    tracker.step(step({"x": 1}, cached={"x": 10}))
    again = tracker.step(step({"x": 12}, cached={"x": 0}, resumed={"x"}))
    assert again == [Part("x", "a", 10, 0, 12)]


def test_cached_blocks_of_the_prompt_are_not_computed(tracker: Tracker) -> None:
    assert tracker.step(step({"x": 2}, fresh=[new("x", 10, computed=8)])) == [Part("x", "a", 10, 8, 2)]


def test_an_adapter_of_generated_tokens_is_followed_all_the_way(tracker: Tracker) -> None:
    tracker.step(step({"x": 10}, fresh=[new("x", 10, adapter="all")]))
    assert tracker.step(step({"x": 3}, cached={"x": 12})) == [Part("x", "all", 10, 12, 3)]


def test_requests_of_the_base_are_no_work(tracker: Tracker) -> None:
    assert tracker.step(step({"x": 10, "y": 3}, fresh=[new("x", 10, adapter=None), new("y", 3)])) == [
        Part("y", "a", 3, 0, 3)
    ]
    assert list(tracker.known) == ["y"]


def test_an_id_that_ends_and_comes_back_is_another_request(tracker: Tracker) -> None:
    tracker.step(step({"x": 10}, fresh=[new("x", 10)]))
    tracker.step(step({"x": 4}, fresh=[new("x", 4, adapter=None)], finished={"x"}))
    assert not tracker.known
    assert not tracker.pending


def test_a_request_that_was_not_scheduled_waits(tracker: Tracker) -> None:
    tracker.step(step({"x": 4}, fresh=[new("x", 10)]))
    assert tracker.step(step({"y": 1}, cached={"y": 7})) == []
    assert tracker.step(step({"x": 6}, cached={"x": 4})) == [Part("x", "a", 10, 4, 6)]


def test_an_adapter_is_in_use_until_its_last_request_ends(tracker: Tracker) -> None:
    tracker.step(step({"x": 10}, fresh=[new("x", 10)]))
    assert tracker.uses("a")
    tracker.step(step({}, finished={"x"}))
    assert not tracker.uses("a")
