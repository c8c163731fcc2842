"""Decoders whose tokens nobody passes, and decoders of another class than their encoder's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from torch import Tensor, nn

from contract.tiny import _BART, _GPT2, _MASKED, _T5
from peft_reft import ReftConfig
from peft_reft.causal import Site, collect
from peft_reft.hub_format.errors import SiteError

from .reading import edited_model, edited_tokens_of

EOS = 2
HEADS = {
    "BartForSequenceClassification": ("model.decoder.layers", "SEQ_CLS"),
    "T5ForSequenceClassification": ("transformer.decoder.block", "SEQ_CLS"),
    "BartForQuestionAnswering": ("model.decoder.layers", "QUESTION_ANS"),
    "T5ForQuestionAnswering": ("decoder.block", "QUESTION_ANS"),
}


def head_model(name: str) -> Any:
    config = (
        hf.BartConfig(**{**_BART, "eos_token_id": EOS})
        if name.startswith("Bart")
        else hf.T5Config(**{**_T5, "eos_token_id": EOS})
    )
    torch.manual_seed(0)
    return getattr(hf, name)(config).eval()


def row_of(length: int, *, before: int = 0, after: int = 0) -> dict[str, Tensor]:
    """One row that ends in the end token, padded."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.cat([torch.randint(4, 64, (1, length - 1), generator=generator), torch.tensor([[EOS]])], 1)
    pad = nn.functional.pad
    return {
        "input_ids": pad(ids, (before, after), value=0),
        "attention_mask": pad(torch.ones_like(ids), (before, after), value=0),
    }


def answers_of(name: str, output: Any, length: int) -> Tensor:
    if "QuestionAnswering" in name:
        return torch.stack([output.start_logits[:, :length], output.end_logits[:, :length]])
    return output.logits


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", list(HEADS))
def test_a_decoder_made_of_the_input_is_edited_on_its_real_tokens(name: str, labels: bool) -> None:
    """6 of 9 tokens are real: the decoder has as many, from its start token on."""
    blocks, task = HEADS[name]
    model = edited_model(
        head_model(name), task_type=task, positions="f1+l2", layers_pattern=blocks, layers_to_transform=[0]
    )
    batch: dict[str, Any] = row_of(6, after=3)
    if labels and "Sequence" in name:
        batch["labels"] = torch.tensor([1])
    elif labels:
        batch.update(start_positions=torch.tensor([1]), end_positions=torch.tensor([2]))
    assert edited_tokens_of(model, f"{blocks}.0", lambda: model(**batch)) == [[0, 0], [0, 4], [0, 5]]


@pytest.mark.parametrize("name", list(HEADS))
def test_padding_changes_no_answer(name: str) -> None:
    blocks, task = HEADS[name]
    model = edited_model(head_model(name), task_type=task, positions="f1+l2", layers_pattern=blocks)
    for whole in (model, model.get_base_model()):
        alone, padded = (answers_of(name, whole(**row_of(6, after=n)), 6) for n in (0, 3))
        torch.testing.assert_close(padded, alone, rtol=0, atol=2e-5)


def test_tokens_of_a_row_padded_on_the_left() -> None:
    """The start token stands before the padding, and the row's end token is the one that falls off."""
    model = edited_model(
        head_model("BartForSequenceClassification"),
        task_type="SEQ_CLS",
        positions="f2+l1",
        layers_pattern="model.decoder.layers",
        layers_to_transform=[0],
    )
    batch = row_of(6, before=3)
    found = edited_tokens_of(model, "model.decoder.layers.0", lambda: model(**batch))
    assert found == [[0, 0], [0, 4], [0, 8]]


@pytest.mark.parametrize("name", ["BartForSequenceClassification", "T5ForSequenceClassification"])
def test_a_site_of_such_a_decoder_counts_real_tokens(name: str) -> None:
    model, (blocks, _) = head_model(name), HEADS[name]
    site = Site(layer=0, layers_pattern=blocks, position=-1)
    batch = row_of(6, after=3)
    with torch.no_grad():
        found = collect(model, batch, {"state": site})["state"]
        seen: list[Tensor] = []
        handle = model.get_submodule(f"{blocks}.0").register_forward_hook(
            lambda _, args, output: seen.append(output if isinstance(output, Tensor) else output[0])
        )
        model(**batch)
        handle.remove()
    torch.testing.assert_close(found.reshape(-1), seen[0][0, 5])


