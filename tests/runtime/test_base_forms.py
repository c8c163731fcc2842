"""A base in any form is edited as its blocks' outputs are: losses and gradients equal a hook written by hand.

An edit reads and writes hidden states alone, so what the weights are does not matter. Each form is compared with the
same base and a forward hook that has the equation of LoReFT; PackedLinear stands for GPTQ and AWQ, whose kernels are
of GPUs: a block without a floating weight anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from contract.tiny import token_ids
from peft_reft import ReftConfig
from peft_reft.interventions import orthonormal_rows
from runtime.base_forms import FORMS, Form, pack, plain, unpack

IDS = token_ids(2, 9)
PROMPT = 6
LABELS = torch.where(torch.arange(9) < PROMPT, -100, IDS)
COLUMNS = [0, 1, PROMPT - 2, PROMPT - 1]


QUICK = ("bfloat16", "packed", "bitsandbytes nf4", "bitsandbytes int8", "torchao int8")


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FORMS])
def form(request: pytest.FixtureRequest) -> Form:
    chosen = FORMS[request.param]
    if not chosen.is_there:
        pytest.skip(f"{chosen.needs} is not installed")
    return chosen


def edited(base: nn.Module, **fields: Any) -> PeftModel:
    given = {"r": 2, "positions": "f2+l2", "init_weights": "paper", **fields}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(base, ReftConfig(task_type="CAUSAL_LM", **given)).eval()


def tensors_of(model: PeftModel) -> list[dict[str, Tensor]]:
    """Per block, rotation, weight and bias: leaves of their own."""
    return [
        {name: p.detach().clone().requires_grad_() for name, p in block.reft.unit(("default", 0)).named_parameters()}
        for block in model.get_base_model().model.layers
    ]


def edit_by_hand(base: nn.Module, tensors: list[dict[str, Tensor]], columns: list[int]) -> None:
    """h + Rᵀ(Wh + b − Rh) at some columns of every block's output, in float32, cast back; in the prefill alone."""

    def hook_for(given: dict[str, Tensor]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            if hidden.shape[1] == 1:
                return output
            rotation = orthonormal_rows(given["rotation"])
            chosen = [column for column in columns if column < hidden.shape[1]]
            rows = hidden[:, chosen].float()
            delta = (rows @ given["weight"].T + given["bias"] - rows @ rotation.T) @ rotation
            new = hidden.index_copy(1, torch.tensor(chosen), (rows + delta).to(hidden.dtype))
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return hook

    for block, given in zip(base.model.layers, tensors, strict=True):
        block.register_forward_hook(hook_for(given))


def test_losses_and_gradients_are_those_of_the_equation(form: Form, tmp_path: Path) -> None:
    model, reference = edited(form.make(tmp_path)).train(), form.make(tmp_path).train()
    tensors = tensors_of(model)
    edit_by_hand(reference, tensors, COLUMNS)
    expected = reference(input_ids=IDS, labels=LABELS).loss
    loss = model(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(loss, expected, rtol=form.rounding, atol=form.rounding)
    loss.backward()
    expected.backward()
    for block, given in zip(model.get_base_model().model.layers, tensors, strict=True):
        for name, parameter in block.reft.unit(("default", 0)).named_parameters():
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            worst = float((parameter.grad - given[name].grad).norm() / given[name].grad.norm())
            assert worst <= 10 * form.rounding, name
    others = [name for name, p in model.named_parameters() if p.grad is not None and ".reft_" not in name]
    assert others == []
    with model.disable_adapter():
        assert abs(model(input_ids=IDS, labels=LABELS).loss.item() - loss.item()) > 9 * form.rounding


def test_generation_is_that_of_the_equation(form: Form, tmp_path: Path) -> None:
    """The scores of every step, for as long as no tie that a rounding turns gives the two another token."""
    model, reference = edited(form.make(tmp_path)), form.make(tmp_path)
    prompt = IDS[:, :PROMPT]
    edit_by_hand(reference, tensors_of(model), COLUMNS)
    given = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    more = {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        found, expected = (each.generate(input_ids=prompt, **given, **more) for each in (model, reference))
    same = torch.ones(len(prompt), dtype=torch.bool)
    for step, (one, two) in enumerate(zip(found.logits, expected.logits, strict=True)):
        scale = float(two.abs().max())
        assert float((one - two)[same].abs().max()) <= 3 * form.rounding * scale
        same &= found.sequences[:, PROMPT + step] == expected.sequences[:, PROMPT + step]
        assert same.any()
    assert form.rounding > 1e-3 or same.all()


def test_what_was_saved_on_one_form_computes_the_same_on_it(form: Form, tmp_path: Path) -> None:
    model = edited(form.make(tmp_path / "base"))
    model.save_pretrained(str(tmp_path / "adapter"))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".reft_" in name for name in stored)  # no embedding beside it, tied or not
    loaded = PeftModel.from_pretrained(form.make(tmp_path / "base"), str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_an_adapter_moves_between_forms(form: Form, tmp_path: Path) -> None:
    """The file says nothing of the base's form: one trained on float32 loads on all of them."""
    model = edited(plain())
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(form.make(tmp_path / "base"), str(tmp_path / "adapter"))
    units = [m.get_base_model().model.layers[1].reft.unit(("default", 0)) for m in (model, loaded)]
    for name, parameter in units[0].named_parameters():
        assert torch.equal(dict(units[1].named_parameters())[name], parameter)


def test_packed_weights_train_as_the_same_weights_unpacked() -> None:
    """Bit for bit: nothing looks at a block's weights, not even for a device or a dtype."""
    results = []
    for base in (pack(plain()), unpack(pack(plain()))):
        model = edited(base)
        loss = model(input_ids=IDS, labels=LABELS).loss
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters() if p.requires_grad]))
    assert not any(p.is_floating_point() and p.dim() > 1 for p in pack(plain()).model.layers.parameters())
    assert torch.equal(results[0][0], results[1][0])
    for one, two in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
def test_torchao_int4_trains(tmp_path: Path) -> None:
    """torchao 0.18 packs int4 for accelerators: on the CPU every packing format raises before there is a model."""
    import transformers as hf
    from torchao.quantization import Int4WeightOnlyConfig

    from runtime.base_forms import quantised

    config = hf.TorchAoConfig(Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d"))
    model = edited(quantised(lambda: config, torch.bfloat16)(tmp_path).cuda())
    loss = model(input_ids=IDS.cuda(), labels=LABELS.cuda()).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
