"""One graph, whoever has put something in the place of `forward`."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.testing import assert_close

from contract.open_frames import open_frames
from contract.tiny import reft_model

from .counting import base, batch, fresh_compiler, labelled


def fused_head(self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
    """As TRL's: it calls the backbone by itself, without labels."""
    hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
    logits = self.lm_head(hidden)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return hf.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


@pytest.mark.parametrize(
    ("place", "backend"),
    [("method", "eager"), ("before", "eager"), ("lambda", "eager"), ("none", "aot_eager"), ("method", "aot_eager")],
)
def test_one_graph_whoever_replaced_forward(place: str, backend: str) -> None:
    plain = base("llama")
    if place == "before":
        plain.forward = MethodType(fused_head, plain)
    model = reft_model("llama", base=plain, intervention="bias", positions="f1+l2")
    if place == "method":
        plain.forward = MethodType(fused_head, plain)
    if place == "lambda":
        inner = plain.forward
        plain.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    given = labelled(batch(2, 8), 4)
    other = labelled(batch(2, 8, left=2), 5)
    wanted = [plain(**one) for one in (given, other)]

    def loss(**given: Any) -> Tensor:
        value: Tensor = plain.forward(**given).loss
        return value

    with fresh_compiler():
        whole = torch.compile(plain, fullgraph=True, backend=backend)
        by_name = torch.compile(loss, fullgraph=True, backend=backend)
        for one, expected in zip((given, other), wanted, strict=True):
            found = whole(**one)
            assert_close(found.logits, expected.logits)
            assert_close(found.loss, expected.loss)
            assert_close(by_name(**one), expected.loss)
            assert open_frames(model) == []
