"""`add_weighted_adapter`: one adapter whose edit is the weighted sum of others' edits, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interventions.kinds import KINDS, Kind
from mixed.tiny import lora, mixed_model, reft
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig, scale_adapter, set_subspaces
from peft_reft.hub_format.errors import ConfigError, MergeError
from peft_reft.interventions import intervention_class

FOLDING = (
    "adapter",
    "bias",
    "consreft",
    "direft",
    "direft_orthogonal",
    "lobireft",
    "loreft",
    "noreft",
    "prosv",
    "red",
)
"""Kinds that hold a factor; the others can be added with the factor 1."""


def model_with(*adapters: dict[str, Any], name: str = "llama", **more: Any) -> PeftModel:
    """Adapters `default`, `a1`, …, in float64."""
    first, *others = adapters
    model = reft_model(name, dtype=torch.float64, **first, **more)
    for number, fields in enumerate(others, start=1):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            config = ReftConfig(
                **{"task_type": model.peft_config["default"].task_type, "init_weights": False, **fields}
            )
            model.add_adapter(f"a{number}", config)
    return model.to(torch.float64).eval()


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    decoder = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    return model(input_ids=ids, **decoder).logits


def together(model: PeftModel, weights: dict[str, float], ids: Tensor) -> Tensor:
    """The logits with all of them active, each scaled; afterwards they are as before."""
    for name, weight in weights.items():
        scale_adapter(model, name, weight)
    model.base_model.set_adapter(list(weights))
    expected = logits(model, ids)
    for name in weights:
        scale_adapter(model, name, 1.0)
    return expected


def check(model: PeftModel, weights: dict[str, float]) -> None:
    ids = token_ids(2, 9)
    expected = together(model, weights, ids)
    model.add_weighted_adapter(list(weights), list(weights.values()), "sum")
    model.set_adapter("sum")
    model.to(torch.float64)
    assert_close(logits(model, ids), expected, atol=1e-6, rtol=1e-6)
    model.set_adapter("default")
    assert not torch.allclose(logits(model, ids), expected, atol=1e-3)


@pytest.mark.parametrize("kind", FOLDING)
def test_the_sum_is_that_of_the_adapters_together(kind: str) -> None:
    fields: dict[str, Any] = {"intervention": kind, "positions": "f2+l2"}
    model = model_with(fields, {**fields, "r": 2}, fields)
    check(model, {"default": 0.75, "a1": -1.5, "a2": 2.0})
    assert model.peft_config["sum"].interventions is None  # one edit of all the ranks, no groups


@pytest.mark.parametrize("kind", ["direft", "direft_orthogonal"])
def test_an_activation_stays_inside_the_sum_of_direft_kinds(kind: str) -> None:
    fields: dict[str, Any] = {"intervention": kind, "positions": "f2+l2", "act_fn": "tanh"}
    check(model_with(fields, fields), {"default": 0.5, "a1": -1.0})


def test_a_bias_on_what_noreft_subtracts_counts() -> None:
    fields: dict[str, Any] = {"intervention": "noreft", "positions": "f2", "options": {"add_bias": True}}
    check(model_with(fields, fields), {"default": 0.5, "a1": 1.25})


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_untied_ends_of_other_architectures(name: str) -> None:
    fields: dict[str, Any] = {"positions": "f2+l2", "share_weights": False}
    check(model_with(fields, fields, name=name), {"default": 0.5, "a1": -1.0})


def test_adapters_of_different_kinds_positions_layers_and_components() -> None:
    model = model_with(
        {"positions": "f2+l2", "turns": "first"},
        {"positions": "f3", "intervention": "red", "layers_to_transform": [1]},
        {"positions": "all", "intervention": "bias", "component": "mlp_output"},
        {"interventions": [{"positions": "l1"}, {"positions": "f2+l2", "intervention": "direft"}]},
    )
    check(model, {"default": 0.5, "a1": 2.0, "a2": -1.0, "a3": 0.25})
    assert len(model.peft_config["sum"].interventions) == 4  # `default` and the second group of `a3` are one


def test_ranks_that_do_not_fit_the_hidden_size_stand_side_by_side() -> None:
    fields: dict[str, Any] = {"positions": "f2", "r": 20}
    model = model_with(fields, fields)
    check(model, {"default": 0.5, "a1": 1.0})
    assert [group["r"] for group in model.peft_config["sum"].interventions] == [20, 20]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name not in FOLDING], ids=str)
def test_a_kind_that_takes_no_factor_can_be_added_with_one_and_is_refused_with_another(kind: Kind) -> None:
    fields: dict[str, Any] = {"intervention": kind.name, "options": kind.options or None, "positions": "f2"}
    model = model_with(fields, {"positions": "f2"})
    with pytest.raises(MergeError, match=r"scale_adapter"):
        model.add_weighted_adapter(["default", "a1"], [0.5, 1.0], "sum")
    assert "sum" not in model.peft_config
    check(model, {"default": 1.0, "a1": 0.5})


def test_loreft_with_an_activation_takes_no_factor() -> None:
    fields: dict[str, Any] = {"positions": "f2", "act_fn": "relu"}
    model = model_with(fields, fields)
    with pytest.raises(MergeError, match=r"act_fn"):
        model.add_weighted_adapter(["default", "a1"], [1.0, 0.5], "sum")
    check(model, {"default": 1.0, "a1": 1.0})


def test_a_subclass_does_not_inherit_how_its_parent_takes_a_factor() -> None:
    """`gated` is a `loreft` with another formula."""
    assert intervention_class("gated").scaled is intervention_class("loreft").scaled
    with pytest.raises(MergeError):
        model_with({"intervention": "gated", "positions": "f2"}).add_weighted_adapter(["default"], [0.5], "sum")


def test_a_factor_of_scale_adapter_counts() -> None:
    model, ids = model_with({"positions": "f2"}, {"positions": "l2"}), token_ids(2, 9)
    expected = together(model, {"default": 0.5, "a1": 3.0}, ids)
    scale_adapter(model, "a1", 3.0)
    model.add_weighted_adapter(["default", "a1"], [0.5, 1.0], "sum", combination_type="linear")
    model.to(torch.float64).set_adapter("sum")
    assert_close(logits(model, ids), expected, atol=1e-6, rtol=1e-6)


def test_the_sum_is_saved_and_loaded_without_the_others(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"positions": "f2+l2"}
    model, ids = model_with(fields, {**fields, "intervention": "red"}), token_ids(2, 9)
    model.add_weighted_adapter(["default", "a1"], [0.5, -2.0], "sum")
    model.set_adapter("sum")
    expected = logits(model, ids)
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    base = base_model("llama").to(torch.float64)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "sum"), adapter_name="again").eval()
    assert_close(logits(loaded, ids), expected)


def test_the_others_stay_as_they_are_and_the_sum_is_frozen() -> None:
    model, ids = model_with({"positions": "f2"}, {"positions": "l2"}), token_ids(2, 9)
    before = logits(model, ids)
    model.add_weighted_adapter(["default", "a1"], [0.5, -2.0], "sum")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model, ids), before)
    for name, value in model.named_parameters():
        assert value.requires_grad == (".default." in name), name


def test_adapters_loaded_for_inference_stay_frozen(tmp_path: Path) -> None:
    model_with({"positions": "f2"}).save_pretrained(str(tmp_path))
    model = PeftModel.from_pretrained(base_model("llama"), str(tmp_path))
    model.load_adapter(str(tmp_path), "second")
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum")
    assert not any(value.requires_grad for value in model.parameters())


def test_a_half_precision_adapter_is_summed_in_float32() -> None:
    base = base_model("llama").to(torch.bfloat16)
    config = ReftConfig(task_type="CAUSAL_LM", positions="f2", intervention="direft", init_weights=False)
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    model.add_weighted_adapter(["default"], [1 / 3], "sum")
    units = {name: base.model.layers[0].reft.unit((name, 0)) for name in ("default", "sum")}
    assert units["default"].projection.dtype == torch.bfloat16
    assert torch.equal(units["sum"].projection, (1 / 3) * units["default"].projection.float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "nobody"], [1.0, 1.0], "sum"), "no adapter 'nobody'"),
        ((["default", "a1"], [1.0], "sum"), "as many factors"),
        (([], [], "sum"), "as many factors"),
        (("default", [1.0] * 7, "sum"), "as many factors"),
        ((["default", "a1"], [1.0, float("nan")], "sum"), "finite"),
        ((["default", "a1"], [1.0, True], "sum"), "finite"),
        ((["default", "a1"], [1.0, 1.0], "a1"), "already"),
        ((["default", "a1"], [1.0, 1.0], "a/b"), "not allowed"),
        ((["default", "a1"], [1.0, 1.0], "sum", "svd"), "combination_type='svd'"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    model = model_with({"positions": "f2"}, {"positions": "l2"})
    before = list(model.peft_config)
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert list(model.peft_config) == before


def test_adapters_of_different_tasks_are_refused() -> None:
    model = model_with({"positions": "f2"})
    model.add_adapter("a1", ReftConfig(task_type="FEATURE_EXTRACTION", positions="f2"))
    with pytest.raises(ConfigError, match="one task_type"):
        model.add_weighted_adapter(["default", "a1"], [1.0, 1.0], "sum")


def test_modules_saved_in_full_are_refused() -> None:
    model = model_with({"positions": "f2"}, {"positions": "f2", "modules_to_save": ["lm_head"]})
    with pytest.raises(ConfigError, match="modules_to_save"):
        model.add_weighted_adapter(["default", "a1"], [1.0, 1.0], "sum")


def test_subspaces_that_are_off_are_refused() -> None:
    model = model_with({"positions": "f2", "subspaces": {"style": [0, 2], "facts": [2, 4]}}, {"positions": "f2"})
    set_subspaces(model, "default", ["style"])
    with pytest.raises(ConfigError, match="set_subspaces"):
        model.add_weighted_adapter(["default", "a1"], [1.0, 1.0], "sum")
    set_subspaces(model, "default", None)
    check(model, {"default": 0.5, "a1": 1.0})


def test_special_tokens_of_all_adapters_are_edited() -> None:
    def bound(fingerprint: str, **ids: int) -> dict[str, Any]:
        names = "-".join(f"tok(<{name}>)" for name in ids)
        tokens = {f"<{name}>": number for name, number in ids.items()}
        return {"positions": names, "special_tokens": {"tokenizer": f"sha256:{fingerprint * 64}", "ids": tokens}}

    first, second = int(token_ids(2, 9)[0, 0]), int(token_ids(2, 9)[1, 5])
    model = model_with(bound("a", s=first), bound("a", u=second), bound("b", u=second))
    check(model, {"default": 0.5, "a1": -1.0})
    with pytest.raises(ConfigError, match="different tokenizers"):
        model.add_weighted_adapter(["default", "a2"], [1.0, 1.0], "other")


def test_a_mixed_model_adds_adapters_of_one_part() -> None:
    model = mixed_model(strong=True, second=lora(init_lora_weights=False), other=reft(init_weights=False)).eval()
    ids = token_ids(2, 7)
    model.set_adapter(["default", "edit", "other"])
    for name, weight in {"edit": 0.5, "other": -2.0}.items():
        scale_adapter(model, name, weight)
    expected = logits(model, ids)
    for name in ("edit", "other"):
        scale_adapter(model, name, 1.0)
    model.add_weighted_adapter(["edit", "other"], [0.5, -2.0], "sum")
    assert model.active_adapters == ["default", "edit", "other"]
    model.set_adapter(["default", "sum"])
    assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-5)
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter(["both"])
    for arguments in ((["default", "edit"], [1.0, 1.0], "new"), (["edit"], [1.0], "default")):
        with pytest.raises(ConfigError):
            model.add_weighted_adapter(*arguments)


def test_adapters_that_were_added_to_a_base_with_a_name_are_summed_and_the_sum_names_it(tmp_path: Path) -> None:
    base_model("llama").save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = get_peft_model(base, ReftConfig(task_type="CAUSAL_LM", r=2), revision="main")
    model.add_adapter("later", ReftConfig(task_type="CAUSAL_LM", r=2))
    assert model.peft_config["later"].base_model_name_or_path is None  # PEFT leaves it open
    model.add_weighted_adapter(["later", "default"], [0.5, 0.5], "both")
    assert model.peft_config["both"].base_model_name_or_path == str(tmp_path)
    assert model.peft_config["both"].revision == "main"
    model.peft_config["later"].base_model_name_or_path = "another"
    with pytest.raises(ConfigError, match="base_model_name_or_path is 'another' of 'later'"):
        model.add_weighted_adapter(["later", "default"], [0.5, 0.5], "neither")
