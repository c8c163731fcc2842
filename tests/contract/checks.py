"""Checks that the right tokens are edited, read from activations; each fails where the resolver is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from positions.reference import edited_tokens

from .batches import (
    LENGTH,
    PROMPTS,
    flags,
    labels_after_prompts,
    packed_batch,
    padded_batch,
    said_positions,
    union,
)
from .recording import edited_by, edited_while_generating, zero_unit
from .tiny import BIDIRECTIONAL, BY_NAME, reft_model


def check_terms(
    model_name: str, spec: str, layer: int, batch: dict[str, Tensor], expected: list[set[Any]], **said: Any
) -> None:
    """A tied adapter edits the union of its terms; an untied one edits each term's tokens with that term's unit."""
    call = {**batch, **said}
    tied = reft_model(model_name, positions=spec, layers_to_transform=[layer])
    assert edited_by(tied, model_name, layer, lambda: tied(**call)) == union(expected)
    if len(expected) != 2:
        return
    for zeroed in (0, 1):
        untied = reft_model(
            model_name, positions=spec, layers_to_transform=[layer], share_weights=False, intervention="direft"
        )
        zero_unit(untied, zeroed)
        assert edited_by(untied, model_name, layer, lambda: untied(**call)) == expected[1 - zeroed]  # noqa: B023


def check_prefill(name: str, spec: str, side: str, layer: int = 1) -> None:
    """Without labels in eval mode the prompt is every real token."""
    batch = padded_batch(side)
    check_terms(name, spec, layer, batch, edited_tokens(spec, flags(batch["attention_mask"])))


def check_labels(name: str, spec: str, side: str, layer: int = 1) -> None:
    """With labels the prompt ends before the first that is supervised; a masked language model has no completion."""
    batch = padded_batch(side)
    labels = labels_after_prompts(batch["attention_mask"], PROMPTS)
    seen = None if BY_NAME[name] in BIDIRECTIONAL else labels.tolist()
    expected = edited_tokens(spec, flags(batch["attention_mask"]), labels=seen)
    check_terms(name, spec, layer, {**batch, "labels": labels}, expected)


def check_packed(name: str, spec: str, form: str, layer: int = 1) -> None:
    """In a packed row each sequence has its own prompt."""
    batch, ids = packed_batch(form)
    real = [[True] * batch["input_ids"].shape[1]]
    expected = edited_tokens(spec, real, labels=batch["labels"].tolist(), position_ids=ids, packed=True)
    check_terms(name, spec, layer, batch, expected)


def check_generation(name: str, spec: str, use_cache: bool, layer: int = 1) -> None:
    """Whatever the cache does, every forward edits the tokens that the spec means, among those that it computes."""
    batch = padded_batch("left")
    model = reft_model(name, positions=spec)
    forwards = edited_while_generating(
        model,
        name,
        layer,
        lambda: model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache),
        use_cache=use_cache,
    )
    expected = []
    for step in range(4):
        real = [row + [True] * step for row in flags(batch["attention_mask"])]
        tokens = union(edited_tokens(spec, real, width=LENGTH))
        fresh = step and use_cache
        expected.append({(row, slot) for row, slot in tokens if not fresh or slot == LENGTH + step - 1})
    assert forwards == expected


def check_said_prompt(name: str, spec: str, way: str, labels: bool, layer: int = 1) -> None:
    """What the caller says of the prompt wins over labels."""
    batch = padded_batch("left")
    said, told = said_positions(way, batch["attention_mask"])
    expected = edited_tokens(spec, flags(batch["attention_mask"]), **told)
    if labels:
        batch["labels"] = labels_after_prompts(batch["attention_mask"], [7, 5, 2])
    check_terms(name, spec, layer, batch, expected, **said)


LOCATIONS = torch.tensor([[[0, 3, -1], [8, 3, 2]], [[4, -1, -1], [-1, -1, -1]], [[8, 7, 7], [7, -1, -1]]])
"""For rows padded on the left, two terms, as `intervention_locations` for an untied adapter."""
LOCATED = [{(0, 0), (0, 3), (1, 4), (2, 7), (2, 8)}, {(0, 8), (0, 2)}]


def check_locations(name: str, layer: int = 1) -> None:
    """Explicit locations are edited as stated, each by its term's unit; a token named twice belongs to the first."""
    batch = padded_batch("left")
    tied = reft_model(name, positions="f1+l1", layers_to_transform=[layer])
    said = {"intervention_locations": LOCATIONS.reshape(3, 1, 6)}
    assert edited_by(tied, name, layer, lambda: tied(**batch, **said)) == union(LOCATED)
    for zeroed in (0, 1):
        untied = reft_model(
            name, positions="f1+l1", layers_to_transform=[layer], share_weights=False, intervention="direft"
        )
        zero_unit(untied, zeroed)
        found = edited_by(untied, name, layer, lambda: untied(**batch, intervention_locations=LOCATIONS))  # noqa: B023
        assert found == LOCATED[1 - zeroed]


