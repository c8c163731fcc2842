"""The frozen copy of a policy that preference training compares with, of a mixed model: its LoRA and its edits.

TRL's trainers make it by `model.add_adapter("ref", model.peft_config["default"])`, copy the parameters named
`.default.` into it, and change between the two by `set_adapter("ref")` and `set_adapter(model.active_adapter)`
(trl/trainer/dpo_trainer.py; trl/trainer/utils.py, `use_adapter`). Each of these names a weight adapter alone; here the
edits that were active go with it, there and back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from peft import PeftConfig
from torch import nn

from peft_reft.adapters.names import check_known
from peft_reft.config import ReftConfig
from peft_reft.hub_format.errors import ConfigError
from peft_reft.model import ReftModel
from peft_reft.runtime import state_of

from .parts import TwoParts

__all__ = ["References", "add_reference", "restore"]


@dataclass
class References:
    """What belongs to the references of one model.

    Attributes:
        members: weight adapter → it and the copies of the edits that go with it.
        before: what was active, and which parameters were trained, when a reference was switched on.
    """

    members: dict[str, list[str]] = field(default_factory=dict)
    before: tuple[list[str], frozenset[str]] | None = None

    @property
    def names(self) -> frozenset[str]:
        """Every adapter that is a copy: a bundle leaves them out."""
        return frozenset(name for members in self.members.values() for name in members)

    def enter(self, model: TwoParts, name: str) -> list[str]:
        """The adapters of a reference; what is active now comes back by `leave`."""
        if self.before is None:
            trained = frozenset(key for key, value in model.named_parameters() if value.requires_grad)
            self.before = model.active_adapters, trained
        return self.members[name]

    def leave(self) -> tuple[list[str], frozenset[str]] | None:
        """What was active before the reference was switched on, once."""
        before, self.before = self.before, None
        return before

    def chosen(
        self, model: TwoParts, asked: str | Sequence[str]
    ) -> tuple[list[str], tuple[list[str], frozenset[str]] | None]:
        """What `set_adapter(asked)` is to make active, and what it is to restore after a reference."""
        if not isinstance(asked, (str, list, tuple)):
            raise ConfigError(f"adapter_name={asked!r} is not allowed", rule="it is a name or a list of names")
        check_known([name for name in asked if not isinstance(name, str)], model.peft_config)
        names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
        if isinstance(asked, str) and asked in self.members:
            return self.enter(model, asked), None
        before = self.leave()
        if before is not None and asked == model.active_adapter:
            return before[0], before
        return names, None

    def drop(self, name: str) -> list[str]:
        """Forget a reference, or a copy that went with one; the copies of edits that have lost their reference."""
        for members in self.members.values():
            if name in members[1:]:
                members.remove(name)
        return [member for member in self.members.pop(name, []) if member != name]


def add_reference(model: TwoParts, name: str, config: PeftConfig, low_cpu_mem_usage: bool) -> list[str]:
    """Add a weight adapter and, with it, a copy of every edit that is active now.

    Args:
        model: the policy.
        name: of the new weight adapter, whose parameters the caller copies.
        config: of the policy's weight adapter, the very object.
        low_cpu_mem_usage: as in `add_adapter`.

    Returns:
        The new adapters, the weight adapter first.

    Raises:
        ConfigError: several weight adapters are active: the caller copies one.
    """
    known = model.peft_config
    weights = [other for other in model.active_adapters if not isinstance(known[other], ReftConfig)]
    if len(weights) != 1 or known[weights[0]] is not config:
        raise ConfigError(
            f"a reference {name!r} is made of one weight adapter, and active are {weights}",
            value=weights,
            rule="the caller copies the adapter whose config it gives, so the policy must have that one alone",
            fix="activate it alone beside the edits with set_adapter",
        )
    copies = {edit: f"{name}-{edit}" for edit in model.active_adapters if edit not in weights}
    if taken := sorted(set(copies.values()) & set(known)):
        raise ConfigError(
            f"there is an adapter {taken[0]!r} already",
            value=taken[0],
            rule=f"the copies of the edits that go with {name!r} take this name",
            fix="delete it first",
        )
    model.add_weights(name, config, low_cpu_mem_usage)
    for edit, twin in copies.items():
        model.add_edit(twin, copy.deepcopy(known[edit]), low_cpu_mem_usage=False)
        _copy_edit(model.edits, edit, twin)
    return [name, *copies.values()]


@torch.no_grad()
def _copy_edit(edits: ReftModel, source: str, target: str) -> None:
    state = state_of(edits.model)
    for layer in () if state is None else state.layers.values():
        layer.follow(target, source)
        for number in layer.units.get(source, ()):
            values = layer.unit((source, number)).state_dict(keep_vars=True)
            for key, place in layer.unit((target, number)).state_dict(keep_vars=True).items():
                place.data = place.data.to(values[key].dtype)
                place.copy_(values[key])


def restore(model: nn.Module, trained: Iterable[str]) -> None:
    """Train exactly these parameters again."""
    wanted = set(trained)
    for key, value in model.named_parameters():
        if value.requires_grad != (key in wanted):
            value.requires_grad_(key in wanted)
