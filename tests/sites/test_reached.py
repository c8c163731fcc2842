"""Blocks past whose hooks a model goes are refused when the adapter is made; nothing is asked of other models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import peft_reft.sites.reached as reached
from peft_reft import ReftConfig
from peft_reft.causal import Site
from peft_reft.hub_format.errors import SiteError
from tools.architectures.tiny import tiny_model

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def squeezebert() -> hf.PreTrainedModel:
    return hf.SqueezeBertModel(
        hf.SqueezeBertConfig(**SIZES, intermediate_size=48, embedding_size=32, q_groups=1, k_groups=1, v_groups=1)
    ).eval()


def reformer() -> hf.PreTrainedModel:
    sizes = {**SIZES, "attention_head_size": 8, "feed_forward_size": 48, "axial_pos_embds": False, "is_decoder": False}
    return hf.ReformerModel(hf.ReformerConfig(**sizes, attn_layers=["local", "local"])).eval()


class ByName(hf.LlamaModel):
    """Runs its blocks by the name of their forward, or, where `sound`, as it should."""

    sound = False

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        hidden = self.embed_tokens(input_ids)
        position_ids = torch.arange(hidden.shape[1])[None]
        embeddings = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            run = layer if self.sound else layer.forward
            hidden = run(hidden, position_embeddings=embeddings, position_ids=position_ids)
        return hf.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)


class Sound(ByName):
    sound = True


def by_name(model_class: type[ByName]) -> ByName:
    sizes = {**SIZES, "intermediate_size": 48}
    return model_class(hf.LlamaConfig(**sizes, attn_implementation="eager")).eval()


def adapted(model: nn.Module, **config: Any) -> PeftModel:
    return get_peft_model(model, ReftConfig(task_type="FEATURE_EXTRACTION", init_weights=False, **config))


@pytest.mark.parametrize("component", ["block_output", "block_input", "attention_output"])
def test_a_model_that_runs_its_blocks_past_their_hooks_is_refused(component: str) -> None:
    for model, name in ((squeezebert(), "SqueezeBertModule"), (by_name(ByName), "LlamaDecoderLayer")):
        if (name, component) == ("SqueezeBertModule", "attention_output"):
            continue  # it has none that can be told
        with pytest.raises(SiteError, match=f"{name} is run by its forward's name") as caught:
            adapted(model, component=component)
        assert caught.value.code == "site.unreached"
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_where_such_a_model_cannot_run_it_is_refused_too() -> None:
    with pytest.raises(SiteError, match="no forward could tell"):
        adapted(by_name(ByName).to("meta"))


def test_code_that_names_forward_and_runs_the_hooks_is_taken_after_one_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[int] = []
    plain = reached.reached_blocks
    monkeypatch.setattr(reached, "reached_blocks", lambda *given: runs.append(1) or plain(*given))
    model = adapted(by_name(Sound), positions="f2")
    model.add_adapter("second", ReftConfig(task_type="FEATURE_EXTRACTION"))
    assert runs == [1]
    ids = torch.tensor([[5, 9, 33]])
    with torch.no_grad():
        edited = model(ids).last_hidden_state
        with model.disable_adapter():
            assert not torch.equal(edited, model(ids).last_hidden_state)


def test_reversible_layers_are_refused() -> None:
    """They run in no_grad, and work out gradients by running attention and feed-forward part again."""
    with pytest.raises(SiteError, match="ReformerLayer runs without gradients") as caught:
        adapted(reformer())
    assert caught.value.code == "site.reversible"


def test_the_causal_toolkit_refuses_them_too() -> None:
    with pytest.raises(SiteError, match="past every hook"):
        Site(layer=1).address(squeezebert())


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration"])
def test_no_forward_is_run_for_models_that_call_their_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reached, "reached_blocks", lambda *_: pytest.fail("a forward was run"))
    get_peft_model(tiny_model(name), ReftConfig(positions="f1"))
