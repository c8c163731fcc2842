"""The methods that are compared, one row each: what PEFT is given, and the learning rates that are searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["FULL", "METHODS", "Method", "attach", "trained"]

REFT_RATES = (2e-3, 6e-3, 2e-2, 6e-2)
LORA_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FULL_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
SCALING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FULL = "full"
ATTENTION = ["q_proj", "v_proj"]
WRITERS = ["o_proj", "down_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        family: `reft`, `peft` (another method of PEFT), `mixed` or `full`.
        config: the base's config → that of an adapter (of both, where mixed); None where all weights are trained.
        rates: learning rates that the search begins with, as many for every method.
        stacks: whether several of its adapters can edit at once.
        factors: tensor of the edits → how many times the method's rate it learns at; all else learns at the rate.
        orthogonal: whether a mixed method's edit is kept out of what its LoRA writes.
    """

    family: str
    config: Callable[[Any], Any] | None
    rates: tuple[float, ...]
    stacks: bool = True
    factors: Mapping[str, float] = field(default_factory=dict)
    orthogonal: bool = False


def _reft(base: Any, layers: str = "all", **fields: Any) -> Any:
    from peft_reft import ReftConfig

    if layers != "all":
        blocks = base.num_hidden_layers
        chosen = {"every other": range(1, blocks, 2), "last half": range(blocks // 2, blocks)}
        fields["layers_to_transform"] = list(chosen[layers])
    return ReftConfig(task_type="CAUSAL_LM", **{"r": 4, "positions": "f3+l3", **fields})


def _lora(base: Any, *, rank: int, targets: list[str], **fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=targets, **fields)


def _ia3(base: Any) -> Any:
    from peft import IA3Config

    names = ["k_proj", "v_proj", "down_proj"]
    return IA3Config(task_type="CAUSAL_LM", target_modules=names, feedforward_modules=["down_proj"])


def _road(base: Any) -> Any:
    from peft import RoadConfig

    return RoadConfig(task_type="CAUSAL_LM", variant="road_1", target_modules=LINEAR)


def _vera(base: Any) -> Any:
    from peft import VeraConfig

    return VeraConfig(task_type="CAUSAL_LM", r=64, target_modules=ATTENTION)


def _prompt(base: Any) -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)


def _both(base: Any) -> Any:
    return {"default": _lora(base, rank=1, targets=ATTENTION), "edit": _reft(base)}


def _heads(base: Any, **options: Any) -> Any:
    given = {"heads": base.num_attention_heads, **options}
    return _reft(base, intervention="heads", component="heads", options=given, positions="all")


def _joint(base: Any) -> Any:
    given = {"default": _lora(base, rank=1, targets=WRITERS)}
    return {**given, "edit": _reft(base, intervention="adapter", positions="all", act_fn="silu")}


def _of_reft(**fields: Any) -> Method:
    return Method("reft", partial(_reft, **fields), REFT_RATES)


METHODS: dict[str, Method] = {
    "loreft r4": _of_reft(),
    "loreft r1": _of_reft(r=1),
    "loreft r16": _of_reft(r=16),
    "loreft r4 l1": _of_reft(positions="l1"),
    "loreft r4 prompt": _of_reft(positions="prompt"),
    "loreft r4 all": _of_reft(positions="all"),
    "loreft r4 apart": _of_reft(share_weights=False),
    "loreft r4 every other layer": _of_reft(layers="every other"),
    "loreft r4 last half": _of_reft(layers="last half"),
    "loreft r4 paper's start": _of_reft(init_weights="paper"),
    "noreft r4": _of_reft(intervention="noreft"),
    "direft r4": _of_reft(intervention="direft"),
    "direft r4 all": _of_reft(intervention="direft", positions="all"),
    "direft_orthogonal r4": _of_reft(intervention="direft_orthogonal"),
    "lobireft r4": _of_reft(intervention="lobireft"),
    "bias": _of_reft(intervention="bias"),
    "red": _of_reft(intervention="red"),
    "red all": _of_reft(intervention="red", positions="all"),
    "clamp": _of_reft(intervention="clamp"),
    "clamp all": _of_reft(intervention="clamp", positions="all"),
    "prosv p4+s2": Method(
        "reft", partial(_reft, intervention="prosv", positions="f4+l2"), REFT_RATES, factors={"factor": 250.0}
    ),
    "distribution r4": _of_reft(intervention="distribution"),
    "distribution r4 all": _of_reft(intervention="distribution", positions="all"),
    "adapter r4 all": _of_reft(intervention="adapter", positions="all", act_fn="silu"),
    "heads": Method("reft", _heads, REFT_RATES),
    "heads with gates": Method("reft", partial(_heads, gates=True, penalty=0.01), REFT_RATES),
    "lora r1 qv": Method("peft", partial(_lora, rank=1, targets=ATTENTION), LORA_RATES),
    "lora r8 qv": Method("peft", partial(_lora, rank=8, targets=ATTENTION), LORA_RATES),
    "lora r8 linear": Method("peft", partial(_lora, rank=8, targets=LINEAR), LORA_RATES),
    "dora r8 qv": Method("peft", partial(_lora, rank=8, targets=ATTENTION, use_dora=True), LORA_RATES),
    "ia3": Method("peft", _ia3, SCALING_RATES),
    "road": Method("peft", _road, SCALING_RATES),
    "vera r64 qv": Method("peft", _vera, SCALING_RATES),
    "prompt tuning 8": Method("peft", _prompt, (3e-3, 1e-2, 3e-2, 1e-1), stacks=False),
    "lora r1 + loreft r4": Method("mixed", _both, LORA_RATES, stacks=False),
    "lora r1 + adapter r4": Method("mixed", _joint, LORA_RATES, stacks=False),
    "lora r1 + adapter r4 apart": Method("mixed", _joint, LORA_RATES, stacks=False, orthogonal=True),
    FULL: Method("full", None, FULL_RATES, stacks=False),
}
"""Name → method."""


def attach(name: str, make: Callable[[torch.dtype], Any], seed: int) -> Any:
    """A model with one fresh adapter of a method, or one whose weights are all trained; the start follows the seed."""
    method = METHODS[name]
    torch.manual_seed(seed)
    if method.config is None:
        whole = make(torch.float32).requires_grad_(True)
        if getattr(whole, "upper_blocks_alone", False):  # the head is the embedding of the blocks below, which stay
            whole.get_output_embeddings().requires_grad_(False)
        return whole
    base = make(torch.bfloat16)
    config = method.config(base.config)
    if method.family == "mixed":
        from peft_reft import MixedReftModel

        return MixedReftModel.from_configs(base, config, orthogonal=method.orthogonal)
    from peft import get_peft_model

    model = get_peft_model(base, config)
    if getattr(model, "word_embeddings", base) is None:  # PEFT looks for a matrix of the vocabulary's height
        model.word_embeddings = base.get_input_embeddings()
    return model


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
