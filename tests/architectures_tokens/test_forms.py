"""Blocks whose tensors are not `[batch, seq, hidden]`: rows on the second axis, several residual streams, padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from peft_reft.causal import Site, collect, interchange
from peft_reft.hub_format.errors import SiteError
from peft_reft.sites import find_stacks, site_table
from tools.architectures.tiny import tiny_model

from .reading import edited_model, outputs_with_and_without

STREAMS = 4
SQUARE = 5
"""Rows and tokens alike: a layout that is mistaken shows nowhere but in the tokens."""
ORDERS = {
    "XLNetLMHeadModel": (1, 0, 2),
    "DeepseekV4ForCausalLM": (0, 1, 2, 3),
    "HYV4ForCausalLM": (0, 1, 2, 3),
    "Gemma3nForCausalLM": (1, 2, 0, 3),
}
"""Model → how its blocks' tensors become `[batch, seq, (streams,) hidden]`, written down from the modelling code."""
BLOCKS = {name: "transformer.layer" if name.startswith("XLNet") else "model.layers" for name in ORDERS}


def base_of(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return tiny_model(name, **fields).eval()


def ids_of(batch: int, length: int) -> Tensor:
    return torch.randint(4, 50, (batch, length), generator=torch.Generator().manual_seed(2))


def tokens_that_differ(name: str, one: Tensor, other: Tensor) -> list[list[int]]:
    ordered = (one != other).permute(ORDERS[name]).flatten(2)
    found: list[list[int]] = ordered.any(-1).nonzero().tolist()
    return found


@pytest.mark.parametrize("name", list(ORDERS))
@pytest.mark.parametrize("component", ["block_output", "block_input"])
def test_the_stated_tokens_are_edited(name: str, component: str) -> None:
    model = edited_model(
        base_of(name), task_type="CAUSAL_LM", positions="f1+l1", layers_to_transform=[1], component=component
    )
    mask = torch.ones(SQUARE, SQUARE, dtype=torch.long)
    mask[1, :2] = 0
    batch = {"input_ids": ids_of(SQUARE, SQUARE), "attention_mask": mask}
    block = f"{BLOCKS[name]}.{1 if component == 'block_output' else 0}"
    expected = [[row, column] for row in range(SQUARE) for column in ([2, 4] if row == 1 else [0, 4])]
    if component == "block_output":
        edited, plain = outputs_with_and_without(model, block, lambda: model(**batch))
        assert tokens_that_differ(name, edited[0], plain[0]) == expected
        return
    taken: list[Tensor] = []
    module = model.get_base_model().get_submodule(f"{BLOCKS[name]}.1")
    module.register_forward_pre_hook(
        lambda _, args, kwargs: taken.append((args[0] if args else next(iter(kwargs.values()))).clone()),
        with_kwargs=True,
    )
    model(**batch)
    with model.disable_adapter():
        model(**batch)
    assert tokens_that_differ(name, taken[0], taken[1]) == expected


@pytest.mark.parametrize("name", [name for name in ORDERS if not name.startswith("XLNet")])
def test_what_comes_behind_a_stated_prompt_does_not_move_its_edits(name: str) -> None:
    """The base is causal: the logits at the prompt's end do not see three tokens more, so nor may the edits."""
    model = edited_model(base_of(name), task_type="CAUSAL_LM", positions="f2+l2")
    ids, lengths = ids_of(2, 8), torch.tensor([5, 5])
    with torch.no_grad():
        short, long = (model(ids[:, :n], prompt_lengths=lengths).logits[:, 4] for n in (5, 8))
        with model.disable_adapter():
            base = model(ids).logits[:, 4]
    torch.testing.assert_close(long, short, rtol=0, atol=1e-5)
    assert float((base - short).abs().max()) > 0.1


@pytest.mark.parametrize("name", [name for name in ORDERS if not name.startswith("XLNet")])
def test_the_edit_is_that_of_the_whole_state(name: str) -> None:
    """h + Rᵀ(Wh + b − Rh) on the numbers of all streams of a token, written as a plain hook."""
    model = edited_model(base_of(name), task_type="CAUSAL_LM", positions="l1", layers_to_transform=[1])
    base, ids = model.get_base_model(), ids_of(2, 6)
    unit = base.get_submodule(f"{BLOCKS[name]}.1.reft.reft_0").default
    width = STREAMS * 32
    tensors = {key: value.detach().double() for key, value in unit.named_parameters()}
    shapes = sorted(tuple(value.shape) for value in tensors.values())
    assert shapes == [(4,), (4, width), (4, width)]
    q, r = torch.linalg.qr(tensors["rotation"].mT)
    rotation = (q * r.diagonal().sign()).mT
    edited, plain = outputs_with_and_without(model, f"{BLOCKS[name]}.1", lambda: model(ids))
    ordered = plain[0].permute(ORDERS[name])
    hidden = ordered.flatten(2)[:, -1].double()
    source = hidden @ tensors["weight"].mT + tensors["bias"]
    expected = hidden + (source - hidden @ rotation.mT) @ rotation
    found = edited[0].permute(ORDERS[name]).flatten(2)[:, -1]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DeepseekV4ForCausalLM", "Gemma3nForCausalLM"])
def test_a_folder_records_hidden_size_and_streams_and_loads(name: str, tmp_path: Path) -> None:
    base = base_of(name)
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    model = edited_model(base, task_type="CAUSAL_LM", positions="f1+l1")
    ids = ids_of(2, 6)
    with torch.no_grad():
        expected = model(ids).logits
    model.save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "reft_manifest.json").read_text())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (manifest["base_model"]["hidden_size"], manifest["base_model"]["streams"]) == (32, STREAMS)
    assert manifest["spec_version"] == config["reft"]["spec_version"] == "1.1"
    fresh = base_of(name)
    fresh.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(fresh, tmp_path).eval()(ids).logits, expected)


