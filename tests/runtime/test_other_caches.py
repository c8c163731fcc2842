"""Caches that a model calls by a name of its own: seen for what they are, or refused; never a wrong place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import Tensor

from contract.tiny import base_model, token_ids
from peft_reft import ReftConfig
from peft_reft.hub_format.errors import PromptBoundaryError

IDS = token_ids(2, 6)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
NEW = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}


class Held:
    """A cache that says nothing of its length."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


class RollingCache(Held):
    """The same, of a name that says what it is."""


def renamed(name: str, box: type) -> type[hf.LlamaForCausalLM]:
    """A Llama whose forward takes its cache by another name, in a box."""

    class Renamed(hf.LlamaForCausalLM):
        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            inputs = super().prepare_inputs_for_generation(*args, **kwargs)
            if inputs.get("past_key_values") is not None:
                held = inputs.pop("past_key_values")
                inputs[name] = [box(held)] if box is Held else box(held)
            return inputs

        def forward(self, input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            box_given = kwargs.pop(name, None)
            if box_given is not None:
                kwargs["past_key_values"] = (box_given[0] if box is Held else box_given).inside
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    return Renamed


class Secretive(hf.LlamaForCausalLM):
    """Keeps its cache on itself: no argument shows it."""

    secret: Any = None

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        self.secret = inputs.pop("past_key_values", None)
        return inputs

    def forward(self, input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        kwargs["past_key_values"] = self.secret
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def adapted(model_class: type[hf.PreTrainedModel], positions: str = "f2+l2") -> PeftModel:
    plain = base_model("llama")
    base = model_class(plain.config).eval()
    base.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    config = ReftConfig(task_type="CAUSAL_LM", positions=positions, init_weights=False)
    return get_peft_model(base, config).eval()


def scores(model: PeftModel, **settings: Any) -> Tensor:
    given = {"input_ids": IDS, "attention_mask": MASK, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**given, **NEW, **settings).logits)


@pytest.mark.parametrize("positions", ["f2+l2", "l1+generated", "g[1:3]"])
@pytest.mark.parametrize(
    ("name", "box"),
    [("past_buckets_states", Held), ("mems", Held), ("memory", Held), ("layer_cache", Held), ("kept", RollingCache)],
)
def test_a_cache_by_another_name_is_counted_by_the_generation(name: str, box: type, positions: str) -> None:
    expected = scores(adapted(hf.LlamaForCausalLM, positions), use_cache=False)
    torch.testing.assert_close(scores(adapted(renamed(name, box), positions)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["f2+l2", "generated"])
def test_a_cache_that_no_argument_shows_is_refused(positions: str) -> None:
    model = adapted(Secretive, positions)
    with pytest.raises(PromptBoundaryError, match="no argument of the call holds a cache") as caught:
        scores(model)
    assert caught.value.code == "positions.cache_unknown"


def test_without_its_cache_such_a_model_generates() -> None:
    expected = scores(adapted(hf.LlamaForCausalLM), use_cache=False)
    torch.testing.assert_close(scores(adapted(Secretive), use_cache=False), expected, rtol=1e-4, atol=1e-5)


def test_a_forward_on_such_a_cache_outside_of_a_generation_is_refused() -> None:
    model = adapted(renamed("mems", Held), "f2+l2")
    with torch.no_grad():
        kept = model(input_ids=IDS, attention_mask=MASK).past_key_values
        with pytest.raises(PromptBoundaryError, match="does not say how many went before"):
            model(input_ids=IDS[:, :2], mems=[Held(kept)])


def test_several_tokens_on_a_cache_that_does_not_count_are_refused() -> None:
    """As a model with a cache of its own name may go on: with the last two tokens again, and one more."""

    class Again(renamed("memories", Held)):  # type: ignore[misc]
        def prepare_inputs_for_generation(self, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            inputs = super().prepare_inputs_for_generation(ids, *args, **kwargs)
            if inputs.get("memories") is not None and inputs["memories"][0].inside.get_seq_length() > 0:
                inputs["input_ids"] = ids[:, -2:]
                inputs["memories"][0].inside.crop(-1)
            return inputs

    with pytest.raises(PromptBoundaryError, match="does not say how many went before"):
        scores(adapted(Again))
