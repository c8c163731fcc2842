"""Every weight adapter of PEFT on linear layers beside a ReFT: the sum of its parts, each alone, trained and stored.

The reference is the weight adapter in a stock `PeftModel`, with the edit of LoReFT in forward hooks written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from runtime.base_forms import FORMS, plain
from runtime.test_base_forms import edit_by_hand
from torch import Tensor, nn

from contract.tiny import token_ids
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format.errors import ConfigError

IDS = token_ids(2, 9)
PROMPT = 6
LABELS = torch.where(torch.arange(9) < PROMPT, -100, IDS)
COLUMNS = [0, 1, PROMPT - 2, PROMPT - 1]
LINEAR: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}


@dataclass(frozen=True)
class Variant:
    """A weight adapter and the base it stands on.

    Attributes:
        config: makes a fresh config, whose adapter is not the identity.
        form: of the base.
    """

    config: Callable[[], PeftConfig]
    form: str = "float32"

    def base(self, folder: Path) -> nn.Module:
        """The base; its 4-bit weights stay where they can be read back, as DoRA does: on a CPU with AVX512-BF16
        bitsandbytes moves them, in an evaluation, into a layout that it cannot."""
        made = FORMS[self.form].make(folder)
        for layer in made.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
        return made


def lora(**fields: Any) -> Callable[[], PeftConfig]:
    return lambda: peft.LoraConfig(**{**LINEAR, "r": 4, "init_lora_weights": False, **fields})


def ia3() -> PeftConfig:
    return peft.IA3Config(**LINEAR, feedforward_modules=["down_proj"], init_ia3_weights=False)


VARIANTS = {
    "LoRA": Variant(lora()),
    "rsLoRA": Variant(lora(use_rslora=True)),
    "DoRA": Variant(lora(use_dora=True)),
    "LoRA with a bias": Variant(lora(lora_bias=True)),
    "PiSSA": Variant(lora(init_lora_weights="pissa")),
    "OLoRA": Variant(lora(init_lora_weights="olora")),
    "ranks by layer": Variant(lora(rank_pattern={"down_proj": 2}, alpha_pattern={"down_proj": 3})),
    "QLoRA": Variant(lora(), "bitsandbytes nf4"),
    "QLoRA with DoRA": Variant(lora(use_dora=True), "bitsandbytes nf4"),
    "LoRA on int8": Variant(lora(), "bitsandbytes int8"),
    "IA3": Variant(ia3),
    "LoHa": Variant(lambda: peft.LoHaConfig(**LINEAR, r=4, init_weights=False)),
    "LoKr": Variant(lambda: peft.LoKrConfig(**LINEAR, r=4, init_weights=False)),
    "OFT": Variant(lambda: peft.OFTConfig(**LINEAR, r=0, oft_block_size=8, init_weights=False)),
    "VeRA": Variant(
        lambda: peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, init_weights=False)
    ),
}


QUICK = ("rsLoRA", "DoRA", "QLoRA", "IA3")


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in VARIANTS])
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen = VARIANTS[request.param]
    if not FORMS[chosen.form].is_there:
        pytest.skip(f"{FORMS[chosen.form].needs} is not installed")
    return chosen


def edit() -> ReftConfig:
    return ReftConfig(task_type="CAUSAL_LM", r=2, positions="f2+l2", init_weights="paper")


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


def mixed_on(base: nn.Module, variant: Variant) -> MixedReftModel:
    configs = {"default": variant.config(), "edit": edit()}
    model: MixedReftModel = seeded(lambda: MixedReftModel.from_configs(base, configs))
    return model.train()


def weights_alone(base: nn.Module, variant: Variant, source: MixedReftModel) -> PeftModel:
    """The weight adapter in a stock model, with the mixed model's tensors."""
    model = seeded(lambda: get_peft_model(base, variant.config())).train()
    own = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(own[name])
    return model


def left_base(base: nn.Module, variant: Variant) -> nn.Module:
    """The base as the weight adapter leaves it: PiSSA and OLoRA take their start out of its weights."""
    left: nn.Module = seeded(lambda: get_peft_model(base, variant.config())).unload()
    return left


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of what is trained."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=LABELS).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def is_edit(name: str) -> bool:
    return ".reft_" in name


