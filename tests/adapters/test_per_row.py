"""`adapter_names`: every row of a batch with an adapter of its own, equal to the row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interventions.kinds import KINDS, Kind
from mixed.tiny import lora, mixed_model, reft
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import MixedReftModel, ReftConfig, scale_adapter
from peft_reft.adapters.stacking import stacks_of
from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import Intervention, orthonormal_rows
from peft_reft.runtime import state_of

LENGTHS = (9, 4, 7, 9, 6)


def several(count: int = 4, *, name: str = "llama", base: nn.Module | None = None, **fields: Any) -> PeftModel:
    """A model with adapters `default`, `a1`, `a2`, … that differ in their weights."""
    model = reft_model(name, base=base, **fields)
    for number in range(1, count):
        add(model, f"a{number}", seed=number, **fields)
    return model.eval()


def add(model: nn.Module, name: str, *, seed: int, **fields: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ReftConfig(**{"task_type": "CAUSAL_LM", "init_weights": False, **fields})
        model.add_adapter(name, config)


def padded() -> tuple[Tensor, Tensor]:
    """Five rows of different lengths, padded on the left."""
    ids, width = token_ids(len(LENGTHS), max(LENGTHS)), max(LENGTHS)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in LENGTHS])
    return ids, mask


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, **more).logits


@torch.no_grad()
def alone(model: PeftModel, names: list[Any], ids: Tensor, mask: Tensor) -> Tensor:
    """Every row in a call of its own, with `set_adapter` or with the adapters disabled."""
    found = []
    for row, name in enumerate(names):
        batch = ids[row : row + 1], mask[row : row + 1]
        if name in ("__base__", ()):
            with model.disable_adapter():
                found.append(logits(model, *batch))
        else:
            model.base_model.set_adapter(list(name) if isinstance(name, tuple) else name)
            found.append(logits(model, *batch))
    return torch.cat(found)


def check(model: PeftModel, names: list[Any]) -> Tensor:
    """Rows together against rows alone: the same bits for every row of which the base gives the same bits."""
    ids, mask = padded()
    together = logits(model, ids, mask, adapter_names=names)
    expected = alone(model, names, ids, mask)
    with model.disable_adapter():
        base = logits(model, ids, mask)
    steady = (base == alone(model, ["__base__"] * len(names), ids, mask)).flatten(1).all(1)
    assert torch.equal(together[steady], expected[steady])
    real = mask.bool()
    assert_close(together[real], expected[real], atol=2e-6, rtol=1e-5)
    return together


NAMES = ["a1", "default", "__base__", "a3", "a1"]
STACKED = (
    "adapter",
    "bias",
    "clamp",
    "consreft",
    "direft",
    "direft_orthogonal",
    "lobireft",
    "loreft",
    "noreft",
    "prosv",
    "red",
    "rotated_interchange",
)


@pytest.mark.parametrize("positions", ["f2+l3", "all", "p[1:-1]"])
@pytest.mark.parametrize("kind", STACKED)
def test_a_row_has_the_bits_of_the_row_alone(kind: str, positions: str) -> None:
    model = several(intervention=kind, positions=positions)
    rows = check(model, NAMES)
    assert len({tuple(row.flatten().tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize("fields", [{"r": 1}, {"act_fn": "relu"}, {"share_weights": False, "positions": "f2+l2"}])
def test_other_shapes_of_one_kind_have_the_bits_of_the_row_alone(fields: dict[str, Any]) -> None:
    model = several(**{"positions": "f2+l2", **fields})
    check(model, NAMES)


def test_a_bf16_model_has_the_bits_of_the_row_alone() -> None:
    model = several(base=base_model("llama").to(torch.bfloat16), positions="f2+l2")
    ids, mask = padded()
    together = logits(model, ids, mask, adapter_names=NAMES)
    real = mask.bool()
    assert torch.equal(together[real], alone(model, NAMES, ids, mask)[real])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name not in STACKED], ids=str)
def test_kinds_that_are_not_stacked_give_each_row_its_own(kind: Kind) -> None:
    model = several(intervention=kind.name, options=kind.options or None, positions="f2+l2")
    ids, mask = padded()
    assert_close(logits(model, ids, mask, adapter_names=NAMES), alone(model, NAMES, ids, mask), atol=1e-5, rtol=1e-5)


def test_adapters_of_several_structures_share_a_batch() -> None:
    model = several(positions="f2+l2")
    add(model, "wide", seed=11, r=7, positions="all")
    add(model, "vector", seed=12, intervention="bias", positions="l1", layers_to_transform=[1])
    model.eval()
    names = ["wide", "vector", "__base__", "a2", "wide"]
    check(model, names)


def test_a_row_may_have_several_adapters() -> None:
    model = several(positions="f2+l2")
    names: list[Any] = [("a1", "a2"), "a1", (), ("a3", "default"), "a2"]
    check(model, names)


def test_the_factor_of_an_adapter_counts() -> None:
    model = several(positions="f2+l2")
    scale_adapter(model, "a1", 0.5)
    scale_adapter(model, "a3", -2.0)
    check(model, NAMES)


def test_what_was_active_is_active_again() -> None:
    model = several(positions="f2+l2")
    ids, mask = padded()
    before = logits(model, ids, mask)
    logits(model, ids, mask, adapter_names=NAMES)
    assert torch.equal(logits(model, ids, mask), before)
    with pytest.raises(ConfigError):
        logits(model, ids, mask, adapter_names=["nobody"] * 5)
    assert torch.equal(logits(model, ids, mask), before)


@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    model = several(positions="f2+l2")
    ids, mask = padded()
    with torch.inference_mode():
        first = logits(model, ids, mask, adapter_names=NAMES).clone()
    for name, value in model.named_parameters():
        if ".a1" in name and "bias" in name:
            value += 1.0
    second = logits(model, ids, mask, adapter_names=NAMES)
    assert torch.equal(second, check(model, NAMES))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_an_adapter_made_anew_is_seen_and_the_old_ones_place_is_used_again() -> None:
    model = several(positions="f2+l2")
    ids, mask = padded()
    logits(model, ids, mask, adapter_names=NAMES)
    (store,) = stacks_of(state_of(model.base_model.model)).stores.values()
    slot = store.slots["a1"]
    model.delete_adapter("a1")
    assert "a1" not in store.slots
    add(model, "new", seed=50, positions="f2+l2")
    model.eval()
    names = ["new", "default", "__base__", "a3", "new"]
    check(model, names)
    assert store.slots["new"] == slot


def test_the_last_adapter_of_a_structure_takes_its_stack_along() -> None:
    model = several(positions="f2+l2")
    add(model, "other", seed=1, r=2, positions="l1")
    model.eval()
    ids, mask = padded()
    logits(model, ids, mask, adapter_names=["a1", "a2", "a3", "default", "__base__"])
    stacks = stacks_of(state_of(model.base_model.model))
    assert len(stacks.stores) == 1
    for name in ("a1", "a2", "a3", "default"):
        model.delete_adapter(name)
    assert not stacks.stores


@pytest.mark.parametrize("more", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}])
def test_generated_tokens_are_those_of_the_row_alone(more: dict[str, Any]) -> None:
    model = several(positions="f2+l2")
    ids, mask = padded()
    told = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **more}
    given = model.generate(input_ids=ids, attention_mask=mask, adapter_names=NAMES, **told)
    repeats = more.get("num_return_sequences", 1)
    for row, name in enumerate(NAMES):
        batch = {"input_ids": ids[row : row + 1], "attention_mask": mask[row : row + 1]}
        if name == "__base__":
            with model.disable_adapter():
                expected = model.generate(**batch, **told)
        else:
            model.set_adapter(name)
            expected = model.generate(**batch, **told)
        assert torch.equal(given[row * repeats : (row + 1) * repeats], expected)


def test_a_decoding_step_of_prompt_edits_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = several(positions="f2+l2")
    widths: list[int] = []
    run = type(model.base_model.model.model.layers[0]).forward

    def forward(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.append(hidden.shape[1])
        return run(self, hidden, *args, **kwargs)

    calls: list[int] = []
    edit = Intervention.parameter

    def parameter(self: Intervention, name: str, like: Tensor) -> Tensor:
        calls.append(widths[-1])
        return edit(self, name, like)

    monkeypatch.setattr(type(model.base_model.model.model.layers[0]), "forward", forward)
    monkeypatch.setattr(Intervention, "parameter", parameter)
    ids, mask = padded()
    model.generate(input_ids=ids, attention_mask=mask, adapter_names=NAMES, max_new_tokens=4, pad_token_id=0)
    assert 1 in widths
    assert set(calls) == {ids.shape[1]}


def test_one_product_serves_all_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many adapters a batch names, a site computes its edit once, and no rotation is made again."""
    model = several(12, positions="f2+l2")
    ids, mask = token_ids(12, 6), torch.ones(12, 6, dtype=torch.long)
    names = ["default", *(f"a{number}" for number in range(1, 12))]
    expected = alone(model, names, ids, mask)
    calls: list[str] = []
    parameter = Intervention.parameter
    monkeypatch.setattr(
        Intervention, "parameter", lambda self, name, like: calls.append(name) or parameter(self, name, like)
    )
    logits(model, ids, mask, adapter_names=names)
    sites = model.config.num_hidden_layers
    assert calls.count("weight") == sites
    made: list[int] = []
    monkeypatch.setattr(
        "peft_reft.adapters.stacking.orthonormal_rows", lambda raw: made.append(1) or orthonormal_rows(raw)
    )
    assert torch.equal(logits(model, ids, mask, adapter_names=names), expected)
    assert made == []


