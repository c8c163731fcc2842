"""Swaps of pyvene's golden cases, through `interchange`: whole vectors, slices, input and output of any module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file

from peft_reft.causal import Rotation, Site, interchange

from .golden import FULL

SWAPS = {"VanillaIntervention", "RotatedSpaceIntervention", "LowRankRotatedSpaceIntervention"}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())  # type: ignore[no-any-return]


def plain(folder: Path) -> bool:
    """One swap at one fixed position, of everything or of one list of coordinates."""
    told = manifest(folder)
    (first, *more) = told["interventions"]
    at = told["unit_locations"].get("sources->base")
    kind = first["type"] in SWAPS and not more and isinstance(at, int) and not first["subspace_partition"]
    return kind and (told["subspaces"] is None or isinstance(told["subspaces"], list))


CASES = [folder for folder in sorted(FULL.glob("pv_*")) if plain(folder)] if FULL.is_dir() else []


@pytest.mark.skipif(not CASES, reason="the folder shared/goldens beside the checkout is missing")
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_a_swap_gives_the_peers_logits(folder: Path) -> None:
    told, tensors = manifest(folder), load_file(folder / "tensors.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder.parent / "models" / told["model"]).eval()
    (first,) = told["interventions"]
    rotation = tensors.get("eff/0/rotation")
    units = told["subspaces"] or (range(*first["slice"]) if first.get("slice") else None)
    site = Site(
        module=first["module"],
        on_input=first["io"] == "input",
        position=told["unit_locations"]["sources->base"],
        units=units,
        space=None if rotation is None else Rotation(rotation.mT.contiguous()),
    )
    names = ("input_ids", "attention_mask")
    base = {name: tensors[f"in/{name}"] for name in names}
    source = {name: tensors[f"in/src0/{name}"] for name in names}
    logits = interchange(model, base, source, site).logits
    assert (logits - tensors["out/logits"]).abs().max() <= 2e-5
    assert (model(**base).logits - tensors["out/logits"]).abs().max() > 1e-3
