"""Requests of continuous batching that name their adapters get the tokens that they get alone, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.generation.asked import KEPT
from peft_reft.hub_format.errors import ConfigError, LocationError

from .batching import LENGTHS, STEPS, answer, counted, greedily, prompts, running, small
from .stepwise import greedy

pytestmark = pytest.mark.usefixtures("quick_collection")

SPECS = {"default": "f2+l2", "first": "f3", "last": "l1", "all": "all", "said": "g[1:3]", "window": "p[1:4]"}
NAMES = ("first", "__base__", "last", "all", "default", "said", "window")


@pytest.fixture(scope="module")
def model() -> Any:
    made = reft_model("llama", dtype=torch.float64, positions=SPECS["default"])
    for name, spec in SPECS.items():
        if name != "default":
            kind = "direft" if name == "window" else "loreft"
            made.add_adapter(name, ReftConfig("CAUSAL_LM", positions=spec, intervention=kind, init_weights=False))
    return made.eval()


def alone(model: Any, name: str, prompt: Tensor, steps: int = STEPS) -> list[int]:
    """What decoding step by step says with one adapter, or none."""
    if name == "__base__":
        with model.disable_adapter():
            return greedy(model, "f1", prompt, steps)
    model.set_adapter(name)
    try:
        return greedy(model, SPECS[name], prompt, steps)
    finally:
        model.set_adapter("default")


def named(model: Any, given: list[Tensor], names: list[Any], **settings: Any) -> list[list[int]]:
    outputs = model.generate_batch(
        inputs=[prompt.tolist() for prompt in given],
        generation_config=settings.pop("how", None) or greedily(),
        continuous_batching_config=small(**settings),
        adapter_names=names,
    )
    assert [output.error for output in outputs.values()] == [None] * len(outputs)
    return [output.generated_tokens for output in outputs.values()]


def test_every_request_is_edited_by_its_own_adapter(model: Any) -> None:
    """Prompts in pieces beside others that decode, more than fit, and some that start over."""
    given = prompts()
    with counted("requeued") as requeued:
        found = named(model, given, list(NAMES))
    assert any(requeued)
    assert found == [alone(model, name, prompt) for name, prompt in zip(NAMES, given, strict=True)]


@pytest.mark.parametrize("prompt", [0, 3])
def test_one_prompt_asked_of_all_adapters_at_once(model: Any, prompt: int) -> None:
    """Their tokens differ, so nothing of one was taken for another's."""
    row = prompts()[prompt]
    found = named(model, [row] * len(NAMES), list(NAMES), num_blocks=64)
    assert found == [alone(model, name, row) for name in NAMES]
    assert len(set(map(str, found))) > len(NAMES) // 2


def test_edits_of_a_tuple_add(model: Any) -> None:
    given = prompts()[:3]
    found = named(model, given, [("first", "last"), (), ("last", "first")])
    model.base_model.set_adapter(["first", "last"])
    both = [_stepwise(model, given[number]) for number in (0, 2)]
    model.set_adapter("default")
    assert [found[0], found[2]] == both
    assert found[1] == alone(model, "__base__", given[1])


@torch.no_grad()
def _stepwise(model: Any, prompt: Tensor) -> list[int]:
    """Greedy tokens by whole forwards without a cache, each told where the prompt ends."""
    ids = prompt
    for _ in range(STEPS):
        lengths = torch.tensor([len(prompt)])
        ids = torch.cat(
            [ids, model(input_ids=ids[None], prompt_lengths=lengths, use_cache=False).logits[0, -1:].argmax(-1)]
        )
    return ids[len(prompt) :].tolist()


def test_an_active_lora_edits_every_request_beside_the_edits_that_it_names() -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    edits = {name: ReftConfig("CAUSAL_LM", positions=SPECS[name], init_weights=False) for name in ("first", "last")}
    base = base_model("llama", dtype=torch.float64)
    model: Any = MixedReftModel.from_configs(base, {"default": lora, **edits}).eval()
    row = prompts()[0]
    names = ["first", "__base__", "last", ("first", "last")]
    found = named(model, [row] * len(names), names, num_blocks=64)
    for chosen, said in zip((["first"], [], ["last"], ["first", "last"]), found, strict=True):
        model.set_adapter(["default", *chosen])
        assert said == _stepwise(model, row)
    with pytest.raises(ConfigError, match="default"):
        named(model, [row], ["default"])


