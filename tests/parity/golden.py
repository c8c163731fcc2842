"""A golden case of a peer: its folder, its recorded tensors, and the same adapter through our importer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from peft_reft import convert
from peft_reft.hub_format.importers.pyreft import KINDS

TESTS = Path(__file__).parents[1]
FULL = TESTS.parents[1] / "shared" / "goldens"
COPIED = TESTS / "data" / "goldens"
ADAPTERS_KINDS = {"LoReftConfig": "loreft", "NoReftConfig": "noreft", "DiReftConfig": "direft"}
OUR_NAMES = {
    "learned_source": "bias",
    "learned_source.weight": "weight",
    "learned_source.bias": "bias",
    "weight": "weight",
    "bias": "bias",
    "proj_layer.weight": "projection",
    "proj_layer.bias": "projection_bias",
    "projection.weight": "projection",
}


def case_names(root: Path, prefix: str) -> list[str]:
    """Cases of a peer that were run, not tables of positions."""
    found = sorted(root.glob(f"{prefix}*")) if root.is_dir() else []
    return [path.name for path in found if (path / "checkpoint").is_dir()]


def _named(columns: Tensor) -> list[list[int]]:
    return [[column for column in row if column >= 0] for row in columns.tolist()]


@dataclass(frozen=True)
class Recorded:
    """One case folder: what a peer was told, and what it computed."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())  # type: ignore[no-any-return]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "tensors.safetensors")


class Case(Recorded):
    """A case of pyreft or adapters."""

    @property
    def from_pyreft(self) -> bool:
        return self.folder.name.startswith("pr_")

    @property
    def base_path(self) -> Path:
        return self.folder.parent / "models" / self.manifest["model"]

    @property
    def kind(self) -> str:
        """Our name: by the manifest, which knows what an adapters folder does not say."""
        if self.from_pyreft:
            return KINDS[self.manifest["intervention"]]
        kind = ADAPTERS_KINDS[self.manifest["intervention"]]
        orthogonal = self.manifest["config"]["orthogonality"]
        return {("direft", True): "direft_orthogonal", ("loreft", False): "noreft"}.get((kind, orthogonal), kind)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.manifest.get("dtype", "torch.float32").removeprefix("torch."))  # type: ignore[no-any-return]

    def converted(self, target: Path) -> Path:
        """The checkpoint in our format."""
        if not self.from_pyreft:
            return convert(self.folder / "checkpoint", target, base_model=self.base_path, intervention=self.kind)
        manual = "generated" if self.manifest.get("generate") else "f1"  # manual cases store no spec
        return convert(
            self.folder / "checkpoint",
            target,
            base_model=self.base_path,
            positions=self.manifest["positions"] or manual,
            share_weights=self.manifest["share_weights"],
            act_fn=self.manifest["act_fn"],
        )

    def model(self, target: Path) -> PeftModel:
        """The base with the adapter through the public loader, in eval mode, trainable."""
        config = transformers.AutoConfig.from_pretrained(self.base_path)
        cls = getattr(transformers, config.architectures[0])
        base = cls.from_pretrained(self.base_path, dtype=self.dtype)
        if getattr(base, "generation_config", None) is not None:
            base.generation_config.eos_token_id = None
        return PeftModel.from_pretrained(base, self.converted(target), is_trainable=True).eval()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the peer's model was called with."""
        return {name[3:]: tensor for name, tensor in self.tensors.items() if name.startswith("in/")}

    @cached_property
    def terms(self) -> list[Tensor]:
        """For each term the columns it edits, `[batch, k]`; columns of padding, which the peer edits too, are −1."""
        if self.from_pyreft:
            numbers = [self.place(i)[1] for i in range(len(self.manifest["interventions"]))]
            found = [self.tensors["loc/base"][numbers.index(term)] for term in sorted(set(numbers))]
        else:
            found = [self.tensors[f"loc/{side}"] for side in ("prefix", "suffix") if f"loc/{side}" in self.tensors]
            if self.manifest["config"]["tied_weights"] and len(found) == 2:
                found = [torch.cat(found, 1)]
        real = self.tensors["in/attention_mask"].bool()
        return [torch.where(real.gather(1, columns.clamp(min=0)) & (columns >= 0), columns, -1) for columns in found]

    @property
    def locations(self) -> Tensor:
        """`[batch, terms, k]` as our forward takes them."""
        width = max(columns.shape[1] for columns in self.terms)
        padded = [torch.nn.functional.pad(c, (0, width - c.shape[1]), value=-1) for c in self.terms]
        return torch.stack(padded, 1)

    @property
    def repeats(self) -> bool:
        """Whether one intervention names a token twice, other than the last one, on which no loss depends."""
        last = self.tensors["in/attention_mask"].shape[1] - 1
        rows = [row for columns in self.terms for row in _named(columns)]
        return any(row.count(column) > 1 and column != last for row in rows for column in row)

    @property
    def overlaps(self) -> bool:
        """Whether two interventions edit one token, which peers do in ways of their own."""
        if len(self.terms) < 2:
            return False
        first, second = map(_named, self.terms)
        return any(set(a) & set(b) for a, b in zip(first, second, strict=True))

    def place(self, index: int) -> tuple[int, int]:
        """(layer, unit) of the peer's parameter set p/<index>."""
        if self.from_pyreft:
            entry = next(e for e in self.manifest["interventions"] if e["param_index"] == index)
            return entry["layer"], int(entry["key"].rpartition("#")[2])
        entry = self.manifest["units"][index]
        sides = self.manifest["config"]
        single = not (sides["prefix_positions"] and sides["suffix_positions"])
        return entry["layer"], 0 if single or sides["tied_weights"] else entry["unit"]

    def recorded(self, prefix: str) -> dict[tuple[int, str], Tensor]:
        """(index, our name) → the peer's recorded tensor, for those that are W, b or P."""
        found = {}
        for name, tensor in self.tensors.items():
            match = re.fullmatch(rf"{prefix}/(\d+)/(.+)", name)
            if match and match[2] in OUR_NAMES:
                found[int(match[1]), OUR_NAMES[match[2]]] = tensor
        return found

    def parameter(self, model: PeftModel, index: int, name: str) -> torch.nn.Parameter:
        """Our parameter for the peer's p/<index>/<name>."""
        layer, unit = self.place(index)
        ending = rf"\.{layer}(\.\w+)*\.reft\.reft_{unit}\.default\.{name}$"
        (found,) = [p for key, p in model.named_parameters() if re.search(ending, key)]
        return found
