"""The probe: when it runs, what it leaves alone, and what it refuses; and the table that speaks where none can run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import get_peft_model
from torch import nn

import peft_reft.sites.probe as probe
from peft_reft import ReftConfig
from peft_reft.causal import Site
from peft_reft.hub_format.errors import SiteError
from peft_reft.sites import find_stacks, site_table
from tools.architectures.tiny import tiny_model

IDS = torch.tensor([[5, 9, 33, 12]])
PROBED = ["attention_output", "mlp_output", "head_output[1]"]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts without verdicts of earlier models."""
    monkeypatch.setattr(probe, "_by_shape", {})


def forwards(model: nn.Module) -> list[int]:
    """Counts the model's forwards, by its own method: the probe runs none of the user's hooks."""
    calls: list[int] = []
    plain = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    counted.__signature__ = __import__("inspect").signature(plain)  # type: ignore[attr-defined]
    model.forward = counted
    return calls


def table(model: nn.Module, component: str, layers: list[int] | None = None) -> Any:
    return site_table(model, [(find_stacks(model), layers, component)])


@pytest.mark.parametrize("component", ["block_output", "block_input"])
def test_a_block_s_own_input_and_output_are_not_probed(component: str) -> None:
    model = tiny_model("LlamaForCausalLM")
    calls = forwards(model)
    get_peft_model(model, ReftConfig(component=component))
    Site(layer=1, component=component).address(model)
    assert not calls


@pytest.mark.parametrize("component", PROBED)
def test_one_forward_answers_for_every_model_of_a_class_and_config(component: str) -> None:
    model, alike, other = (tiny_model("LlamaForCausalLM", seed) for seed in (0, 1, 2))
    counts = [forwards(each) for each in (model, alike)]
    table(model, component)
    table(model, component)
    Site(layer=1, component=component).address(model)
    table(alike, component)
    assert [len(count) for count in counts] == [1, 0]
    other.config.num_attention_heads = 2
    assert len(forwards(other)) == 0
    counted = forwards(other)
    table(other, "mlp_output")
    assert len(counted) == 1


def test_the_model_and_the_random_states_are_as_before() -> None:
    model = tiny_model("LlamaForCausalLM").train()
    model.model.layers[2].mlp.eval()
    noticed: list[int] = []
    handle = model.model.layers[1].register_forward_hook(lambda *_: noticed.append(1))
    modes = [module.training for module in model.modules()]
    hooks = [(module._forward_hooks, dict(module._forward_hooks)) for module in model.modules()]
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3), numpy.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate()
    table(model, "mlp_output")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (numpy.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert [module.training for module in model.modules()] == modes
    assert all(
        module._forward_hooks is kept and dict(kept) == held
        for module, (kept, held) in zip(model.modules(), hooks, strict=True)
    )
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))
    assert not noticed
    with torch.no_grad():
        model(input_ids=IDS)
    assert noticed == [1]
    handle.remove()


def test_hooks_are_off_again_when_the_forward_fails() -> None:
    model = tiny_model("DogeForCausalLM")

    class Broken(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel")

    model.model.layers[3].mlp = Broken()
    with pytest.raises(SiteError, match="no kernel"):
        table(model, "attention_output", [3])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Scaled(nn.Module):
    """A feed-forward part of which the block then adds twice what it gives."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * self.mlp(hidden)


def test_a_part_that_is_not_added_as_it_is_is_refused_by_name() -> None:
    model = tiny_model("LlamaForCausalLM")
    model.model.layers[1].mlp = Scaled(model.model.layers[1].mlp)
    message = r"component='mlp_output' of model\.layers\.1 \(LlamaDecoderLayer\).*not what the block adds"
    for made in (
        lambda: get_peft_model(model, ReftConfig(component="mlp_output")),
        lambda: Site(layer=1, component="mlp_output").address(model),
    ):
        with pytest.raises(SiteError, match=message):
            made()
    table(model, "mlp_output", [0, 2, 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM", "GraniteForCausalLM", "PhiForCausalLM"])
def test_half_precision_is_probed_too(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name, **({"residual_multiplier": 0.22} if "Granite" in name else {})).to(dtype)
    verdicts = probe.judged(model, {"model.layers.1": model.model.layers[1]})
    assert {found.reason for found in verdicts.values()} == {None}
    assert len(verdicts) == 3


def test_a_second_adapter_and_lora_do_not_disturb_it() -> None:
    from peft import LoraConfig

    model = get_peft_model(tiny_model("LlamaForCausalLM"), ReftConfig(positions="l1", task_type="CAUSAL_LM"))
    model.add_adapter("other", ReftConfig(component="head_output[1]", positions="l1", task_type="CAUSAL_LM"))
    assert sum("self_attn.o_proj.reft" in name for name, _ in model.named_parameters()) > 0
    lora = get_peft_model(tiny_model("LlamaForCausalLM"), LoraConfig(target_modules=["o_proj", "down_proj"]))
    place = Site(layer=1, component="head_output[1]").address(lora)
    assert place.path.endswith("layers.1.self_attn.o_proj")


@pytest.mark.parametrize(
    "name",
    ["LlamaForCausalLM", "BloomForCausalLM", "Gemma2ForCausalLM", "Qwen3MoeForCausalLM", "NomicBertForMaskedLM"],
)
def test_on_the_meta_device_the_table_says_what_the_probe_says(name: str) -> None:
    model = tiny_model(name)
    calls = forwards(model)
    for component in PROBED:
        real = table(model, component)[0]
        with torch.device("meta"):
            empty = type(model)(model.config)
        assert table(empty, component)[0] == real
    assert len(calls) == 1


def test_a_block_that_is_not_in_the_table_is_refused_on_the_meta_device() -> None:
    model = tiny_model("DogeForCausalLM").to("meta")
    with pytest.raises(SiteError, match="meta device"):
        table(model, "attention_output")
    table(model, "block_output")


def test_weights_of_zero_tell_nothing_and_the_table_speaks() -> None:
    model = tiny_model("LlamaForCausalLM")
    nn.init.zeros_(model.model.layers[1].mlp.down_proj.weight)
    table(model, "mlp_output")
    assert not probe._by_shape


TABLE = json.loads((Path(probe.__file__).parent / "known_blocks.json").read_text())


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "Olmo2ForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration"]
)
def test_the_table_is_what_its_script_makes(name: str) -> None:
    from tools.architectures.table import rows_of, table_of

    made = table_of([rows_of(name)])
    assert made
    for block, components in made.items():
        assert TABLE[block] == components


def test_the_table_holds_no_attention_as_a_feed_forward_part() -> None:
    for components in TABLE.values():
        for path in components.get("mlp_output", ()):
            assert not any(word in path for word in ("attn", "attention", "Attention", "mixer"))
        for path in components.get("head_output", ()):
            assert not any(word in path for word in ("qkv", "q_proj", "c_attn", "query", "gate"))