def test_locations_by_name_go_with_the_rows() -> None:
    model = several(positions="l1")
    ids, mask = token_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    places = {"default": torch.tensor([[[0]], [[1]]]), "a1": torch.tensor([[[2]], [[3]]])}
    mixed = logits(model, ids, mask, adapter_names=["default", "a1"], intervention_locations=places)
    for row, name in enumerate(("default", "a1")):
        model.set_adapter(name)
        one = logits(
            model, ids[row : row + 1], mask[row : row + 1], intervention_locations=places[name][row : row + 1]
        )
        assert torch.equal(mixed[row : row + 1], one)


def test_modules_saved_in_full_go_with_the_rows() -> None:
    model = several(2, name="llama", positions="l2", modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "modules_to_save.a1" in name:
                value.mul_(-3.0)
    ids, mask = token_ids(3, 6), torch.ones(3, 6, dtype=torch.long)
    names = ["a1", "default", "__base__"]
    mixed = logits(model, ids, mask, adapter_names=names)
    for row, name in enumerate(names[:2]):
        model.set_adapter(name)
        assert_close(mixed[row : row + 1], logits(model, ids[row : row + 1], mask[row : row + 1]))
    with model.disable_adapter():
        assert_close(mixed[2:], logits(model, ids[2:], mask[2:]))


def test_a_mixed_model_gives_each_row_its_lora_its_edit_or_both() -> None:
    model = mixed_model(strong=True, second=lora(init_lora_weights=False), other=reft(init_weights=False)).eval()
    ids, mask = token_ids(5, 7), torch.ones(5, 7, dtype=torch.long)
    rows: list[Any] = [("default", "edit"), "second", "other", "__base__", ("second", "other")]
    mixed = logits(model, ids, mask, adapter_names=rows)
    for row, names in enumerate(rows):
        chosen = [] if names == "__base__" else [names] if isinstance(names, str) else list(names)
        assert_close(mixed[row : row + 1], only(model, chosen, ids[row : row + 1], mask[row : row + 1]))


def only(model: MixedReftModel, names: list[str], ids: Tensor, mask: Tensor) -> Tensor:
    if not names:
        with model.disable_adapter():
            return logits(model, ids, mask)
    model.set_adapter(names)
    return logits(model, ids, mask)


def test_a_row_of_a_mixed_model_has_one_lora_at_most() -> None:
    model = mixed_model(second=lora()).eval()
    with pytest.raises(ConfigError, match="at most one weight adapter"):
        logits(model, token_ids(1, 6), torch.ones(1, 6), adapter_names=[("default", "second")])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nobody", "default"], r"non-existing adapter\(s\): nobody"),
        (["default"] * 3, "but got 3 and 2 respectively"),
        (["__base__"] * 3, "but got 3 and 2 respectively"),
        ([], "adapter_names is"),
        ("default", "adapter_names is"),
        ([1, 2], "has the entry 1"),
        ([("default", 2), "default"], "has the entry"),
    ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_bad_names_are_refused(names: Any, message: str, mixed: bool) -> None:
    model = mixed_model().eval() if mixed else several(2, positions="l1")
    counted = f"{message}|`adapter_names`" if mixed else message  # a LoRA counts the rows itself
    with pytest.raises(ValueError, match=counted):
        logits(model, token_ids(2, 6), torch.ones(2, 6, dtype=torch.long), adapter_names=names)


def test_training_gives_rows_no_adapters() -> None:
    model = several(2, positions="f2").train()
    with pytest.raises(ConfigError, match="training mode"):
        model(input_ids=token_ids(2, 6), labels=token_ids(2, 6), adapter_names=["default", "a1"])
