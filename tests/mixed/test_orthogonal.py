"""Joint training without overlap: the rows that an edit reads stay out of what its block's LoRA writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from contract.tiny import base_model, token_ids
from peft_reft import MixedReftModel, ReftConfig
from peft_reft.hub_format.errors import ConfigError

WRITERS = ["o_proj", "down_proj"]


def model_with(targets: list[str], *, orthogonal: bool = True, **fields: Any) -> MixedReftModel:
    edit = {"intervention": "adapter", "r": 3, "act_fn": "silu", "positions": "all", **fields}
    configs = {
        "default": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets),
        "edit": ReftConfig(task_type="CAUSAL_LM", **edit),
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return MixedReftModel.from_configs(base_model("llama"), configs, orthogonal=orthogonal)


def steps(model: MixedReftModel, count: int = 3) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = token_ids(2, 9)
    labels = torch.where(torch.arange(9) < 4, -100, ids)
    for _ in range(count):
        (model(input_ids=ids, labels=labels).loss + model(input_ids=ids, labels=labels).loss).backward()
        optimizer.step()
        optimizer.zero_grad()


def overlaps(model: MixedReftModel) -> list[float]:
    """The largest |cosine| between a row of W_d and a column of a LoRA's B, block by block."""
    found = []
    for block in model.base_model.model.model.layers:
        down: Tensor = block.reft.unit(("edit", 0)).down
        loras = [module for module in block.modules() if hasattr(module, "lora_B")]
        columns = [module.lora_B["default"].weight for module in loras]
        written = torch.cat(columns, 1).T
        unit = torch.nn.functional.normalize
        found.append(float((unit(down, dim=1) @ unit(written, dim=1).T).abs().max()))
    return found


def test_rows_stay_out_of_what_is_written_and_so_they_are_saved(tmp_path: Path) -> None:
    free = model_with(WRITERS, orthogonal=False)
    steps(free)
    assert min(overlaps(free)) > 0.01
    model = model_with(WRITERS)
    steps(model)
    model.save_pretrained(str(tmp_path))
    assert max(overlaps(model)) < 1e-5
    loaded = MixedReftModel.from_pretrained(base_model("llama"), tmp_path, is_trainable=True, orthogonal=True)
    assert max(overlaps(loaded)) < 1e-5
    steps(loaded)
    loaded.eval()(token_ids(1, 5))
    assert max(overlaps(loaded)) < 1e-5


def test_a_lora_that_has_written_nothing_keeps_nothing_out() -> None:
    free, model = model_with(WRITERS, orthogonal=False), model_with(WRITERS)
    model.train()(input_ids=token_ids(1, 5), labels=token_ids(1, 5))
    for mine, other in zip(*(m.base_model.model.model.layers for m in (model, free)), strict=True):
        assert torch.equal(mine.reft.unit(("edit", 0)).down, other.reft.unit(("edit", 0)).down)


@pytest.mark.parametrize(
    ("targets", "fields"),
    [(["q_proj"], {}), (WRITERS, {"component": "mlp_output"}), (WRITERS, {"intervention": "bias", "act_fn": None})],
)
def test_what_cannot_be_kept_apart_is_refused(targets: list[str], fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="orthogonal=True"):
        model_with(targets, **fields)
