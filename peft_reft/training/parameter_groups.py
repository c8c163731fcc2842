"""Learning rates by tensor, for a stock trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import Intervention

__all__ = ["parameter_groups"]


def parameter_groups(
    model: nn.Module, rates: Mapping[str, float], *, lr: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups of an optimizer: some tensors of the edits at rates of their own, all else that is trained at one.

    A stock trainer takes them as `Trainer(model, args, optimizers=(torch.optim.AdamW(groups), None), …)`, with its own
    schedule of every group's rate, or as `optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups})`. The model
    must be the one that is trained: made by `get_peft_model`, not by the trainer from a `peft_config`. A kind whose
    tensors want rates of their own says so (`prosv`: its `factor`).

    Args:
        model: with ReFT adapters.
        rates: name of a tensor, as in a kind's parameters (`"factor"`), → its learning rate.
        lr: of everything else that is trained, LoRAs and modules saved in full too.
        weight_decay: of everything else; tensors with a rate of their own have none.

    Returns:
        Groups `{"params": [...], "lr": ..., "weight_decay": ...}`, those of `rates` first.

    Raises:
        ConfigError: a name that no trained edit has, a rate that is not a positive number, or nothing to train.
    """
    for name, rate in {**rates, "lr": lr}.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
            raise ConfigError(f"{name}={rate!r} is not a learning rate", value=rate, rule="it is a positive number")
    own: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    taken: set[int] = set()
    known: set[str] = set()
    for unit in model.modules():
        if isinstance(unit, Intervention):
            trained = {name: held for name, held in unit.named_parameters(recurse=False) if held.requires_grad}
            known |= set(trained)
            for name in set(trained) & set(rates):
                own[name].append(trained[name])
                taken.add(id(trained[name]))
    for name, found in own.items():
        if not found:
            raise ConfigError(
                f"rates={{{name!r}: …}}: no trained edit has such a tensor",
                value=name,
                rule=f"they have: {', '.join(sorted(known)) or 'none'}",
            )
    rest = [held for held in model.parameters() if held.requires_grad and id(held) not in taken]
    groups = [{"params": own[name], "lr": rates[name], "weight_decay": 0.0} for name in rates]
    groups += [{"params": rest, "lr": lr, "weight_decay": weight_decay}] if rest else []
    if not groups:
        raise ConfigError("the model has nothing to train", rule="an adapter of it is trained")
    return groups
