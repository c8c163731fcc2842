"""A decoding loop of one's own: a forward per token, without `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contract.tiny import reft_model, token_ids
from peft_reft.hub_format.errors import PromptBoundaryError

PROMPT, STEPS = 4, 6
MASK = torch.tensor([[1] * PROMPT, [0, *[1] * (PROMPT - 1)]])


def edited_in_steps(spec: str, **stated: Any) -> list[list[int]]:
    """For each forward, the columns edited in either row."""
    model = reft_model("llama", positions=spec, layers_to_transform=[0])
    block = model.get_base_model().get_submodule("model.layers.0")
    raw: list[Tensor] = []
    after: list[Tensor] = []
    block.register_forward_hook(lambda _, a, o: raw.append(o if isinstance(o, Tensor) else o[0]), prepend=True)
    block.register_forward_hook(lambda _, a, o: after.append(o if isinstance(o, Tensor) else o[0]))
    tokens, mask, cache = token_ids(2, PROMPT), MASK, None
    for _ in range(STEPS):
        output = model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **stated)
        tokens, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    found = [(one != other).any(-1) for one, other in zip(raw, after, strict=True)]
    assert all(bool((step[0] == step[1]).all()) for step in found[1:])
    return [step[0].nonzero().squeeze(1).tolist() for step in found]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("g[0:2]", [1, 1, 0, 0, 0]), ("g[1:3]", [0, 1, 1, 0, 0]), ("g[2:]", [0, 0, 1, 1, 1]), ("g[:1]", [1, 0, 0, 0, 0])],
)
def test_generated_tokens_are_counted_from_a_stated_prompt(spec: str, expected: list[int]) -> None:
    """The second row has one token of padding: its prompt is shorter."""
    steps = edited_in_steps(spec, prompt_lengths=MASK.sum(1))
    assert [len(step) for step in steps] == [0, *expected]


@pytest.mark.parametrize("spec", ["g[0:2]", "g[2:]", "f1+g[1:3]", "generated-g[:1]"])
def test_without_a_length_the_refusal_names_what_to_pass(spec: str) -> None:
    with pytest.raises(PromptBoundaryError, match="prompt_lengths"):
        edited_in_steps(spec)


@pytest.mark.parametrize(("spec", "expected"), [("generated", [1] * 5), ("g[0:]", [1] * 5), ("l1", [0] * 5)])
def test_what_counts_nothing_needs_no_length(spec: str, expected: list[int]) -> None:
    steps = edited_in_steps(spec)
    assert [len(step) for step in steps[1:]] == expected
