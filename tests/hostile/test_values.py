"""Values and modules that only the model can judge: what its dtype holds, full rank, modules saved in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from contract.tiny import base_model, reft_model
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.rank import has_full_rank, is_orthonormal

from . import folders as f


def refused(folder: Path, code: str) -> None:
    with pytest.raises(ReftError) as caught:
        PeftModel.from_pretrained(base_model("llama"), str(folder))
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize("value", [0.0, 1e-200, 1e-40, 1e-20, 1e20])
def test_a_rotation_without_full_rank_in_the_models_dtype_is_refused(tmp_path: Path, value: float) -> None:
    """In float64 these rows are orthogonal; in float32 they, or their squares, are zero or infinite."""
    folder = f.good(tmp_path / "adapter")
    f.each(".rotation", lambda t: torch.eye(*t.shape, dtype=torch.float64) * value)(folder)
    refused(folder, "load.rank")


def test_a_rotation_with_equal_rows_is_refused(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter")
    f.each(".rotation", lambda t: t[:1].expand_as(t))(folder)
    refused(folder, "load.rank")


def test_a_rotation_in_float64_loads_where_float32_holds_it(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter")
    f.each(".rotation", lambda t: t.double())(folder)
    PeftModel.from_pretrained(base_model("llama"), str(folder))


def test_a_value_that_a_half_precision_adapter_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter")
    f.each(".bias", lambda t: t.fill_(1e30))(folder)
    PeftModel.from_pretrained(base_model("llama"), str(folder))
    with pytest.raises(ReftError) as caught:
        PeftModel.from_pretrained(base_model("llama").half(), str(folder), autocast_adapter_dtype=False)
    assert caught.value.code == "load.finite"


SAVED = "base_model.model.lm_head.weight"


def saved_head(folder: Path) -> Path:
    return f.good(folder, modules_to_save=["lm_head"])


def test_a_head_saved_beside_the_edits_loads(tmp_path: Path) -> None:
    PeftModel.from_pretrained(base_model("llama"), str(saved_head(tmp_path / "adapter")))


def wrong(held: dict[str, torch.Tensor]) -> None:
    held[SAVED] = torch.ones(3, 32)


def renamed(held: dict[str, torch.Tensor]) -> None:
    held["base_model.model.lm_head.bias"] = held.pop(SAVED)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (wrong, "load.fit"),
        (renamed, "load.fit"),
        (lambda held: held.pop(SAVED), "tensors.missing"),
        (lambda held: held[SAVED].fill_(float("nan")), "tensors.finite"),
    ],
)
def test_a_saved_head_that_does_not_fit_is_refused_in_our_words(tmp_path: Path, change: Any, code: str) -> None:
    folder = saved_head(tmp_path / "adapter")
    f.tensors(change)(folder)
    refused(folder, code)


def test_an_embedding_of_another_size_is_refused_in_our_words(tmp_path: Path) -> None:
    """PEFT saves embeddings of a grown vocabulary without a word in the config."""
    folder = f.good(tmp_path / "adapter")
    f.tensors(lambda held: held.update({"base_model.model.model.embed_tokens.weight": torch.ones(3, 32)}))(folder)
    refused(folder, "load.fit")


def test_transformers_load_adapter_refuses_a_head_without_tensors(tmp_path: Path) -> None:
    folder = saved_head(tmp_path / "adapter")
    f.tensors(lambda held: held.pop(SAVED))(folder)
    with pytest.raises(ReftError) as caught:
        base_model("llama").load_adapter(str(folder))
    assert caught.value.code == "load.fit"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"layers_to_transform": [1, -2]}, "site.layer"),
        ({"layers_to_transform": [9]}, "site.layer"),
        ({"layers_pattern": "nowhere"}, "site.stack"),
        ({"init_weights": True, "act_fn": "relu"}, "config.value"),
    ],
)
def test_a_config_that_the_model_or_kind_cannot_follow_is_refused(
    tmp_path: Path, fields: dict[str, Any], code: str
) -> None:
    folder = f.good(tmp_path / "adapter")
    f.reft(**fields)(folder)
    refused(folder, code)
    with pytest.raises(ReftError):
        base_model("llama").load_adapter(str(folder))


def test_a_site_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter")

    def moved(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if ".layers.0." in name]:
            held[name.replace(".layers.0.", ".blocks.0.")] = held.pop(name)

    f.tensors(moved)(folder)
    refused(folder, "load.fit")


OPTIONS: dict[str, Any] = {"variable": "S1", "values": [0, 1, 2], "value": 0}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"values": list(range(65_536))}, "tensors.unfit"),
        ({"values": [0, 1]}, "tensors.unfit"),
        ({"values": [1, 2, 3]}, "config.value"),
        ({"values": [0, 1, [2]]}, "config.value"),
        ({"value": 3}, "config.value"),
        ({"variable": None}, "config.value"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_values_that_do_not_fit_their_points_are_refused(tmp_path: Path, options: dict[str, Any], code: str) -> None:
    folder = f.good(tmp_path / "adapter", intervention="rotated_interchange", options=OPTIONS)
    f.reft(options={**OPTIONS, **options})(folder)
    refused(folder, code)


def test_points_of_another_number_are_refused(tmp_path: Path) -> None:
    folder = f.good(tmp_path / "adapter", intervention="rotated_interchange", options=OPTIONS)
    f.each(".points", lambda t: t[:2])(folder)
    refused(folder, "tensors.unfit")


def test_a_module_to_save_that_the_model_lacks_is_refused_before_it_is_trained() -> None:
    with pytest.raises(ReftError, match="no module 'lm_haed'"):
        reft_model("llama", modules_to_save=["lm_haed"])
    reft_model("llama", modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("modules", "code"),
    [(["norm"], "tensors.missing"), (["default"], "config.envelope"), ("lm_head", "config.envelope")],
)
def test_what_no_reader_would_take_is_not_written(tmp_path: Path, modules: Any, code: str) -> None:
    model = reft_model("llama", modules_to_save=["lm_head"])
    model.peft_config["default"].modules_to_save = modules
    with pytest.raises((ReftError, KeyError, AttributeError)) as caught:
        model.save_pretrained(str(tmp_path))
    assert getattr(caught.value, "code", None) == code, caught.value


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e10])
@pytest.mark.parametrize(("condition", "full"), [(1e3, True), (1e5, True), (9e5, True), (1.2e6, False), (1e8, False)])
def test_the_bound_of_the_condition_is_where_it_is_said_to_be(condition: float, full: bool, scale: float) -> None:
    """Orthogonal rows of two lengths, whose condition is their quotient."""
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 4)))[0].T * scale
    rows[3] /= condition
    assert has_full_rank(rows) is full


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_or_empty_has_no_rank_and_is_no_basis(value: float) -> None:
    for rows in (np.full((2, 4), value), np.zeros((0, 4))):
        with np.errstate(invalid="ignore"):
            assert not has_full_rank(rows)
            assert not is_orthonormal(rows)
