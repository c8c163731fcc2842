"""Layouts of the same four documents in a batch, and which of their tokens are edited, read from activations."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from contract.recording import differing, inputs_of

from .tiny_sft import encoded

LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding_free": {"padding_free": True},
    "packed": {"packing": True, "max_length": 64, "per_device_train_batch_size": 1},
}
"""With four short rows each makes the same steps: all four rows in one batch."""


def edited_tokens(model: PeftModel, batch: dict[str, Any], *, fused: bool = True) -> set[tuple[int, int]]:
    """(row, column) of the tokens that the first block's edit changes, in the forward that TRL makes for its loss.

    `fused=False` is the forward of a model whose head TRL has not replaced.
    """
    reader = model.get_base_model().get_submodule("model.layers.1")
    given = {**batch, "use_cache": False, **({"fused_lm_head": True} if fused else {})}
    with inputs_of(reader) as edited:
        model(**given)
    with model.disable_adapter(), inputs_of(reader) as plain:
        model(**given)
    return differing(edited[0], plain[0])


def documents_of(batch: dict[str, Any]) -> list[tuple[int, int, list[int]]]:
    """(row, first column, ids) of every document in a batch, found by its ids among the documents of the data set."""
    known = [ids for ids, _ in encoded()]
    found = []
    for row, line in enumerate(batch["input_ids"].tolist()):
        for ids in known:
            found += [(row, at, ids) for at in range(len(line)) if line[at : at + len(ids)] == ids]
    assert len(found) == len(known)
    return found


def expected_tokens(batch: dict[str, Any], *, first: int, last: int) -> set[tuple[int, int]]:
    """`f<first>+l<last>`, written down by hand from the documents' own prompts."""
    prompts = {tuple(ids): length for ids, length in encoded()}
    expected = set()
    for row, at, ids in documents_of(batch):
        prompt = range(at, at + prompts[tuple(ids)])
        expected |= {(row, column) for column in [*prompt[:first], *prompt[-last:]]}
    return expected
