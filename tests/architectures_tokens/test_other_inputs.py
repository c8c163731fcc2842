"""Models that are called, padded or run in ways of their own: choices, sparse attention, shared blocks, speech."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from contract.tiny import _MASKED
from peft_reft.causal import Site, collect
from peft_reft.hub_format.errors import SiteError

from .reading import edited_model, edited_tokens_of, outputs_with_and_without


def test_every_choice_of_a_question_is_a_row() -> None:
    torch.manual_seed(0)
    base = hf.BertForMultipleChoice(hf.BertConfig(**_MASKED)).eval()
    ids = torch.randint(4, 60, (2, 3, 6))
    mask = torch.ones_like(ids)
    mask[0, 1, 4:] = 0
    block = base.bert.encoder.layer[0]
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _, a, o: seen.append(o if isinstance(o, Tensor) else o[0]))
    with torch.no_grad():
        base(input_ids=ids, attention_mask=mask)
        handle.remove()
        found = collect(base, {"input_ids": ids, "attention_mask": mask}, Site(layer=0, position=-1))
    last = [3 if row == 1 else 5 for row in range(6)]
    torch.testing.assert_close(found.squeeze(1), torch.stack([seen[0][row, last[row]] for row in range(6)]))
    model = edited_model(base, positions="f1+l1", layers_to_transform=[0])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2])}
    edited = edited_tokens_of(model, "bert.encoder.layer.0", lambda: model(**batch))
    assert edited == [[row, column] for row in range(6) for column in (0, last[row])]


def test_sparse_attention_pads_on_the_right() -> None:
    """BigBird pads 90 tokens to 92; a short row, which it does not pad, is edited alike."""
    torch.manual_seed(0)
    fields = {**_MASKED, "max_position_embeddings": 128, "sep_token_id": 3, "block_size": 4, "num_random_blocks": 2}
    base = hf.BigBirdForMaskedLM(hf.BigBirdConfig(attention_type="block_sparse", **fields)).eval()
    model = edited_model(base, positions="f1+l2", layers_to_transform=[0])
    for length, inside in ((90, 92), (20, 20)):  # in this order: a short row turns sparse attention off
        ids = torch.randint(4, 60, (2, length))
        mask = torch.ones_like(ids)
        mask[1, length - 3 :] = 0
        call = {"input_ids": ids, "attention_mask": mask}
        edited, plain = outputs_with_and_without(model, "bert.encoder.layer.0", lambda call=call: model(**call))
        assert edited[0].shape[1] == inside
        found = (edited[0] != plain[0]).any(-1).nonzero().tolist()
        ends = ((0, length), (1, length - 3))
        assert found == [[row, column] for row, end in ends for column in (0, end - 2, end - 1)]


def albert() -> Any:
    sizes = {"embedding_size": 16, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32}
    config = hf.AlbertConfig(vocab_size=64, num_hidden_layers=4, num_hidden_groups=1, initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    return hf.AlbertForMaskedLM(config).eval()


def test_shared_blocks_are_edited_at_every_pass() -> None:
    model = edited_model(albert(), positions="f1+l1")
    group = model.get_base_model().albert.encoder.albert_layer_groups[0]
    raw: list[Tensor] = []
    after: list[Tensor] = []
    group.register_forward_hook(lambda _, args, output: raw.append(output.clone()), prepend=True)
    group.register_forward_hook(lambda _, args, output: after.append(output.clone()))
    model(torch.randint(4, 60, (2, 5)))
    found = [(one != other).any(-1).nonzero().tolist() for one, other in zip(raw, after, strict=True)]
    assert found == [[[0, 0], [0, 4], [1, 0], [1, 4]]] * 4


def test_a_single_pass_of_shared_blocks_is_refused_with_the_cause() -> None:
    with pytest.raises(SiteError, match=r"1 group of blocks that run 4 times.*every pass.*leave layers_to_transform"):
        edited_model(albert(), layers_to_transform=[2])


def whisper() -> Any:
    sizes = {f"{stack}_{what}": n for stack in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 32))}
    heads = {f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = hf.WhisperConfig(
        d_model=32, vocab_size=64, num_mel_bins=8, max_source_positions=10, init_std=0.3, **sizes, **heads, **ids
    )
    torch.manual_seed(0)
    model = hf.WhisperForConditionalGeneration(config).eval()
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        setattr(model.generation_config, name, None)
    return model


def test_whispers_decoder_is_edited_on_its_start_and_forced_tokens() -> None:
    """Without a pattern only the decoder is edited: the encoder reads sound, which has no tokens."""
    model = edited_model(whisper(), positions="f1+l1", layers_to_transform=[0])
    block = model.get_base_model().model.decoder.layers[0]
    raw: list[Tensor] = []
    after: list[Tensor] = []
    first = lambda output: (output if isinstance(output, Tensor) else output[0]).clone()  # noqa: E731
    block.register_forward_hook(lambda _, args, output: raw.append(first(output)), prepend=True)
    block.register_forward_hook(lambda _, args, output: after.append(first(output)))
    sound = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(6))

    def edited() -> list[list[list[int]]]:
        found = [(one != other).any(-1).nonzero().tolist() for one, other in zip(raw, after, strict=True)]
        raw.clear()
        after.clear()
        return found

    labels = torch.randint(4, 60, (2, 5))
    labels[0, :2] = -100
    model(input_features=sound, labels=labels)
    assert edited() == [[[0, 0], [0, 2], [1, 0]]]
    forced = torch.tensor([[3, 5, 6]] * 2)
    for given, columns in (({}, (0,)), ({"decoder_input_ids": forced}, (0, 2))):
        for _ in range(2):  # nothing of one generation is left to the next
            model.generate(input_features=sound, max_new_tokens=3, min_new_tokens=3, **given)
            assert edited() == [[[row, column] for row in range(2) for column in columns], [], []]


@pytest.mark.parametrize("conditioned", [False, True])
def test_every_segment_of_long_sound_has_its_own_forced_tokens(conditioned: bool) -> None:
    """Sound of two and a half windows is decoded window by window, each from start, language and task, behind what
    came before where it is asked for; short rows are padded on the left, or leave the batch."""
    base = whisper()
    config = base.generation_config
    config.is_multilingual, config.lang_to_id, config.task_to_id = True, {"<|en|>": 10}, {"transcribe": 11}
    config.no_timestamps_token_id, config.prev_sot_token_id, config.max_initial_timestamp_index = 52, 13, 5
    model = edited_model(base, positions="f1+l1", layers_to_transform=[0])
    block: nn.Module = model.get_base_model().model.decoder.layers[0]
    raw: list[Tensor] = []
    after: list[Tensor] = []
    ids: list[Tensor] = []
    block.register_forward_hook(lambda _, a, o: raw.append(o if isinstance(o, Tensor) else o[0]), prepend=True)
    block.register_forward_hook(lambda _, a, o: after.append(o if isinstance(o, Tensor) else o[0]))
    model.get_base_model().model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: ids.append(kwargs["input_ids"]), with_kwargs=True
    )
    sound = torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[1, 40:] = 0
    how: dict[str, Any] = {"language": "en", "task": "transcribe", "condition_on_prev_tokens": conditioned}
    model.generate(input_features=sound, attention_mask=mask, max_new_tokens=4, return_timestamps=True, **how)
    starts = 0
    for given, one, other in zip(ids, raw, after, strict=True):
        real = [row.index(next(token for token in row if token)) for row in given.tolist()]
        prompt = given.shape[1] > 1
        expected = [[row, column] for row, first in enumerate(real) for column in (first, given.shape[1] - 1)]
        assert (one != other).any(-1).nonzero().tolist() == (expected if prompt else [])
        starts += prompt
        assert not prompt or given[:, -3:].tolist() == [[3, 10, 11]] * len(given)
    assert starts >= 3


def test_whispers_encoder_is_refused_by_name() -> None:
    with pytest.raises(SiteError, match="not in the text model"):
        edited_model(whisper(), layers_pattern="model.encoder.layers")


def test_tokens_that_whisper_puts_first_are_its_prompt() -> None:
    """Its own `generate` starts with language and task, which are forced tokens."""
    model = edited_model(whisper(), positions="f1+l1", layers_to_transform=[0])
    config = model.get_base_model().generation_config
    config.is_multilingual, config.lang_to_id, config.task_to_id = True, {"<|en|>": 10}, {"transcribe": 11}
    config.no_timestamps_token_id, config.prev_sot_token_id = 12, 13
    block: nn.Module = model.get_base_model().model.decoder.layers[0]
    raw: list[Tensor] = []
    after: list[Tensor] = []
    block.register_forward_hook(lambda _, a, o: raw.append(o if isinstance(o, Tensor) else o[0]), prepend=True)
    block.register_forward_hook(lambda _, a, o: after.append(o if isinstance(o, Tensor) else o[0]))
    sound = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(6))
    model.generate(input_features=sound, max_new_tokens=3, min_new_tokens=3, language="en", task="transcribe")
    found = [(one != other).any(-1)[0].nonzero().squeeze(1).tolist() for one, other in zip(raw, after, strict=True)]
    lengths = [tensor.shape[1] for tensor in raw]
    assert lengths == [4, 1, 1]
    assert found == [[0, 3], [], []]
