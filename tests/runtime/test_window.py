"""Rows in a regular pattern are edited through a view of the output: the same rows, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from peft_reft.runtime import affine_edit, site_edit
from peft_reft.runtime.window import window_of
from peft_reft.sites import hidden_of

PATTERNS = {
    "one row": [5],
    "a run": [2, 3, 4],
    "every third": [1, 4, 7],
    "first and last of a prompt": [0, 1, 2, 6, 7, 8],
    "first and last of two": [0, 1, 7, 8, 9, 10, 16, 17],
    "first two, last two, of three prompts of five": [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14],
}
IRREGULAR = {"parts of two lengths": [0, 1, 5], "falling": [3, 2, 1], "prompts apart": [0, 1, 5, 6, 9, 10], "none": []}


@pytest.mark.parametrize("rows", PATTERNS.values(), ids=PATTERNS)
def test_a_view_shows_the_rows_in_their_order(rows: list[int]) -> None:
    hidden = torch.randn(20, 3)[1:]  # its own memory starts later
    window = window_of(torch.tensor(rows), 3)
    assert window is not None
    sizes, strides, start = window
    seen = hidden.as_strided(sizes, strides, hidden.storage_offset() + start)
    assert torch.equal(seen.reshape(-1, 3), hidden[rows])


@pytest.mark.parametrize("rows", IRREGULAR.values(), ids=IRREGULAR)
def test_other_rows_have_no_view(rows: list[int]) -> None:
    assert window_of(torch.tensor(rows, dtype=torch.long), 3) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", ["f2+l2", "l1", "f3", "all", "prompt", "p[2:4]"])
def test_the_same_bits_as_by_gathered_rows(
    positions: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False)
    model: Any = get_peft_model(base_model("llama").to(dtype), config).eval()
    ids, used = token_ids(3, 7), []
    own = site_edit.edit_window
    monkeypatch.setattr(site_edit, "edit_window", lambda *given: used.append(1) or own(*given))
    with torch.no_grad():
        by_view = model(input_ids=ids).logits
        count = len(used)
        monkeypatch.setattr("peft_reft.runtime.ready.window_of", lambda rows, hidden: None)
        model.base_model.disable_adapter_layers()
        plain = model(input_ids=ids).logits
        model.base_model.enable_adapter_layers()  # what is kept is made anew
        gathered = model(input_ids=ids).logits
    assert count == model.config.num_hidden_layers
    assert len(used) == count
    assert torch.equal(by_view, gathered)
    assert not torch.equal(by_view, plain)


@pytest.mark.parametrize("held_bytes", [0, 1 << 22], ids=["made for each edit", "held"])
def test_sites_of_several_ranks_and_windows(held_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one edit leaves in the memory that they share is of no account to the next."""
    monkeypatch.setattr(affine_edit, "HELD_BYTES", held_bytes)
    made: list[Any] = []
    own = affine_edit.workspace_for
    monkeypatch.setattr(affine_edit, "workspace_for", lambda room: made.append(room) or own(room))
    groups = [
        {"r": 4, "positions": "f2", "layers_to_transform": [0]},
        {"r": 2, "positions": "f2+l2", "layers_to_transform": [1]},
    ]
    config = ReftConfig(task_type="CAUSAL_LM", interventions=groups, init_weights=False)
    model: Any = get_peft_model(base_model("llama"), config).eval()
    ids = token_ids(3, 7)
    with torch.no_grad():
        by_view = [model(input_ids=ids).logits for _ in range(2)]
        assert len(made) == 4
        monkeypatch.setattr(site_edit, "is_seen_here_only", lambda hidden, output: False)
        gathered = model(input_ids=ids).logits
    assert all(torch.equal(one, gathered) for one in by_view)


def test_memory_lies_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not on the device that new tensors are made on."""
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", init_weights=False)
    model: Any = get_peft_model(base_model("llama"), config).eval()
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        monkeypatch.setattr(affine_edit, "workspace_for", _elsewhere(affine_edit.workspace_for))
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)


def _elsewhere(own: Any) -> Any:
    def made(room: Any) -> Any:
        with torch.device("meta"):
            return own(room)

    return made


def test_a_block_may_leave_inference_mode() -> None:
    """Memory of inference mode could not be written into outside of it."""
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", init_weights=False)
    model: Any = get_peft_model(base_model("llama"), config).eval()
    ids = token_ids(2, 6)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    block = model.base_model.model.model.layers[1]
    own = block.forward

    def left(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            given = {name: _usual(value) for name, value in kwargs.items()}
            return own(hidden_states.clone(), *args, **given)

    block.forward = left
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, plain)


def _usual(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_usual, value))
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_an_output_that_others_hold_is_not_written_into() -> None:
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2+l2", init_weights=False)
    model: Any = get_peft_model(base_model("llama"), config).eval()
    seen: list[torch.Tensor] = []
    model.base_model.model.model.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(hidden_of(output)), prepend=True
    )
    with torch.no_grad():
        model(input_ids=token_ids(2, 6))
        with model.disable_adapter():
            model(input_ids=token_ids(2, 6))
    edited, plain = seen
    assert torch.equal(edited, plain)