def test_requests_without_a_name_are_edited_by_what_is_active(model: Any) -> None:
    given = prompts()
    with running(model, num_blocks=64) as manager:
        sent = [
            manager.add_request(row.tolist(), **({} if number % 2 else {"adapter_names": NAMES[number]}))
            for number, row in enumerate(given)
        ]
        results = {}
        while len(results) < len(sent):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert result.error is None
                results[result.request_id] = result.generated_tokens
    for number, (name, row) in enumerate(zip(sent, given, strict=True)):
        assert results[name] == alone(model, "default" if number % 2 else NAMES[number], row)


def test_several_returned_sequences(model: Any) -> None:
    """Forks of a request are edited as it is."""
    given = prompts()
    how = greedily(do_sample=True, top_k=1, num_return_sequences=3)
    found = named(model, given, list(NAMES), how=how)
    expected = [alone(model, name, prompt) for name, prompt in zip(NAMES, given, strict=True)]
    assert found == [row for row in expected for _ in range(3)]


@pytest.mark.parametrize(
    ("one", "other", "first", "second", "shares"),
    [
        ("first", "first", 9, 13, True),
        ("first", "first", 2, 9, False),
        ("all", "all", 9, 13, True),
        ("last", "last", 13, 13, True),
        ("last", "last", 9, 13, False),
        ("first", "window", 9, 13, False),
        ("first", "__base__", 9, 13, False),
        ("__base__", "__base__", 9, 13, True),
        (("first", "all"), ("first", "all"), 9, 13, True),
        (("first", "all"), "all", 9, 13, False),
    ],
)
def test_blocks_are_shared_where_edits_are_the_same(
    one: Any, other: Any, first: int, second: int, shares: bool
) -> None:
    """The second request's tokens begin as the first's prompt and answer do."""
    model = reft_model("llama", dtype=torch.float64, positions="f1")
    for name in ("first", "last", "all", "window"):
        model.add_adapter(name, ReftConfig("CAUSAL_LM", positions=SPECS[name], init_weights=False))
    model.eval()
    row = token_ids(1, 16, seed=5)[0]
    with counted("shared") as shared, running(model, num_blocks=64) as manager:
        said = _answer(manager, row[:first], one)
        longer = (
            row[:second] if first == second else torch.cat([row[:first], torch.tensor(said), row[first:]])[:second]
        )
        again = _answer(manager, longer, other)
    assert (max(shared, default=0) > 0) == shares
    model.base_model.set_adapter(list(other) if isinstance(other, tuple) else [] if other == "__base__" else [other])
    assert again == _stepwise(model, longer)


def _answer(manager: Any, prompt: Tensor, names: Any) -> list[int]:
    request = manager.add_request(prompt.tolist(), adapter_names=names)
    result = next(manager.request_id_iter(request))
    assert result.error is None, result.error
    tokens: list[int] = result.generated_tokens
    return tokens


def test_blocks_are_not_shared_across_a_change_of_weights() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2").eval()
    row = token_ids(1, 13, seed=5)[0]
    with counted("shared") as shared, running(model, num_blocks=64) as manager:
        _answer(manager, row, "default")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "reft_" in name:
                    parameter.mul_(-3.0)
        again = _answer(manager, row, "default")
    assert max(shared, default=0) == 0
    assert again == greedy(model, "f2", row, STEPS)


@pytest.mark.parametrize("names", ["nobody", ("first", "nobody"), 3, ["first"], "../first", ""])
def test_a_name_that_is_none_is_refused_before_anything_runs(model: Any, names: Any) -> None:
    """And the manager goes on for the others."""
    row = prompts()[0]
    with running(model) as manager:
        with pytest.raises(ConfigError, match="adapter"):
            manager.add_request(row.tolist(), adapter_names=names)
        assert _answer(manager, row, "first") == alone(model, "first", row)
    with pytest.raises(ConfigError, match="adapter"):
        model.generate_batch(inputs=[row.tolist()], generation_config=greedily(), adapter_names=[names])