def edit_tensors(model: MixedReftModel) -> list[dict[str, Tensor]]:
    blocks = model.get_base_model().model.layers
    return [
        {name: p.detach().clone().requires_grad_() for name, p in block.reft.unit(("edit", 0)).named_parameters()}
        for block in blocks
    ]


def test_both_parts_train_as_the_sum_written_by_hand(variant: Variant, tmp_path: Path) -> None:
    make = variant.base
    model = mixed_on(make(tmp_path), variant)
    reference = weights_alone(make(tmp_path), variant, model)
    tensors = edit_tensors(model)
    edit_by_hand(reference.get_base_model(), tensors, COLUMNS)
    (loss, gradients), (expected, others) = step(model), step(reference)
    close = {"rtol": 1e-4, "atol": 1e-5} if variant.form == "float32" else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(loss, expected, **close)
    weights = {name: gradient for name, gradient in gradients.items() if not is_edit(name)}
    assert set(weights) == set(others)
    assert weights
    for name, gradient in others.items():
        torch.testing.assert_close(weights[name], gradient, **close, msg=name)
    for block, given in enumerate(tensors):
        for name, tensor in given.items():
            found = next(g for key, g in gradients.items() if f".{block}.reft.reft_0.edit.{name}" in key)
            torch.testing.assert_close(found, tensor.grad, **close, msg=name)


def test_each_part_alone_is_itself_bit_for_bit(variant: Variant, tmp_path: Path) -> None:
    make = variant.base
    model = mixed_on(make(tmp_path), variant)
    alone = weights_alone(make(tmp_path), variant, model)
    edits = seeded(lambda: get_peft_model(left_base(make(tmp_path), variant), edit()))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in edits.named_parameters():
            if is_edit(name):
                parameter.copy_(own[name.replace(".default.", ".edit.")])
    both = logits(model)
    model.set_adapter(["default"])
    assert torch.equal(logits(model), logits(alone))
    model.set_adapter(["edit"])
    assert torch.equal(logits(model), logits(edits))
    model.set_adapter([])
    assert torch.equal(logits(model), logits(left_base(make(tmp_path), variant)))
    assert not torch.equal(both, logits(alone))
    assert not torch.equal(both, logits(edits))
    model.set_adapter(["default", "edit"])
    assert torch.equal(logits(model), both)


@pytest.mark.parametrize("frozen", ["default", "edit"])
def test_one_part_trains_on_top_of_the_other(variant: Variant, frozen: str, tmp_path: Path) -> None:
    """The frozen part gets no gradient and keeps its bits; the other's gradients are those of joint training."""
    model = mixed_on(variant.base(tmp_path), variant)
    loss, together = step(model)
    model.set_requires_grad(frozen, False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    again, gradients = step(model)
    assert torch.equal(again, loss)
    assert set(gradients) == {name for name in together if is_edit(name) == (frozen == "default")}
    for name, gradient in gradients.items():
        assert torch.equal(gradient, together[name]), name
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, gradient in gradients.items() if gradient.any()}
    model.set_requires_grad([frozen], True)
    assert set(step(model)[1]) == set(together)


def test_a_bundle_brings_both_parts_back(variant: Variant, tmp_path: Path) -> None:
    make = variant.base
    model = mixed_on(make(tmp_path / "base"), variant)
    model.save_pretrained(str(tmp_path / "bundle"))
    loaded = MixedReftModel.from_pretrained(make(tmp_path / "base"), str(tmp_path / "bundle"))
    assert torch.equal(logits(loaded), logits(model))
    stock = PeftModel.from_pretrained(make(tmp_path / "base"), str(tmp_path / "bundle"))
    model.set_adapter(["default"])
    assert torch.equal(logits(stock), logits(model))


def test_adalora_is_refused() -> None:
    """Its tuner calls the base's `forward` past the hooks that work out positions."""
    config = peft.AdaLoraConfig(**LINEAR, init_r=4, target_r=2, total_step=10)
    with pytest.raises(ConfigError, match="ADALORA") as caught:
        MixedReftModel.from_configs(plain(), {"default": config, "edit": edit()})
    assert "LoraConfig" in str(caught.value)


def test_an_unknown_name_is_not_frozen_silently() -> None:
    model = mixed_on(plain(), VARIANTS["LoRA"])
    with pytest.raises(ConfigError, match="default, edit"):
        model.set_requires_grad("edits", False)
