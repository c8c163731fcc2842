"""How large the edits of a folder are, without its base: by layer and term, from the tensors alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft_reft.hub_format.kinds import COMPLEMENT
from peft_reft.hub_format.listing import CheckedMember
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.reader import edit_of, unit_signatures
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.interventions import Intervention, intervention_class

__all__ = ["MEANING", "EditSize", "edit_sizes", "unit_names"]

DRAWS = 1024
"""Vectors h of the mean where a kind has no closed form."""
MEANING = (
    "size: root mean square of |h′ − h| over h with independent standard normal entries, √(dependent² + constant²)",
    "dependent, constant: of an edit h′ = h + Ah + c, ‖A‖ (Frobenius) and |c|; LoReFT: A = RᵀW − RᵀR, c = Rᵀb",
    "largest: A's largest singular value",
    f"other kinds: the root mean square of |Δ(h) − Δ(0)| over {DRAWS} such h, and |Δ(0)|, with Δ(h) = h′ − h",
    "a base's own h is longer or shorter: compare layers of one adapter, or adapters of one base",
)
"""What the figures are, line by line."""


@dataclass(frozen=True)
class EditSize:
    """One intervention.

    Attributes:
        site: dotted name of its module, without the model's own prefix.
        layer: the block's number; None where the name has none.
        term: what it edits, a term or all tied terms, with the group's number where there are several.
        size, dependent, constant, largest: see `MEANING`; largest is None where there is no A.
        hidden: numbers of h.
    """

    site: str
    layer: int | None
    term: str
    size: float
    dependent: float
    constant: float
    largest: float | None
    hidden: int

    def to_json(self) -> dict[str, Any]:
        """By the names of the attributes."""
        return asdict(self)


def edit_sizes(root: Path, checked: CheckedMember) -> list[EditSize]:
    """The size of every intervention of one checked ReFT, by site, then term.

    Raises:
        ConfigError: a kind that no class is registered for.
    """
    from safetensors import safe_open

    groups, names = unit_signatures(checked.groups), unit_names(checked.groups)
    places: dict[tuple[str, int], dict[str, str]] = {}
    for name in checked.tensors:
        if (found := edit_of(name)) is not None:
            site, unit, tensor = found
            places.setdefault((site, unit), {})[tensor] = name
    sizes = []
    with safe_open(root / checked.member.folder / WEIGHTS_NAME, "pt") as file:
        for site, unit in sorted(places, key=lambda place: (_numbers(place[0]), place[1])):
            tensors = {tensor: file.get_tensor(name).float() for tensor, name in places[site, unit].items()}
            sizes.append(_size(site, names[unit], _built(groups[unit], tensors)))
    return sizes


def unit_names(groups: tuple[SiteGroup, ...]) -> list[str]:
    """What each unit of a site edits, in their order."""
    found = []
    for number, group in enumerate(groups):
        terms = [str(group.positions)] if group.share_weights else [str(term) for term in group.positions.terms]
        where = f"group {number}, {group.component}, " if len(groups) > 1 else ""
        found += [where + term for term in terms]
    return found


def _built(group: SiteGroup, tensors: Mapping[str, Any]) -> Intervention:
    """The intervention with its tensors, in evaluation mode."""
    import torch

    kind = intervention_class(group.intervention)
    width = next(
        tensors[name].shape[words.index("hidden")]
        for name, words in kind.tensors.items()
        if "hidden" in words and name in tensors
    )
    made = kind(
        width,
        group.r,
        act_fn=group.act_fn,
        init_weights=False,
        options=group.options,
        complement=tensors.get(COMPLEMENT),
    )
    with torch.no_grad():
        for name, tensor in made.named_tensors().items():
            tensor.copy_(tensors[name])
    return made.eval()


def _size(site: str, term: str, unit: Intervention) -> EditSize:
    import torch

    with torch.no_grad():
        constant, dependent, largest = _affine(unit) or _sampled(unit)
    number = re.search(r"(^|\.)(\d+)(\.|$)", site)
    return EditSize(
        site,
        None if number is None else int(number[2]),
        term,
        math.hypot(dependent, constant),
        dependent,
        constant,
        largest,
        unit.hidden_size,
    )


def _affine(unit: Intervention) -> tuple[float, float, float] | None:
    """|c|, ‖A‖ and A's largest singular value of Δ(h) = Pᵀ(Mh + c₀), by the r × r matrices alone."""
    import torch

    from peft_reft.interventions import orthonormal_rows

    if unit.act_fn is not None or "affine" not in vars(type(unit)):
        return None
    given = [orthonormal_rows(unit.raw_rotation())] if unit.orthonormal else []
    tensors = {name: tensor for name, tensor in unit.named_tensors().items() if name not in unit.orthonormal}
    found = unit.affine(tensors, *given)
    source, bias, projection = (part.double() for part in found)
    values = torch.linalg.svdvals(torch.linalg.qr(projection.mT).R @ torch.linalg.qr(source.mT).R.mT)
    return float((bias @ projection).norm()), float(values.norm()), float(values[0])


def _sampled(unit: Intervention) -> tuple[float, float, None]:
    """|Δ(0)| and the root mean square of |Δ(h) − Δ(0)|; each h is a sequence of one token."""
    import torch

    hidden = torch.randn(DRAWS, 1, unit.hidden_size, generator=torch.Generator().manual_seed(0))
    at_zero = unit(torch.zeros(1, 1, unit.hidden_size))
    moved = (unit(hidden) - at_zero).squeeze(1)
    return float(at_zero.norm()), float(moved.pow(2).sum(-1).mean().sqrt()), None


def _numbers(site: str) -> list[tuple[int, int, str]]:
    """A name's parts, numbers by value: layer 10 stands after layer 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in site.split(".")]