def pair(encoder: str, decoder: str) -> Any:
    torch.manual_seed(0)
    masked = {**_MASKED, "is_decoder": True, "add_cross_attention": True}
    decoders = {
        "bert": lambda: hf.BertLMHeadModel(hf.BertConfig(**masked)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**{**_GPT2, "add_cross_attention": True})),
    }
    if encoder == "bert":
        model: Any = hf.EncoderDecoderModel(
            encoder=hf.BertModel(hf.BertConfig(**_MASKED)), decoder=decoders[decoder]()
        )
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        vision = hf.ViTModel(hf.ViTConfig(image_size=8, patch_size=4, **sizes))
        model = hf.VisionEncoderDecoderModel(encoder=vision, decoder=decoders[decoder]())
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, None
    return model.eval()


DECODERS = {"bert": "decoder.bert.encoder.layer", "gpt2": "decoder.transformer.h"}


def inputs_of(encoder: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    if encoder == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    mask = torch.tensor([[1] * 7, [0, 0, *[1] * 5]])
    return {"input_ids": torch.randint(4, 64, (2, 7), generator=generator), "attention_mask": mask}


@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("encoder", ["bert", "vit"])
def test_a_decoder_of_any_class_is_edited_on_its_own_tokens(encoder: str, decoder: str) -> None:
    """Labels of another length than the input: a prompt of three tokens, and one of the start token."""
    model = edited_model(
        pair(encoder, decoder),
        task_type="SEQ_2_SEQ_LM",
        positions="f2+l2",
        layers_pattern=DECODERS[decoder],
        layers_to_transform=[0],
    )
    labels = torch.randint(4, 64, (2, 5), generator=torch.Generator().manual_seed(5))
    labels[0, :2] = -100
    batch = inputs_of(encoder)
    found = edited_tokens_of(model, f"{DECODERS[decoder]}.0", lambda: model(**batch, labels=labels))
    assert found == [[0, 0], [0, 1], [0, 2], [1, 0]]


@pytest.mark.parametrize("decoder", list(DECODERS))
@pytest.mark.parametrize("encoder", ["bert", "vit"])
def test_generating_edits_the_start_token_of_such_a_decoder(encoder: str, decoder: str) -> None:
    model = edited_model(
        pair(encoder, decoder),
        task_type="SEQ_2_SEQ_LM",
        positions="f2+l2",
        layers_pattern=DECODERS[decoder],
        layers_to_transform=[0],
    )
    block = model.get_base_model().get_submodule(f"{DECODERS[decoder]}.0")
    raw: list[Tensor] = []
    after: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, a, o: raw.append(o if isinstance(o, Tensor) else o[0]), prepend=True),
        block.register_forward_hook(lambda _, a, o: after.append(o if isinstance(o, Tensor) else o[0])),
    ]
    model.generate(**inputs_of(encoder), max_new_tokens=3, min_new_tokens=3)
    for handle in handles:
        handle.remove()
    assert [(one != other).any(-1).nonzero().tolist() for one, other in zip(raw, after, strict=True)] == [
        [[0, 0], [1, 0]],
        [],
        [],
    ]


def test_both_stacks_of_a_pair_of_berts_are_edited() -> None:
    model = edited_model(pair("bert", "bert"), task_type="SEQ_2_SEQ_LM", positions="l1", layers_to_transform=[0])
    batch = {**inputs_of("bert"), "decoder_input_ids": torch.full((2, 3), 5)}
    found = edited_tokens_of(model, "encoder.encoder.layer.0", lambda: model(**batch))
    assert found == [[0, 6], [1, 6]]


def test_an_encoder_of_images_is_refused_by_name() -> None:
    with pytest.raises(SiteError, match="not in the text model"):
        get_peft_model(pair("vit", "bert"), ReftConfig(task_type="SEQ_2_SEQ_LM", layers_pattern="encoder.layers"))