@pytest.mark.parametrize("names", ["first", ["first"], [], ["first"] * 3])
def test_a_batch_needs_a_name_for_every_request(model: Any, names: Any) -> None:
    rows = [row.tolist() for row in prompts()[:2]]
    with pytest.raises(ConfigError, match="one entry for each of the 2 requests"):
        model.generate_batch(inputs=rows, generation_config=greedily(), adapter_names=names)
    with running(model) as manager, pytest.raises(ConfigError, match="one entry for each"):
        manager.add_requests(rows, adapter_names=names)


def test_what_one_request_cannot_have_is_refused_with_the_reason() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2")
    more = {"across": {"intervention": "reft_r1", "positions": "f4"}, "turns": {"positions": "l1", "turns": "each"}}
    for name, fields in more.items():
        model.add_adapter(name, ReftConfig("CAUSAL_LM", **fields))
    model.add_adapter("head", ReftConfig("CAUSAL_LM", positions="f1", modules_to_save=["lm_head"]))
    row = prompts()[0].tolist()
    with running(model.eval()) as manager:
        for name, reason in (("across", "other tokens"), ("turns", "turns"), ("head", "in full")):
            with pytest.raises(ConfigError, match=reason):
                manager.add_request(row, adapter_names=name)
        with pytest.raises(LocationError, match="prompt_lengths"):
            manager.add_request(row, adapter_names="default", prompt_lengths=torch.tensor([3]))
    model.get_base_model()._tp_size = 2  # as transformers writes on a model that several processes share
    with pytest.raises(ConfigError, match="tensor parallelism"):
        model.generate_batch(inputs=[row], generation_config=greedily(), adapter_names=["default"])


def test_an_adapter_in_use_is_not_deleted() -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f2")
    model.add_adapter("other", ReftConfig("CAUSAL_LM", positions="l1", init_weights=False))
    model.eval()
    row = prompts()[0]
    with running(model) as manager:
        with manager.pause():
            request = manager.add_request(row.tolist(), adapter_names="other")
            with pytest.raises(ConfigError, match="continuous batching"):
                model.delete_adapter("other")
        result = next(manager.request_id_iter(request))
        model.set_adapter("other")
        assert result.generated_tokens == greedy(model, "l1", row, STEPS)
        model.set_adapter("default")
        model.delete_adapter("other")
        with pytest.raises(ConfigError, match="other"):
            manager.add_request(row.tolist(), adapter_names="other")
        assert answer(manager, row.tolist()) == greedy(model, "f2", row, STEPS)


def test_records_of_ended_requests_go(model: Any) -> None:
    from peft_reft.generation import ContinuousBatching
    from peft_reft.runtime import runtime_of

    row = prompts()[1]
    with running(model, num_blocks=64) as manager:
        sent = [manager.add_request(row.tolist(), max_new_tokens=1, adapter_names="first") for _ in range(KEPT + 5)]
        ended = 0
        while ended < len(sent):
            result = manager.get_result(timeout=1)
            ended += result is not None and result.is_finished()
        assert _answer(manager, row, "first") == alone(model, "first", row)
        known = runtime_of(model.get_base_model()).provider(ContinuousBatching).known
        # how many go at once is a matter of when they ended
        assert max(len(entry.asked.records) for entry in known if entry.manager() is manager) < KEPT


@pytest.mark.parametrize("kind", [{"intervention": "noreft"}, {"intervention": "direft", "act_fn": "relu"}], ids=str)
def test_an_edit_that_is_no_number_harms_no_other_request(kind: dict[str, Any]) -> None:
    """Requests share forwards and pages: attention would multiply it by zero, which is no number either."""
    model = reft_model("llama", dtype=torch.float64, positions="f2+l2")
    model.add_adapter("wild", ReftConfig("CAUSAL_LM", positions="all", init_weights=False, **kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".wild." in name:
                parameter.mul_(1e30).mul_(1e30)
    model.eval()
    given = prompts()
    among = [row for prompt in given for row in (prompt, prompt)]
    found = named(model, among, ["default", "wild"] * len(given))
    assert found[::2] == [greedy(model, "f2+l2", prompt, STEPS) for prompt in given]


def test_prompts_of_all_lengths(model: Any) -> None:
    """Prompts of one token too, whose window is shorter than the spec asks."""
    given = [prompt for prompt, length in zip(prompts(seed=40), LENGTHS, strict=True) if length < 7]
    for name in ("first", "last", "default", "window"):
        assert named(model, given, [name] * len(given)) == [alone(model, name, prompt) for prompt in given]
