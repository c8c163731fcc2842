"""What a call may not have is refused without waiting for an accelerator: at the forward after the answer has come."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import LocationError, PromptBoundaryError
from peft_reft.positions import doubts
from peft_reft.runtime.planning import Planner


class Answer:
    """In place of one that is copied from an accelerator: it comes when `come` is set."""

    come = False

    def __init__(self, found: Tensor) -> None:
        self.held = found

    def is_there(self) -> bool:
        return Answer.come


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor counts as one that would have to be waited for."""
    monkeypatch.setattr(doubts, "_must_be_waited_for", lambda condition: True)
    monkeypatch.setattr(doubts, "_Answer", Answer)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(Answer, "come", False)


def trained(positions: str = "f2+l2") -> Any:
    config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False)
    return get_peft_model(base_model("llama"), config).train()


def batch(prompt: int = 3) -> dict[str, Tensor]:
    ids = token_ids(2, 6)
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "labels": labels}


BAD: dict[str, tuple[type[Exception], dict[str, Tensor]]] = {
    "no prompt": (PromptBoundaryError, batch(prompt=0)),
    "a mark that is none": (LocationError, {**batch(), "prompt_mask": torch.tensor([[1, 2, 0, 0, 0, 0]] * 2)}),
    "a length beyond the row": (LocationError, {**batch(), "prompt_lengths": torch.tensor([3, 9])}),
    "a column beyond the row": (LocationError, {**batch(), "intervention_locations": torch.tensor([[[0, 6]]] * 2)}),
    "a mark on padding": (
        LocationError,
        {
            **batch(),
            "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6]),
            "prompt_mask": torch.tensor([[1, 1, 0, 0, 0, 0]] * 2),
        },
    ),
}


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(("error", "call"), BAD.values(), ids=BAD)
def test_the_refusal_comes_with_a_later_forward(error: type[Exception], call: dict[str, Tensor]) -> None:
    model = trained()
    model(**call)
    model(**batch())  # the answer has not come yet
    Answer.come = True
    with pytest.raises(error) as refused:
        model(**batch())
    assert "earlier forward" in refused.value.__notes__[0]
    model(**batch())
    model(**batch())  # it is said once


@pytest.mark.parametrize(("error", "call"), BAD.values(), ids=BAD)
def test_on_a_cpu_it_comes_at_once_and_says_the_same(
    error: type[Exception], call: dict[str, Tensor], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(error) as at_once:
        trained()(**call)
    request.getfixturevalue("accelerator")
    model = trained()
    model(**call)
    Answer.come = True
    with pytest.raises(error) as later:
        model(**batch())
    assert str(later.value) == str(at_once.value)


@pytest.mark.usefixtures("accelerator")
def test_good_calls_are_let_through_and_forgotten() -> None:
    model, call = trained(), {**batch(), "prompt_mask": torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)}
    Answer.come = True
    waiting = model.base_model.model._reft_runtime.planner.doubts.waiting
    for _ in range(3):
        model(**call).loss.backward()
        assert len(waiting) == 2  # of this forward: numbers that are no marks, and marks on padding


@pytest.mark.usefixtures("accelerator")
def test_a_copy_of_a_model_has_no_doubts_of_its_own() -> None:
    model = trained()
    model(**BAD["no prompt"][1])
    Answer.come = True
    copy.deepcopy(model)(**batch())
    with pytest.raises(PromptBoundaryError):
        model(**batch())


@pytest.mark.usefixtures("accelerator")
def test_the_values_are_those_of_the_call() -> None:
    """The caller may write the next batch into the tensors of the last."""
    model, call = trained(), copy.deepcopy(BAD["a mark that is none"][1])
    model(**call)
    call["prompt_mask"][:, 1] = 1
    Answer.come = True
    with pytest.raises(LocationError, match="prompt_mask holds 2"):
        model(**call)


@pytest.mark.usefixtures("accelerator")
def test_nothing_is_asked_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    model(**BAD["no prompt"][1])
    Answer.come = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    model(**batch())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(PromptBoundaryError):
        model(**batch())


@pytest.mark.usefixtures("accelerator")
def test_threads_of_one_model_read_an_answer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is taken by the thread that saw it come, also where another thread runs in between."""
    read: list[bool] = []

    class Slow(Answer):
        def __init__(self, number: int) -> None:
            self.number = number

        @property
        def held(self) -> bool:  # type: ignore[override]
            read.append(self.is_there())
            return False

        def is_there(self) -> bool:
            time.sleep(0.0005)
            return self.number < 20

    waiting = doubts.LaterDoubts()
    waiting.waiting.extend((Slow(number), AssertionError, []) for number in range(30))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(waiting.settle) for _ in range(8)]:
            done.result()
    assert read == [True] * 20
    assert len(waiting.waiting) == 10


@pytest.mark.gpu
@pytest.mark.parametrize("positions", ["f2+l2", "prompt", "all", "g[0:2]"])
def test_nothing_of_ours_waits_on_a_gpu(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(positions).cuda()
    own = Planner.frame

    def frame(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return own(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Planner, "frame", frame)
    on_gpu = {name: tensor.cuda() for name, tensor in batch().items()}
    for _ in range(2):
        model(**on_gpu).loss.backward()


@pytest.mark.gpu
def test_a_gpu_refuses_at_a_later_forward() -> None:
    model = trained().cuda()
    model(**{name: tensor.cuda() for name, tensor in BAD["no prompt"][1].items()})
    torch.cuda.synchronize()
    with pytest.raises(PromptBoundaryError, match="need a prompt"):
        model(**{name: tensor.cuda() for name, tensor in batch().items()})
