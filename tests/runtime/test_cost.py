"""How many calls of ATen an edit costs, once per forward and at each block: counted, as no timing can be exact."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import peft_reft.runtime.operands
from peft_reft import ReftConfig
from peft_reft.runtime.plan import StackPlan
from peft_reft.runtime.planning import Planner

LOOKS = {"nonzero", "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "unique", "item"}
"""What waits for an accelerator, beside indexing with bools."""
AFFINE = ("loreft", "direft", "noreft", "consreft", "direft_orthogonal")


class Calls(TorchDispatchMode):
    """Counts every call by the operator's name; indexing with bools has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "index" and any(isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]):
            name = "nonzero"
        self.counted[name] += 1
        return function(*args, **(kwargs or {}))


def llama(blocks: int, kind: str | None, device: str = "cpu", *, positions: str = "f3+l3") -> Any:
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=128,
            vocab_size=128,
            attn_implementation="eager",
        )
    )
    if kind is None:
        return base.to(device).requires_grad_(False)
    config = ReftConfig(task_type="CAUSAL_LM", r=4, positions=positions, intervention=kind, init_weights=False)
    return get_peft_model(base, config).to(device)


def batch(device: str = "cpu") -> dict[str, Tensor]:
    ids = torch.full((4, 24), 7, device=device)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def prefill(blocks: int, kind: str | None, device: str = "cpu", *, first: bool = False) -> Counter[str]:
    model = llama(blocks, kind, device).eval()
    given = batch(device)
    with torch.no_grad():
        if not first:
            model(**given)
        with Calls() as calls:
            model(**given)
    return calls.counted


def step(blocks: int, kind: str | None) -> Counter[str]:
    """Forward and backward; the frozen base's starts from embeddings that want a gradient, as the first edit does."""
    model = llama(blocks, kind).train()
    given = {**batch(), "labels": batch()["input_ids"].clone()}
    given["labels"][:, :12] = -100
    if kind is None:
        given["inputs_embeds"] = model.get_input_embeddings()(given.pop("input_ids")).requires_grad_()
    with Calls() as calls:
        model(**given).loss.backward()
    return calls.counted


def costs(counted: Any, kind: str, **settings: Any) -> tuple[float, float]:
    """(once, per block), beyond the base's own."""
    own = [counted(n, kind, **settings).total() - counted(n, None, **settings).total() for n in (2, 4)]
    per_block = (own[1] - own[0]) / 2
    return own[0] - 2 * per_block, per_block


def printed_by(code: str) -> list[str]:
    """The words that some code prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("kind", AFFINE)
def test_a_prefill(kind: str) -> None:
    once, per_block = costs(prefill, kind)
    assert per_block <= 8
    assert once <= 20


@pytest.mark.parametrize("kind", AFFINE)
def test_the_first_prefill_prepares_the_products_of_all_blocks_in_one_go(kind: str) -> None:
    once, per_block = costs(prefill, kind, first=True)
    assert per_block <= 8
    assert once <= 35


@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_a_training_step(kind: str) -> None:
    assert costs(step, kind)[1] <= 24


@pytest.mark.parametrize("positions", ["f3+l3", "p[1:-1]", "f2+generated", "all-f2"])
def test_the_positions_of_a_training_step(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row padded, half of each its prompt: what a frame is planned with, and the rows that follow from it."""
    model = llama(2, "loreft", positions=positions).train()
    given = {**batch(), "labels": batch()["input_ids"].clone()}
    given["labels"][:, :12] = -100
    counted: list[int] = []

    def counts(own: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            with Calls() as calls:
                made = own(*args, **kwargs)
            counted.append(calls.counted.total())
            return made

        return counting

    monkeypatch.setattr(Planner, "frame", counts(Planner.frame))
    monkeypatch.setattr(StackPlan, "rows", counts(StackPlan.rows))
    model(**given)
    assert 0 < sum(counted) <= 35


@pytest.mark.filterwarnings("ignore::peft_reft.PositionWarning")
@pytest.mark.parametrize("kind", [*AFFINE, "bias", "red", "lobireft", "gated"])
def test_nothing_waits_for_an_accelerator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of devices whose values are not looked at, taken here on the one that has none."""
    monkeypatch.setattr(peft_reft.runtime.operands, "is_placeholder", lambda parameter: False)
    own = prefill(2, kind, "meta") - prefill(2, None, "meta")
    assert own["index_select"]
    assert not LOOKS & own.keys()
    once, per_block = costs(prefill, kind, device="meta")
    assert once <= 43
    if kind in AFFINE:
        assert per_block <= 9


@pytest.mark.parametrize("positions", ["f3+l3", "p[1:-1]", "prompt", "all", "f2+generated"])
def test_a_training_step_waits_for_no_accelerator(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_reft.runtime.operands, "is_placeholder", lambda parameter: False)
    model = llama(2, "loreft", "meta", positions=positions).train()
    labels = torch.empty((4, 24), dtype=torch.long, device="meta")
    with Calls() as calls:
        model(**batch("meta"), labels=labels).loss.backward()
    base = llama(2, None, "meta").train()
    with Calls() as plain:
        base(**batch("meta"), labels=labels)
    assert not LOOKS & (calls.counted - plain.counted).keys()


def test_no_whole_hidden_state_is_copied_without_gradients() -> None:
    """In a process of its own: where a compiler or a debugger watches, outputs have more holders and are copied."""
    code = (
        "from runtime.test_cost import prefill\n"
        "own = prefill(3, 'loreft') - prefill(3, None)\n"
        "print(own['index_copy_'], *sorted({'clone', 'index_copy', 'copy_', 'cat'} & own.keys()))"
    )
    assert printed_by(code) == ["3"]


@pytest.mark.parametrize(
    "keep", [lambda h: h, lambda h: h.detach(), lambda h: h[:, :1], lambda h: [h], lambda h: h.view(-1)], ids=range(5)
)
def test_what_somebody_else_holds_is_left_as_it_was(keep: Callable[[Tensor], Any]) -> None:
    model, held = llama(2, "loreft").eval(), []
    block = model.get_base_model().model.layers[0]
    own = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        kept = keep(output)
        held.append(kept[0] if isinstance(kept, list) else kept)
        return output

    block.forward = forward
    with torch.no_grad():
        edited = model(**batch()).logits
        with model.disable_adapter():
            assert not torch.equal(model(**batch()).logits, edited)
    assert torch.equal(*held)


def test_a_hook_before_ours_may_keep_the_output() -> None:
    model = llama(2, "loreft").eval()
    seen: list[Tensor] = []
    block = model.get_base_model().model.layers[0]
    block.register_forward_hook(lambda module, args, output: seen.append(output), prepend=True)
    with torch.no_grad():
        model(**batch())
        with model.disable_adapter():
            model(**batch())
    assert torch.equal(*seen)


def test_a_block_that_gives_back_its_input_leaves_the_input_alone() -> None:
    model = llama(2, "loreft").eval()
    block = model.get_base_model().model.layers[0]
    block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    embedded = model.get_input_embeddings()(batch()["input_ids"]).detach()
    before = embedded.clone()
    with torch.no_grad():
        edited = model(inputs_embeds=embedded, attention_mask=batch()["attention_mask"], output_hidden_states=True)
    assert torch.equal(embedded, before)
    assert not torch.equal(edited.hidden_states[1], before)
