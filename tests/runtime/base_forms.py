"""A small Llama in the forms in which bases come: dtypes, quantised by three libraries, and packed by nobody's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from contract.tiny import VOCABULARY

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,
}


class PackedLinear(nn.Module):
    """What GPTQ and AWQ put in a linear layer's place: integers in buffers, scales, no `weight` at all."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", torch.round(linear.weight.detach() / scales).to(torch.int8))
        self.register_buffer("scales", scales)

    def unpacked(self) -> Tensor:
        return self.qweight.to(self.scales.dtype) * self.scales

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.unpacked().T


def pack(model: nn.Module) -> nn.Module:
    """Every linear layer of the blocks packed."""
    for block in model.model.layers:
        for path, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, name = path.rpartition(".")
                setattr(block.get_submodule(parent), name, PackedLinear(module))
    return model


def unpack(model: nn.Module) -> nn.Module:
    """The same values in plain linear layers."""
    for block in model.model.layers:
        for path, module in list(block.named_modules()):
            if isinstance(module, PackedLinear):
                parent, _, name = path.rpartition(".")
                plain = nn.Linear(module.in_features, module.out_features, bias=False)
                plain.weight = nn.Parameter(module.unpacked(), requires_grad=False)
                setattr(block.get_submodule(parent), name, plain)
    return model


@cache
def plain_weights() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(hf.LlamaForCausalLM(hf.LlamaConfig(**CONFIG)).state_dict())


def plain(dtype: torch.dtype = torch.float32, **fields: Any) -> nn.Module:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**CONFIG, **fields}))
    model.load_state_dict(plain_weights())
    return model.to(dtype).eval()


def quantised(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Callable[[Path], nn.Module]:
    def load(folder: Path) -> nn.Module:
        if not (folder / "config.json").is_file():
            plain().save_pretrained(folder)
        given = {"quantization_config": make(), "dtype": dtype, "device_map": "cpu"}
        model: nn.Module = hf.LlamaForCausalLM.from_pretrained(str(folder), **given)
        return model.eval()

    return load


def nf4() -> Any:
    return hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return hf.TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int8_dynamic() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return hf.TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


@dataclass(frozen=True)
class Form:
    """How a base is made, what it needs installed, and how closely its edit is compared.

    Attributes:
        make: folder for files → the base; the same values each time.
        needs: package.
        rounding: of the block's dtype, relative.
    """

    make: Callable[[Path], nn.Module]
    needs: str | None = None
    rounding: float = 1e-5

    @property
    def is_there(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


FORMS = {
    "float32": Form(lambda folder: plain()),
    "bfloat16": Form(lambda folder: plain(torch.bfloat16), rounding=2e-2),
    "float16": Form(lambda folder: plain(torch.float16), rounding=2e-3),
    "tied": Form(lambda folder: plain(tie_word_embeddings=True)),
    "packed": Form(lambda folder: pack(plain())),
    "bitsandbytes nf4": Form(quantised(nf4), "bitsandbytes"),
    "bitsandbytes nf4, bfloat16": Form(quantised(nf4, torch.bfloat16), "bitsandbytes", 2e-2),
    "bitsandbytes int8": Form(quantised(lambda: hf.BitsAndBytesConfig(load_in_8bit=True)), "bitsandbytes", 2e-3),
    "torchao int8": Form(quantised(torchao_int8), "torchao"),
    "torchao int8 dynamic": Form(quantised(torchao_int8_dynamic), "torchao", 1e-2),  # it rounds activations
}
