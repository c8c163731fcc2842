"""Hot-swap: another adapter's tensors in the place of one, with the outputs of a fresh load and no further graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interventions.kinds import KINDS, Kind
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import hotswap
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from peft_reft import ReftConfig, hotswap_adapter, prepare_for_hotswap, scale_adapter
from peft_reft.hub_format.errors import ConfigError, ReftError
from peft_reft.interventions import Intervention, intervention_class

from .counting import CompileCounter, base, batch, fresh_compiler, labelled, reft

GIVEN = batch(2, 8, left=2)
PADDED = (
    "adapter",
    "consreft",
    "direft",
    "direft_orthogonal",
    "distribution",
    "gated",
    "lobireft",
    "loreft",
    "noreft",
)


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    with fresh_compiler():
        yield


def saved(folder: Path, *, seed: int = 7, **fields: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ReftConfig(**{"task_type": "CAUSAL_LM", "init_weights": False, "positions": "f2+l2", **fields})
        get_peft_model(base("llama"), config).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(**GIVEN).logits
    return found[GIVEN["attention_mask"].bool()]


def fresh(folder: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(base("llama"), folder).eval())


def test_one_graph_serves_what_is_swapped_in_at_the_same_rank_and_a_lower_one(tmp_path: Path) -> None:
    same, lower = saved(tmp_path / "same"), saved(tmp_path / "lower", r=2, seed=8, dropout=0.25)
    model = reft("llama", positions="f2+l2")
    prepare_for_hotswap(model, target_rank=6)
    counter = CompileCounter()
    compiled = torch.compile(model.get_base_model(), backend=counter, fullgraph=True)
    before = logits(model)
    assert_close(logits(compiled), before)
    scale_adapter(model, "default", 0.5)
    for folder in (same, lower, same):
        hotswap_adapter(model, str(folder), "default")
        assert_close(logits(compiled), fresh(folder), atol=1e-5, rtol=1e-5)
        assert not torch.equal(logits(model), before)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_a_compiled_peft_model_keeps_its_graph(tmp_path: Path) -> None:
    model = reft("llama", positions="f2+l2")
    compiled = torch.compile(model, backend=(counter := CompileCounter()), fullgraph=True)
    logits(compiled)
    hotswap_adapter(compiled, str(saved(tmp_path)), "default")
    assert_close(logits(compiled), fresh(tmp_path))
    assert counter.frame_count == 1


def test_the_same_rank_has_the_bits_of_a_fresh_load(tmp_path: Path) -> None:
    model = reft("llama", positions="f2+l2")
    hotswap_adapter(model, str(saved(tmp_path)), "default")
    assert torch.equal(logits(model), fresh(tmp_path))


@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("act_fn", [None, "sigmoid"])
def test_rows_of_zeros_add_nothing_to_an_edit(kind: str, act_fn: str | None) -> None:
    cls = intervention_class(kind)
    act_fn = act_fn if cls.activates else None
    unit = cls(8, 3, act_fn=act_fn, init_weights=False).train(not cls.samples)  # what is drawn differs with its size
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = unit(hidden)
    expected.square().sum().backward()
    wanted = {name: value.grad.clone() for name, value in unit.named_parameters() if value.grad is not None}
    assert wanted.keys() == dict(unit.named_parameters()).keys() or cls.samples
    wanted_hidden, hidden.grad = hidden.grad, None
    unit.zero_grad()
    unit.reserve(6)
    assert_close(unit(hidden), expected)
    unit(hidden).square().sum().backward()
    assert_close(hidden.grad, wanted_hidden)
    for name, grad in wanted.items():
        assert_close(unit.get_parameter(name).grad[: len(grad)], grad, atol=1e-4, rtol=1e-4)
    if cls.orthonormal:
        assert not unit.get_parameter("rotation").grad[3:].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name not in PADDED], ids=str)
def test_other_kinds_say_that_they_cannot_be_padded(kind: Kind) -> None:
    assert not type(kind.make()).__dict__.get("pads", False)


def test_what_is_saved_after_a_swap_is_what_was_swapped_in(tmp_path: Path) -> None:
    lower = saved(tmp_path / "lower", r=2)
    model = reft("llama", positions="f2+l2")
    hotswap_adapter(model, str(lower), "default")
    model.save_pretrained(tmp_path / "again")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (lower, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(fresh(tmp_path / "again"), fresh(lower))
    state = model.state_dict()
    other = reft("llama", positions="f2+l2")
    hotswap_adapter(other, str(lower), "default")
    with torch.no_grad():
        for value in other.parameters():
            value.add_(value.ne(0))
    other.load_state_dict(state)
    assert_close(logits(other), logits(model))


def test_a_lower_rank_is_swapped_in_beside_other_adapters_and_row_by_row(tmp_path: Path) -> None:
    lower = saved(tmp_path / "lower", r=2)
    model = reft("llama", positions="f2+l2")
    model.add_adapter("b", ReftConfig(task_type="CAUSAL_LM", init_weights=False, positions="f2+l2"))
    model.eval()
    rows = {"adapter_names": ["default", "b"]}
    with torch.no_grad():
        kept = model(**GIVEN, **rows).logits[1]
        hotswap_adapter(model, str(lower), "default")
        mixed = model(**GIVEN, **rows).logits
    real = GIVEN["attention_mask"].bool()
    assert torch.equal(mixed[1], kept)
    assert_close(mixed[0][real[0]], fresh(lower)[: int(real[0].sum())], atol=1e-5, rtol=1e-5)


def test_a_swapped_in_adapter_can_be_trained(tmp_path: Path) -> None:
    lower = saved(tmp_path / "lower", r=2)
    model = reft("llama", positions="f2+l2").train()
    hotswap_adapter(model, str(lower), "default")
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**labelled(GIVEN, 5)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[2] < losses[0]
    for name, value in model.named_parameters():
        if ".reft_" in name and "rotation" in name:
            assert not value[2:].any()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "positions": ({"positions": "f3+l2"}, "positions"),
    "kind": ({"intervention": "direft"}, "intervention"),
    "component": ({"component": "mlp_output"}, "component"),
    "activation": ({"act_fn": "relu"}, "act_fn"),
    "ties": ({"share_weights": False}, "share_weights"),
    "layers": ({"layers_to_transform": [0]}, "finds no tensor in the file"),
    "task": ({"task_type": "FEATURE_EXTRACTION"}, "task_type"),
    "rank": ({"r": 5}, "prepare_for_hotswap"),
    "groups": ({"interventions": [{"r": 2}, {"r": 3}]}, "interventions"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_needs_another_graph_is_refused_and_changes_nothing(tmp_path: Path, wrong: str) -> None:
    fields, message = WRONG[wrong]
    folder, model = saved(tmp_path, **fields), reft("llama", positions="f2+l2")
    before = logits(model)
    with pytest.raises(ReftError, match=message):
        hotswap_adapter(model, str(folder), "default")
    assert torch.equal(logits(model), before)


def test_digests_of_the_folder_are_checked(tmp_path: Path) -> None:
    model = reft("llama", positions="f2+l2")
    before = logits(model)
    weights = saved(tmp_path / "bytes") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ReftError):
        hotswap_adapter(model, str(tmp_path / "bytes"), "default")
    config = saved(tmp_path / "config") / "adapter_config.json"
    stored = json.loads(config.read_text())
    next(iter(stored["reft"]["tensors"].values()))["sha256"] = "0" * 64
    config.write_text(json.dumps(stored))
    with pytest.raises(ReftError):
        hotswap_adapter(model, str(tmp_path / "config"), "default")
    (saved(tmp_path / "manifest") / "reft_manifest.json").unlink()
    with pytest.raises(ReftError):
        hotswap_adapter(model, str(tmp_path / "manifest"), "default")
    assert torch.equal(logits(model), before)


def test_a_name_that_no_adapter_has_and_a_rank_that_has_no_room_are_refused(tmp_path: Path) -> None:
    model = reft("llama", positions="f2+l2")
    with pytest.raises(ConfigError, match="there is no ReFT adapter 'nobody'"):
        hotswap_adapter(model, str(saved(tmp_path)), "nobody")
    for rank in (3, 33):
        with pytest.raises(ConfigError, match=f"target_rank={rank}"):
            prepare_for_hotswap(model, target_rank=rank)
    with pytest.raises(ConfigError, match="'sae'"):
        prepare_for_hotswap(reft("llama", intervention="sae", positions="l2"), target_rank=8)
    with pytest.raises(ConfigError, match="compiled"):
        prepare_for_hotswap(torch.compile(model, backend="eager"), target_rank=8)
    lora = get_peft_model(base("llama"), LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="there is no ReFT adapter"):
        hotswap_adapter(lora, str(tmp_path), "default")


def test_pefts_own_functions_refuse_a_reft_and_change_nothing(tmp_path: Path) -> None:
    model = reft("llama", positions="f2+l2")
    before = logits(model)
    with pytest.raises(ValueError, match="only supports LORA"):
        hotswap.hotswap_adapter(model, str(saved(tmp_path)), "default")
    with pytest.raises(ValueError, match="No adapter layers found"):
        hotswap.prepare_model_for_compiled_hotswap(model, target_rank=8)
    assert torch.equal(logits(model), before)


def test_a_sum_of_padded_adapters_is_refused(tmp_path: Path) -> None:
    model = reft("llama", positions="f2+l2")
    hotswap_adapter(model, str(saved(tmp_path, r=2)), "default")
    with pytest.raises(ConfigError, match="hot-swap"):
        model.add_weighted_adapter(["default"], [0.5], "sum")


def test_a_kind_without_a_rank_is_swapped_whatever_r_says(tmp_path: Path) -> None:
    folder = saved(tmp_path, intervention="bias", r=2)
    model = reft("llama", intervention="bias", positions="f2+l2")
    hotswap_adapter(model, str(folder), "default")
    assert torch.equal(logits(model), fresh(folder))


def test_a_users_kind_is_not_padded_unasked() -> None:
    class Twice(intervention_class("direft")):  # type: ignore[misc]
        pass

    assert issubclass(Twice, Intervention)
    assert "pads" not in vars(Twice)
