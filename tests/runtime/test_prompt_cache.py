"""A prompt's head is edited once and reused: the tokens are those of generating without a cache, or it is refused."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

import peft_reft.generation.generate
from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, prompt_cache, scale_adapter
from peft_reft.generation import generate, records
from peft_reft.hub_format.errors import ConfigError, LocationError, PromptBoundaryError

from . import test_generation
from .stepwise import greedy

HEAD, STEPS = 7, 3
NAMES = ("llama", "gpt2")
SPECS = (
    "f2",
    "f3+l3",
    "l4",
    "l5+f3",
    "p[1:-1]",
    "p[2:]",
    "p[-6:-2]",
    "prompt",
    "all",
    "all-l2",
    "f4-p[1:2]",
    "generated",
    "g[:2]+f1",
)
REST = (1, 3, 8)
"""Tokens after the head: fewer than the suffixes, and more."""


def generated(model: Any, given: dict[str, Any], **how: Any) -> list[list[int]]:
    """The new tokens of every row."""
    return test_generation.generated(model, given, **{"max_new_tokens": STEPS, **how})


def prompt(rest: int, *, batch: int = 1) -> Tensor:
    """Ids of prompts `[batch, HEAD + rest]` with the same head."""
    head = token_ids(1, HEAD, seed=7).expand(batch, -1)
    return torch.cat([head, token_ids(batch, rest, seed=8 + rest)], 1)


def head_of(model: Any) -> Any:
    return prompt_cache(model, prompt(1)[:, :HEAD])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_continuation_is_that_without_a_cache(name: str, spec: str) -> None:
    model = reft_model(name, dtype=torch.float64, positions=spec, share_weights=name == "llama")
    cache = head_of(model)
    for rest in REST:
        ids = prompt(rest)
        expected = generated(model, {"input_ids": ids})
        if name == "llama" and rest == 3:
            assert expected == [greedy(model, spec, ids[0], STEPS)]
        assert (
            generated(model, {"input_ids": ids, "past_key_values": copy.deepcopy(cache)}, max_new_tokens=STEPS)
            == expected
        )
    assert cache.get_seq_length() == HEAD


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["f3+l3", "l4", "all"])
def test_only_the_new_tokens_are_passed(name: str, spec: str) -> None:
    """Where the suffix reaches into the head, it cannot be computed again: refused."""
    model = reft_model(name, dtype=torch.float64, positions=spec)
    cache, reach = head_of(model), int(spec[-1]) if spec != "all" else 0
    for rest in REST:
        ids = prompt(rest)
        given = {
            "input_ids": ids[:, HEAD:],
            "attention_mask": torch.ones(1, HEAD + rest, dtype=torch.long),
            "past_key_values": copy.deepcopy(cache),
        }
        if rest >= reach:
            assert generated(model, given) == [greedy(model, spec, ids[0], STEPS)]
            continue
        with pytest.raises(PromptBoundaryError, match="cached") as caught:
            model.generate(**given, max_new_tokens=2)
        assert caught.value.code == "positions.cached"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_one_head_serves_a_batch(name: str, how: dict[str, Any]) -> None:
    model = reft_model(name, dtype=torch.float64, positions="f3+l3")
    ids, cache = prompt(5, batch=3), head_of(model)
    cache.batch_repeat_interleave(3 * next(iter(how.values())))  # transformers repeats rows, not caches
    expected = model.generate(input_ids=ids, max_new_tokens=STEPS, **how)
    assert torch.equal(model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=STEPS, **how), expected)


@pytest.mark.parametrize("name", NAMES)
def test_questions_of_several_lengths_share_a_head(name: str) -> None:
    """Padding stands between the head and the shorter question."""
    model, lengths = reft_model(name, dtype=torch.float64, positions="f3+l4"), (6, 4, 5)
    ids, mask = torch.zeros(3, HEAD + 6, dtype=torch.long), torch.ones(3, HEAD + 6, dtype=torch.long)
    expected = []
    for row, length in enumerate(lengths):
        whole = prompt(length)[0]
        ids[row, :HEAD], ids[row, -length:], mask[row, HEAD : HEAD + 6 - length] = whole[:HEAD], whole[HEAD:], 0
        expected.append(greedy(model, "f3+l4", whole, STEPS))
    cache = head_of(model)
    cache.batch_repeat_interleave(3)
    assert generated(model, {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}) == expected


def test_the_cached_part_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = reft_model("llama", positions="f3+l3"), list[int]()
    cache = head_of(model)
    handle = (
        model.get_base_model()
        .model.layers[0]
        .register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    )
    for rest, computed in ((6, 6), (2, 3)):  # of the shorter one a token of the head is edited as its end
        seen.clear()
        model.generate(input_ids=prompt(rest), past_key_values=copy.deepcopy(cache), max_new_tokens=2)
        assert seen == [computed, 1]
    handle.remove()


def test_special_tokens_of_the_head() -> None:
    from peft import get_peft_model

    from positions.test_special_tokens import END, bound

    model = get_peft_model(base_model("llama", dtype=torch.float64), bound("tok(<|end|>)+f1")).eval()
    ids = prompt(4).clone()
    ids[0, [2, 8]] = END
    cache = prompt_cache(model, ids[:, :HEAD])
    expected = generated(model, {"input_ids": ids})
    assert generated(model, {"input_ids": ids, "past_key_values": copy.deepcopy(cache)}) == expected
    tail = {"input_ids": ids[:, HEAD:], "attention_mask": torch.ones_like(ids), "past_key_values": cache}
    assert generated(model, tail) == expected


def test_it_reaches_every_way_to_hold_an_adapter(tmp_path: pathlib.Path) -> None:
    model = reft_model("llama", dtype=torch.float64, positions="f3+l3")
    expected = [greedy(model, "f3+l3", prompt(5)[0], STEPS)]
    model.save_pretrained(tmp_path)
    loaded = base_model("llama", dtype=torch.float64)
    loaded.load_adapter(str(tmp_path))
    assert generated(loaded, {"input_ids": prompt(5), "past_key_values": head_of(loaded)}) == expected
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    edit = ReftConfig(task_type="CAUSAL_LM", positions="f3+l3", init_weights=False)
    mixed = MixedReftModel.from_configs(base_model("llama", dtype=torch.float64), {"default": lora, "edit": edit})
    mixed.eval().set_adapter(["default", "edit"])
    expected = generated(mixed, {"input_ids": prompt(5)})
    assert generated(mixed, {"input_ids": prompt(5), "past_key_values": head_of(mixed)}) == expected
    plain = base_model("llama", dtype=torch.float64)
    expected = generated(plain, {"input_ids": prompt(5)})
    assert generated(plain, {"input_ids": prompt(5), "past_key_values": head_of(plain)}) == expected


def change_head(model: PeftModel, given: dict[str, Any]) -> None:
    given["input_ids"] = given["input_ids"].clone()
    given["input_ids"][0, 1] += 1


def disable(model: PeftModel, given: dict[str, Any]) -> None:
    model.base_model.disable_adapter_layers()


def train_on(model: PeftModel, given: dict[str, Any]) -> None:
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "reft_0" in name).add_(0.1)


def scale(model: PeftModel, given: dict[str, Any]) -> None:
    scale_adapter(model, "default", 0.5)


def another(model: PeftModel, given: dict[str, Any]) -> None:
    model.add_adapter("second", ReftConfig(task_type="CAUSAL_LM", positions="f1", init_weights=False))
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (change_head, "positions.cache_ids"),
        (disable, "positions.cache_state"),
        (train_on, "positions.cache_state"),
        (scale, "positions.cache_state"),
        (another, "positions.cache_state"),
    ],
)
def test_a_cache_of_something_else_is_refused(change: Any, code: str) -> None:
    model = reft_model("llama", positions="f3+l3")
    given = {"input_ids": prompt(5), "past_key_values": head_of(model)}
    change(model, given)
    with pytest.raises(PromptBoundaryError, match="prompt_cache") as caught:
        model.generate(**given, max_new_tokens=2)
    assert caught.value.code == code


def test_rows_that_do_not_fit_are_refused() -> None:
    model = reft_model("llama", positions="f3+l3")
    cache = prompt_cache(model, prompt(1, batch=2)[:, :HEAD])
    with pytest.raises(PromptBoundaryError, match="rows"):
        model.generate(input_ids=prompt(5, batch=3), past_key_values=cache, max_new_tokens=2)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_forward_must_say_where_the_prompt_ends(tokens: int) -> None:
    """A single token on top of a cache is elsewhere taken for a generated one; here the prompt goes on."""
    model, ids = reft_model("llama", dtype=torch.float64, positions="f3+l1"), prompt(tokens)
    cache = head_of(model)
    with pytest.raises(PromptBoundaryError, match="prompt_lengths"):
        model(input_ids=ids[:, HEAD:], past_key_values=copy.deepcopy(cache))
    said = torch.tensor([HEAD + tokens])
    with torch.no_grad():
        logits = model(input_ids=ids[:, HEAD:], past_key_values=copy.deepcopy(cache), prompt_lengths=said).logits
        torch.testing.assert_close(logits[:, -1], model(input_ids=ids).logits[:, -1])
    with pytest.raises(PromptBoundaryError, match="other edits"):
        model(input_ids=ids[:, HEAD:], past_key_values=cache, prompt_lengths=torch.tensor([HEAD - 1]))


def test_a_used_cache_is_refused_where_it_holds_another_end() -> None:
    """Without a copy the second question would stand behind the first."""
    model, cache = reft_model("llama", positions="f3+l3"), None
    cache = head_of(model)
    model.generate(input_ids=prompt(5), past_key_values=cache, max_new_tokens=2)
    with pytest.raises(PromptBoundaryError, match="another prompt"):
        model.generate(input_ids=prompt(12), past_key_values=cache, max_new_tokens=2)


def test_what_has_no_prompt_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="encoder-decoder"):
        prompt_cache(reft_model("t5", positions="f1"), prompt(1))
    with pytest.raises(ConfigError, match="how many tokens"):
        prompt_cache(reft_model("mamba", positions="f1"), prompt(1))
    with pytest.raises(PromptBoundaryError, match="turns"):
        prompt_cache(reft_model("llama", positions="f1", turns="each"), prompt(1))
    for ids in (prompt(1)[0], [[1, 2]], prompt(1).float(), prompt(1)[:, :0]):
        with pytest.raises(LocationError, match="LongTensor"):
            prompt_cache(reft_model("llama", positions="f1"), ids)  # type: ignore[arg-type]
    with pytest.raises(LocationError, match="attention_mask"):
        prompt_cache(reft_model("llama", positions="f1"), prompt(1), attention_mask=torch.ones(1, 2))


@pytest.mark.parametrize("guard", ["cut", "check", "open end"])
def test_without_its_guards_the_comparison_fails(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is needed: taken out, some continuation is silently another."""
    if guard == "cut":
        monkeypatch.setattr(generate, "reuse", lambda *args: None)
        monkeypatch.setattr(records.CacheRecord, "check", lambda *args: None)
    if guard == "check":
        monkeypatch.setattr(records.CacheRecord, "agreeing", lambda self, *args: self.length)
    model = reft_model("llama", dtype=torch.float64, positions="f3+l3")
    if guard == "open end":  # a cache of a plain forward: its end is edited, and no record says so
        monkeypatch.setattr(peft_reft.generation.generate, "check_continued", lambda *args, **kwargs: None)
        with torch.no_grad():
            cache = model(input_ids=prompt(1)[:, :HEAD], use_cache=True).past_key_values
    else:
        cache = head_of(model)
    found = [generated(model, {"input_ids": prompt(n), "past_key_values": copy.deepcopy(cache)}) for n in REST]
    assert found != [[greedy(model, "f3+l3", prompt(n)[0], STEPS)] for n in REST]
