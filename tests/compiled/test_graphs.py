"""One graph without a break, the results of eager mode, and no more graphs than the base model needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.testing import assert_close

from contract.open_frames import open_frames
from contract.tiny import token_ids
from peft_reft import ReftConfig, scale_adapter

from .counting import CompileCounter, base, batch, fresh_compiler, labelled, reft

PADDED = {"plain": batch(2, 8), "left": batch(2, 8, left=3), "right": batch(2, 8, right=2)}
FORMS: dict[str, dict[str, Any]] = {
    **PADDED,
    "labels": labelled(PADDED["right"], 5),
    "stated prompt": {**PADDED["left"], "prompt_mask": PADDED["left"]["attention_mask"] * (torch.arange(8) < 6)},
}
REST = (
    ("direft", "all"),
    ("gated", "prompt"),
    ("bias", "l3"),
    ("consreft", "p[1:-1]"),
    ("direft_orthogonal", "all-f1"),
    ("lobireft", "g[:2]"),
    ("noreft", "f2+l2"),
    ("red", "prompt"),
    ("reft_r1", "f3+l2"),
    ("clamp", "prompt"),
    ("prosv", "f2+l2"),
    ("adapter", "all"),
    ("distribution", "f2+l2"),
    ("heads", "all"),
)


UNTRAINED = (("lobireft", "g[:2]"), ("distribution", "f2+l2"))
"""Not compared in training: labels end before the one, the other draws other numbers in a graph, as dropout does."""


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


def several(**fields: Any) -> PeftModel:
    """Adapters `default`, `b` and `c` of one shape."""
    model = reft("llama", **fields)
    for seed, name in enumerate(("b", "c")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(name, ReftConfig(task_type="CAUSAL_LM", init_weights=False, **fields))
    return model.eval()


@torch.no_grad()
def check_prefill(name: str, kind: str, positions: str, forms: dict[str, dict[str, Any]]) -> None:
    model = reft(name, intervention=kind, positions=positions)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for form, given in forms.items():
        expected, found = model(**given), compiled(**given)
        real = given["attention_mask"].bool()
        assert_close(found.logits[real], expected.logits[real], msg=lambda text, form=form: f"{form}: {text}")
    assert open_frames(model) == []


@pytest.mark.parametrize(("name", "kind", "positions"), [("llama", "loreft", "f2+l2"), ("qwen3", "direft", "all")])
def test_a_prefill_is_one_graph(name: str, kind: str, positions: str) -> None:
    check_prefill(name, kind, positions, {form: FORMS[form] for form in ("left", "labels", "stated prompt")})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(("kind", "positions"), REST)
def test_a_prefill_of_every_kind_is_one_graph(name: str, kind: str, positions: str) -> None:
    check_prefill(name, kind, positions, FORMS)


def check_training(name: str, kind: str, positions: str, *, whole: bool) -> None:
    """Losses and gradients, with a graph of the PEFT model, as trainers make it, or of the base model inside it."""
    model = reft(name, intervention=kind, positions=positions).train()
    compiled = torch.compile(model if whole else model.get_base_model(), backend="aot_eager", fullgraph=True)
    for given in (labelled(batch(2, 8, right=2), 5), labelled(batch(2, 8, left=2), 6)):
        results = []
        for forward in (model, compiled):
            loss = forward(**given).loss
            loss.backward()
            results.append({"loss": loss.detach(), **_gradients(model)})
            model.zero_grad()
        assert results[0].keys() == results[1].keys()
        for key, value in results[0].items():
            assert_close(results[1][key], value, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("name", "kind", "positions", "whole"), [("llama", "loreft", "f2+l2", True), ("qwen3", "direft", "all", False)]
)
def test_a_training_step_is_one_graph(name: str, kind: str, positions: str, whole: bool) -> None:
    check_training(name, kind, positions, whole=whole)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("kind", "positions"), [case for case in REST if case not in UNTRAINED])
def test_a_training_step_of_every_kind_is_one_graph(kind: str, positions: str, whole: bool) -> None:
    check_training("llama", kind, positions, whole=whole)


def test_a_special_token_is_found_in_a_graph() -> None:
    config = ReftConfig(task_type="CAUSAL_LM", positions="tok(<s>)", init_weights=False)
    config.special_tokens = {"ids": {"<s>": 1}, "tokenizer": "sha256:" + "0" * 64}
    model = get_peft_model(base("llama"), config).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    given = batch(2, 8)
    given["input_ids"][:, 2] = 1
    with torch.no_grad():
        edited = compiled(**given).logits
        assert_close(edited, model(**given).logits)
    with torch.no_grad(), model.disable_adapter():
        assert not torch.equal(compiled(**given).logits, edited)


SHAPES = ((2, 8), (2, 11), (2, 13), (3, 13), (4, 7))


@torch.no_grad()
def graphs(model: nn.Module) -> int:
    """How many graphs batches of changing shapes take."""
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for shape in SHAPES:
        compiled(**batch(*shape))
    return int(counter.frame_count)


@cache
def graphs_of_the_base() -> int:
    return graphs(base("llama"))


@pytest.mark.parametrize("whole", [True, False])
def test_lengths_take_as_many_graphs_as_on_the_base_model(whole: bool) -> None:
    model = reft("llama", positions="f2+l2")
    count = graphs(model if whole else model.get_base_model())
    torch._dynamo.reset()
    assert count == graphs_of_the_base() == 3


@torch.no_grad()
def test_one_graph_serves_all_adapters_of_one_shape_at_any_scale() -> None:
    model = several(positions="f2+l2")
    counter = CompileCounter()
    compiled = torch.compile(model.get_base_model(), backend=counter, fullgraph=True)
    given, seen = batch(2, 8, left=2), []

    def check() -> int:
        expected = model(**given).logits
        assert_close(compiled(**given).logits, expected)
        seen.append(expected)
        return counter.frame_count

    assert check() == 1
    for name in ("b", "c", "default"):
        model.set_adapter(name)
        assert check() == 1
    for factor in (0.5, -1.25, 1.0):
        scale_adapter(model, "default", factor)
        assert check() == 1
    with model.disable_adapter():
        assert check() == 2
    assert check() == 2
    model.base_model.set_adapter(["b", "c"])
    assert check() == 3
    scale_adapter(model, "c", 3.0)
    assert check() == 3
    model.set_adapter("c")
    assert check() == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[3], seen[4])


@torch.no_grad()
def test_a_new_adapter_leaves_the_graphs_of_the_old_ones() -> None:
    model = several(positions="f2+l2")
    counter = CompileCounter()
    compiled = torch.compile(model.get_base_model(), backend=counter, fullgraph=True)
    given = batch(2, 8)
    compiled(**given)
    model.add_adapter("d", ReftConfig(task_type="CAUSAL_LM", init_weights=False, positions="f2+l2"))
    model.eval()
    model.set_adapter("d")
    assert_close(compiled(**given).logits, model(**given).logits)
    model.delete_adapter("d")
    model.set_adapter("b")
    assert_close(compiled(**given).logits, model(**given).logits)
    assert counter.frame_count == 1


@torch.no_grad()
def test_adapters_of_other_positions_have_graphs_of_their_own() -> None:
    model = reft("llama", positions="f2+l2")
    model.add_adapter("all", ReftConfig(task_type="CAUSAL_LM", init_weights=False, positions="all"))
    model.eval()
    counter = CompileCounter()
    compiled = torch.compile(model.get_base_model(), backend=counter, fullgraph=True)
    for name in ("default", "all", "default", "all"):
        model.set_adapter(name)
        assert_close(compiled(**batch(2, 8)).logits, model(**batch(2, 8)).logits)
    assert counter.frame_count == 2


@torch.no_grad()
def test_a_prompt_shorter_than_its_positions_takes_one_more_graph() -> None:
    model = reft("llama", positions="f3+l3")
    compiled = torch.compile(model, backend=(counter := CompileCounter()), fullgraph=True, dynamic=True)
    for length in (8, 5, 4, 11):
        given = {"input_ids": token_ids(2, length)}
        assert_close(compiled(**given).logits, model(**given).logits)
    assert counter.frame_count == 2
