"""The same for encoder-decoder models, stack by stack."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

from positions.reference import edited_tokens

from .batches import flags, padded_batch, union
from .recording import differing, edited_by, edited_while_generating, inputs_of, raw_outputs_of, reader_of
from .tiny import BY_NAME, reft_model, token_ids


def pair_model(name: str, role: str, **config: Any) -> PeftModel:
    return reft_model(name, layers_pattern=BY_NAME[name].blocks[role], **config)


def check_encoder(name: str, spec: str, side: str, layer: int = 0) -> None:
    """The encoder's prompt is its attended input, labels or not."""
    batch = {**padded_batch(side), "labels": token_ids(3, 4, seed=1)}
    model = pair_model(name, "encoder", positions=spec, layers_to_transform=[layer])
    expected = union(edited_tokens(spec, flags(batch["attention_mask"])))
    assert edited_by(model, name, layer, lambda: model(**batch), role="encoder") == expected


def check_decoder(name: str, spec: str, inputs: str = "labels", layer: int = 0) -> None:
    """The decoder's prompt is the start token and what is forced after it; its inputs may be made from the labels."""
    batch = padded_batch("right")
    labels = token_ids(3, 5, seed=1)
    labels[1, :2] = -100  # forced tokens
    labels[2, 3:] = -100  # padding of the answer
    call = {**batch, "labels": labels}
    if inputs == "decoder_input_ids":
        call[inputs] = torch.cat([torch.zeros(3, 1, dtype=torch.long), token_ids(3, 5, seed=1)[:, :-1]], 1)
    model = pair_model(name, "decoder", positions=spec, layers_to_transform=[layer])
    real = [[True] * 5, [True] * 5, [True, True, True, False, False]]
    # labels stand at the column that predicts them: the prompt of a row ends after its first supervised column
    expected = union(edited_tokens(spec, real, lengths=[1, 3, 1]))
    assert edited_by(model, name, layer, lambda: model(**call), role="decoder") == expected


PAIR_LOCATIONS = {
    "encoder": (torch.tensor([[[0, 8]], [[4, 4]], [[1, -1]]]), {(0, 0), (0, 8), (1, 4), (2, 1)}),
    "decoder": (torch.tensor([[[1]], [[-1]], [[2]]]), {(0, 1), (2, 2)}),
}


def check_pair_locations(name: str, form: str, role: str, layer: int = 0) -> None:
    """A dict speaks of both stacks; a bare tensor of the encoder where it is edited, else of the decoder."""
    call = {**padded_batch("right"), "labels": token_ids(3, 4, seed=1)}
    locations, expected = PAIR_LOCATIONS[role]
    if form == "dict":
        said: Any = {name: columns for name, (columns, _) in PAIR_LOCATIONS.items()}
    else:
        said = {"default": locations} if form == "by adapter" else locations
    model = pair_model(name, role, positions="f1", layers_to_transform=[layer])
    found = edited_by(model, name, layer, lambda: model(**call, intervention_locations=said), role=role)
    assert found == expected


def check_pair_generation(name: str, spec: str, role: str, use_cache: bool, layer: int = 1) -> None:
    """While generating the encoder is edited once and the decoder at its start token."""
    batch = padded_batch("right")
    model = reft_model(name, positions=spec)
    arguments = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "use_cache": use_cache}
    if role == "encoder":
        block = model.get_base_model().get_submodule(f"{BY_NAME[name].blocks[role]}.{layer}")
        with raw_outputs_of(block) as raw, inputs_of(reader_of(model, name, layer, role)) as read:
            model.generate(**batch, **arguments)
        assert len(raw) == len(read) == 1
        assert differing(read[0], raw[0]) == union(edited_tokens(spec, flags(batch["attention_mask"])))
        return
    expected = {(row, 0) for row in range(3)}
    forwards = edited_while_generating(
        model, name, layer, lambda: model.generate(**batch, **arguments), role=role, use_cache=use_cache
    )
    assert forwards == ([expected, set(), set()] if use_cache else [expected] * 3)