def check_said_in_generate(name: str, way: str, use_cache: bool, layer: int = 1) -> None:
    """`generate` takes the same keywords, for the prompt it was given."""
    batch = padded_batch("left")
    model = reft_model(name, positions="f1+l2")
    if way == "intervention_locations":
        said = {way: LOCATIONS.reshape(3, 1, 6)}
        expected = union(LOCATED)
    else:
        said, told = said_positions(way, batch["attention_mask"])
        expected = union(edited_tokens("f1+l2", flags(batch["attention_mask"]), **told))
    forwards = edited_while_generating(
        model,
        name,
        layer,
        lambda: model.generate(**batch, **said, max_new_tokens=3, do_sample=False, use_cache=use_cache),
        use_cache=use_cache,
    )
    assert forwards == ([expected, set(), set()] if use_cache else [expected] * 3)


def check_mask_form(name: str, form: str, layer: int = 1) -> None:
    """Padding is understood from a mask of any form that the model takes."""
    batch = padded_batch("left")
    expected = union(edited_tokens("f2+l2", flags(batch["attention_mask"])))
    given = batch["attention_mask"]
    allowed = torch.ones(LENGTH, LENGTH).tril().bool() & given.bool()[:, None, None]
    forms: dict[str, Any] = {
        "bool": given.bool(),
        "float": given.float(),
        "square": allowed,
        "square float": torch.where(allowed, 0.0, torch.finfo(torch.float32).min),
        "by kind": {"full_attention": allowed, "sliding_attention": allowed},
    }
    model = reft_model(name, positions="f2+l2", layers_to_transform=[layer])
    call = {"input_ids": batch["input_ids"], "attention_mask": forms[form]}
    assert edited_by(model, name, layer, lambda: model.get_base_model()(**call)) == expected


def check_other_inputs(name: str, way: str, layer: int = 1) -> None:
    """Embeddings instead of ids, positional arguments, the backbone called by itself, position ids of padded rows."""
    batch = padded_batch("left")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = union(edited_tokens("f2+l2", flags(mask)))
    model = reft_model(name, positions="f2+l2", layers_to_transform=[layer])
    base = model.get_base_model()
    backbone = base.get_submodule(BY_NAME[name].blocks["only"].split(".")[0])
    calls: dict[str, Callable[[], Any]] = {
        "embeddings": lambda: base(inputs_embeds=base.get_input_embeddings()(ids), attention_mask=mask),
        "positional": lambda: base(ids, None, mask) if name == "gpt2" else base(ids, mask),
        "backbone": lambda: backbone(input_ids=ids, attention_mask=mask),
        "position ids": lambda: base(**batch, position_ids=(mask.cumsum(1) - 1).clamp(min=0)),
        "position ids, 1 on padding": lambda: base(
            **batch, position_ids=(mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
        ),
    }
    assert edited_by(model, name, layer, calls[way]) == expected