@pytest.mark.parametrize("name", list(ORDERS))
def test_a_site_reads_the_token_that_it_names(name: str) -> None:
    base = base_of(name)
    mask = torch.ones(SQUARE, SQUARE, dtype=torch.long)
    mask[1, :2] = 0
    batch = {"input_ids": ids_of(SQUARE, SQUARE), "attention_mask": mask}
    seen: list[Tensor] = []
    handle = base.get_submodule(f"{BLOCKS[name]}.1").register_forward_hook(
        lambda _, args, output: seen.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        base(**batch)
        handle.remove()
        states = seen[0].permute(ORDERS[name]).flatten(2)
        for site in (Site(layer=1, position=0), Site(module=f"{BLOCKS[name]}.1", position=0)):
            found = collect(base, batch, site)
            expected = torch.stack([states[row, 2 if row == 1 else 0] for row in range(SQUARE)])
            torch.testing.assert_close(found.squeeze(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(ORDERS))
def test_an_interchange_of_the_last_block_gives_the_sources_answer(name: str) -> None:
    """The state of the last token after the last block decides that token's logits."""
    base = base_of(name)
    one, other = ids_of(SQUARE, SQUARE), ids_of(SQUARE, SQUARE).flip(0)
    with torch.no_grad():
        found = interchange(base, {"input_ids": one}, {"input_ids": other}, Site(layer=-1, position=-1))
        expected = base(input_ids=other)
    torch.testing.assert_close(found.logits[:, -1], expected.logits[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_both_stacks_with_rows_on_the_second_axis(role: str) -> None:
    model = edited_model(
        base_of("FSMTForConditionalGeneration"),
        task_type="SEQ_2_SEQ_LM",
        positions="f1+l1",
        layers_pattern=f"model.{role}.layers",
        layers_to_transform=[0],
    )
    mask = torch.ones(4, 4, dtype=torch.long)
    mask[1, 3:] = 0
    batch = {
        "input_ids": ids_of(4, 4),
        "attention_mask": mask,
        "decoder_input_ids": ids_of(4, 4),
        "decoder_attention_mask": mask,
    }
    edited, plain = outputs_with_and_without(model, f"model.{role}.layers.0", lambda: model(**batch, use_cache=False))
    found = (edited[0] != plain[0]).any(-1).T.nonzero().tolist()
    assert found == [[row, column] for row in range(4) for column in ([0, 2] if row == 1 else [0, 3])]


@pytest.mark.parametrize("use_mems", [True, False])
def test_generation_by_mems_edits_the_prompt_and_computes_its_end_twice(use_mems: bool) -> None:
    """XLNet adds a dummy token, and takes two tokens off its mems again: one of the prompt, at the second step."""
    model = edited_model(
        base_of("XLNetLMHeadModel"), task_type="CAUSAL_LM", positions="f1+l1", layers_to_transform=[0]
    )
    block = model.get_base_model().get_submodule("transformer.layer.0")
    raw: list[Tensor] = []
    after: list[Tensor] = []
    block.register_forward_hook(lambda _, args, output: raw.append(output[0].clone()), prepend=True)
    block.register_forward_hook(lambda _, args, output: after.append(output[0].clone()))
    ids = ids_of(4, 4)
    model.generate(input_ids=ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_mems=use_mems)
    found = [
        sorted((one != other).any(-1).nonzero()[:, 0].unique().tolist()) for one, other in zip(raw, after, strict=True)
    ]
    assert found == ([[0, 3], [0], []] if use_mems else [[0, 3]] * 3)


@pytest.mark.parametrize("role", ["only", "encoder"])
def test_rows_that_a_model_pads_to_its_window_keep_their_tokens(role: str) -> None:
    """Longformer and LED pad on the right; the edit is that of rows padded by hand."""
    name, task = ("LongformerForMaskedLM", None) if role == "only" else ("LEDForConditionalGeneration", "SEQ_2_SEQ_LM")
    pattern = "longformer.encoder.layer" if role == "only" else "led.encoder.layers"
    base = base_of(name, attention_window=[4] * 4)
    model = edited_model(base, task_type=task, positions="f1+l2", layers_pattern=pattern, layers_to_transform=[0])
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    batch: dict[str, Tensor] = {"input_ids": ids_of(2, 6), "attention_mask": mask}
    if role == "encoder":
        batch["decoder_input_ids"] = ids_of(2, 3)
    edited, plain = outputs_with_and_without(model, f"{pattern}.0", lambda: model(**batch))
    assert edited[0].shape[1] == 8
    found = (edited[0] != plain[0]).any(-1).nonzero().tolist()
    assert found == [[0, 0], [0, 4], [0, 5], [1, 0], [1, 2], [1, 3]]
    by_hand = {key: nn.functional.pad(batch[key], (0, 2), value=0) for key in ("input_ids", "attention_mask")}
    by_hand["input_ids"][:, 6:] = base.config.pad_token_id
    others, _ = outputs_with_and_without(model, f"{pattern}.0", lambda: model(**{**batch, **by_hand}))
    torch.testing.assert_close(edited[0], others[0], rtol=0, atol=1e-6)


def test_a_form_that_no_rule_knows_is_refused_when_the_model_is_made() -> None:
    """ProphetNet's decoder carries its streams on the axis of the tokens."""
    base = base_of("ProphetNetForConditionalGeneration")
    with pytest.raises(SiteError, match=r"prophetnet.decoder.layers.0 .*gives \[2, 15, 32\] for 2 rows of 5 tokens"):
        edited_model(base, task_type="SEQ_2_SEQ_LM", layers_pattern="prophetnet.decoder.layers")


def test_looking_at_a_models_forms_leaves_no_trace() -> None:
    """BigBird turns its sparse attention off for good where a row is short."""
    base = base_of("BigBirdForMaskedLM")
    modules, random = [(name, type(module)) for name, module in base.named_modules()], torch.get_rng_state()
    site_table(base, [(find_stacks(base), None, "block_output")])
    assert base.bert.attention_type == "block_sparse"
    assert [(name, type(module)) for name, module in base.named_modules()] == modules
    assert not any(tensor.is_meta for tensor in (*base.parameters(), *base.buffers()))
    assert torch.equal(torch.get_rng_state(), random)
