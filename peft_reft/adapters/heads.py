"""From all heads to some: the second stage of LoFiT, and an adapter of the heads alone that JoLA left open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import ConfigError, SiteError
from peft_reft.hub_format.groups import ALL_HEADS, MAX_GROUPS, SiteGroup
from peft_reft.interventions.heads import Heads
from peft_reft.layer import ReftLayer
from peft_reft.lookup import layers_of
from peft_reft.sites import Site, head_count_of

__all__ = ["drop_closed_heads", "refuse_head_count", "select_heads"]

SHARED = ("task_type", "base_model_name_or_path", "revision", "special_tokens")
FIELDS = ("turns", "share_weights", "dropout")


@dataclass(frozen=True)
class HeadsAt:
    """A unit of the kind `heads`: its layer, its block's number, and its place among its group's units."""

    layer: ReftLayer
    block: int
    offset: int
    unit: Heads

    @torch.no_grad()
    def parts(self) -> tuple[Tensor, Tensor]:
        """g₂ A and g₁ v as they are in evaluation, `[heads, size]` each."""
        training = self.unit.training
        try:
            self.unit.eval()
            found = [
                self.unit.gate(gate, held)[:, None] * self.unit.by_head(held)
                for gate, held in (("scale_gate", self.unit.scale), ("shift_gate", self.unit.shift))
            ]
        finally:
            self.unit.train(training)
        return found[0].float(), found[1].float()


def select_heads(model: Any, count: int, *, adapter_name: str = "default", **fields: Any) -> ReftConfig:
    """The config of LoFiT's second stage (arXiv 2406.01563): a vector at each of the heads with the largest ‖A‖.

    Train the first stage with `component="heads"`, `intervention="heads"`, then train this config on the base alone.

    Args:
        model: with the adapter of the first stage.
        count: how many heads, over all layers; LoFiT takes about 3 % of them.
        adapter_name: of that adapter.
        fields: of the new config that differ: `intervention` (`"bias"`, LoFiT's), `positions`, and so on.

    Returns:
        The config, one group for each head.

    Raises:
        ConfigError: no such adapter, or of another kind or component; a count beyond the number of heads.
    """
    group, found = _heads_of(model, adapter_name)
    norms: dict[tuple[int, int], float] = {}
    for one in found:
        for head, square in enumerate(one.parts()[0].square().sum(-1).tolist()):
            norms[one.block, head] = norms.get((one.block, head), 0.0) + square
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(norms):
        raise ConfigError(
            f"count={count!r}", value=count, rule=f"an integer from 1 to {len(norms)}, that of the heads"
        )
    chosen = sorted(norms, key=lambda place: (-norms[place], place))[:count]
    given = {
        "intervention": "bias",
        **_shared(model, adapter_name, group),
        **fields,
    }
    return ReftConfig(**given, interventions=_groups(chosen))


def drop_closed_heads(model: Any, adapter_name: str, new_name: str) -> None:
    """Add an adapter that edits as another of the kind `heads` does in evaluation, and holds its open heads alone.

    A head is open where g₂ A or g₁ v is not 0. Each becomes a `red` at `head_output[n]`, s = 1 + g₂ A and v = g₁ v:
    what is then saved of `new_name` has no tensor of a closed head.

    Args:
        model: a PEFT model with the adapter.
        adapter_name: of it; it stays as it is.
        new_name: of the new one, which is added as `add_adapter` does.

    Raises:
        ConfigError: no such adapter, or of another kind or component; no head is open.
    """
    group, found = _heads_of(model, adapter_name)
    parts = {(one.block, one.offset): one.parts() for one in found}
    held = {
        (block, head)
        for (block, _), (scale, shift) in parts.items()
        for head in range(len(scale))
        if bool(scale[head].any() | shift[head].any())
    }
    if not held:
        raise ConfigError(
            f"adapter {adapter_name!r} has no open head", value=adapter_name, rule="an adapter edits something"
        )
    shared = _shared(model, adapter_name, group)
    config = ReftConfig(**{**shared, "dropout": 0.0}, intervention="red", interventions=_groups(held))
    model.add_adapter(new_name, config)
    order = sorted({head for _, head in held})
    for one in {at.block: at for at in found}.values():
        for number, head in enumerate(order):
            if (one.block, head) in held:
                _fill(one, new_name, number * group.units, head, parts)


@torch.no_grad()
def _fill(
    one: HeadsAt, name: str, first: int, head: int, parts: Mapping[tuple[int, int], tuple[Tensor, Tensor]]
) -> None:
    for (block, offset), (scale, shift) in parts.items():
        if block == one.block:
            unit: Any = one.layer.unit((name, first + offset))
            unit.scale.copy_(1 + scale[head])
            unit.shift.copy_(shift[head])


def refuse_head_count(model: nn.Module, sites: Sequence[Site], groups: tuple[SiteGroup, ...]) -> None:
    """Refuse an option `heads` that is not the number of attention heads, where the component is all of them.

    Raises:
        SiteError: see above.
    """
    for site in sites:
        for number in site.groups:
            group = groups[number]
            if group.component != ALL_HEADS or group.intervention != Heads.kind:
                continue
            stated, own = (group.options or {}).get("heads", 1), head_count_of(model, site)
            if stated != own:
                raise SiteError(
                    f"options={{'heads': {stated}}}: {site.path} takes {own} heads",
                    code="site.component",
                    value=stated,
                    rule="the option is the number of attention heads of the layer",
                    fix=f"set options={{'heads': {own}, …}}; layers with another number are another group",
                )


def _heads_of(model: nn.Module, name: str) -> tuple[SiteGroup, list[HeadsAt]]:
    layers = layers_of(model, name)
    groups = layers[0].state.views[name].groups
    fits = len(groups) == 1 and groups[0].intervention == Heads.kind and groups[0].component == ALL_HEADS
    if not fits or len({layer.stack for layer in layers}) > 1:
        raise ConfigError(
            f"adapter {name!r} is not of the kind 'heads' at the component 'heads' of one stack",
            value=name,
            rule="its one group says intervention='heads', component='heads', and layers_pattern where a model has "
            "several stacks",
        )
    return groups[0], list(_units(layers, name))


def _units(layers: list[ReftLayer], name: str) -> Iterator[HeadsAt]:
    for layer in layers:
        block = int(layer.path.removeprefix(f"{layer.stack}.").partition(".")[0])
        for offset, number in enumerate(layer.units[name]):
            unit: Any = layer.unit((name, number))
            yield HeadsAt(layer, block, offset, unit)


def _groups(places: Any) -> list[dict[str, Any]]:
    """A group for each head number, of the layers in which it is one of the places."""
    by_head: dict[int, list[int]] = {}
    for block, head in sorted(places):
        by_head.setdefault(head, []).append(block)
    if len(by_head) > MAX_GROUPS:
        raise ConfigError(
            f"{len(by_head)} different heads stay",
            value=len(by_head),
            rule=f"an adapter has at most {MAX_GROUPS} groups",
        )
    return [
        {"component": f"head_output[{head}]", "layers_to_transform": blocks}
        for head, blocks in sorted(by_head.items())
    ]


def _shared(model: Any, name: str, group: SiteGroup) -> dict[str, Any]:
    config, pattern = model.peft_config[name], group.layers_pattern
    own = {field: getattr(group, field) for field in FIELDS}
    own |= {
        "positions": str(group.positions),
        "layers_pattern": list(pattern) if isinstance(pattern, tuple) else pattern,
    }
    return {**{field: getattr(config, field) for field in SHARED}, **own}
