"""What else two processes must see: late adapters, unequal seeds, inputs in parts, generation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from contract.tiny import base_model
from distributed.engines import sharded_base, zero_engine
from distributed.models import PENALISED, batch, edit_config, make, penalised, trained
from peft_reft.hub_format.errors import ReftError

GENERATION = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
PROMPTS = [[0, 0, 9, 11, 14], [23, 31, 8, 5, 40]]


def refusal(act: Callable[[], Any]) -> tuple[str, str] | None:
    """Code and text of a refusal."""
    try:
        act()
    except ReftError as error:
        return error.code, str(error)
    return None


def late_adapters(root: Path) -> dict[str, Any]:
    """Adapters for a model that FSDP2 has sharded, in blocks only and whole; and a second one beside a first."""
    blocks = base_model("llama")
    for block in blocks.model.layers:
        fully_shard(block)
    inner, two = base_model("llama"), make("reft")
    fully_shard(inner.model)
    fully_shard(two)
    result = {
        "blocks": refusal(lambda: get_peft_model(blocks, edit_config())),
        "inner": refusal(lambda: get_peft_model(inner, edit_config())),
        "second": refusal(lambda: two.add_adapter("second", edit_config())),
    }
    return {**result, "left": [n for n, _ in blocks.named_modules() if "reft" in n], "known": list(two.peft_config)}


def late_under_zero3(root: Path) -> dict[str, Any]:
    """A second adapter for a model that DeepSpeed has sharded."""
    model = make("reft")
    zero_engine(model, 3)
    return {"second": refusal(lambda: model.add_adapter("second", edit_config())), "known": list(model.peft_config)}


def unequal_seeds(root: Path) -> dict[str, Any]:
    """Under tensor parallelism an adapter starts the same in every process, whatever its seed."""
    torch.manual_seed(1000 + dist.get_rank())
    model = get_peft_model(sharded_base(root), edit_config(init_weights="paper"))
    return {name: parameter.detach() for name, parameter in trained(model).items()}


def components(root: Path) -> dict[str, Any]:
    """Under tensor parallelism: every component's loss, or its refusal."""
    found: dict[str, Any] = {}

    def measure(component: str) -> None:
        torch.manual_seed(3)
        model = get_peft_model(sharded_base(root), edit_config(component=component)).double()
        found[component] = model(**batch(0)).loss.item()

    for component in ("block_output", "block_input", "attention_output", "mlp_output", "head_output[2]"):
        found[component] = refusal(partial(measure, component)) or found[component]
    return found


def generation(root: Path) -> dict[str, Any]:
    """Tokens under tensor parallelism, and of two processes that hold shards and have prompts of their own."""
    ids = torch.tensor(PROMPTS)
    torch.manual_seed(3)
    whole = get_peft_model(sharded_base(root), edit_config()).double().eval()
    answers = {"tp": whole.generate(input_ids=ids, attention_mask=(ids != 0).long(), **GENERATION)}
    model = make("reft").eval()
    for block in model.get_base_model().model.layers:
        fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "generate")  # as transformers' Trainer does
    own = ids[dist.get_rank()][None]
    more = {**GENERATION, "max_new_tokens": 5 - 2 * dist.get_rank(), "synced_gpus": True}
    with torch.no_grad():
        answers["fsdp2"] = model.generate(input_ids=own, attention_mask=(own != 0).long(), **more)
    return answers


def penalties(root: Path) -> dict[str, Any]:
    """Gradients under DDP of kinds that add to the loss; each process computes half of the batch."""
    rows = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    found = {}
    for kind in PENALISED:
        model = penalised(kind)
        ddp = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        torch.manual_seed(11)
        ddp(**batch(0, rows)).loss.backward()
        found[kind] = {name: parameter.grad for name, parameter in trained(model).items()}
    return found


ZERO_CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {"late_under_zero3": late_under_zero3}
CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "late_adapters": late_adapters,
    "unequal_seeds": unequal_seeds,
    "components": components,
    "generation": generation,
    "penalties": penalties,
}
