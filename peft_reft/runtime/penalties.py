"""What kinds add to the loss of a training forward: their penalties, once per forward, where the model gives a loss.

Parameters' own penalties are computed when the model's forward is over, outside of anything that is recomputed. Those
of edited rows are computed beside the edit, and again where gradient checkpointing runs a block once more; what comes
after the forward is over is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError
from peft_reft.interventions import PenaltyWeight, has_own_penalty, has_penalty, has_row_penalty

from .activity import Activity, LiveUnit
from .frames import CHILD

__all__ = ["Penalties", "penalties_of", "register_reader"]

RowPenalty = Callable[[Tensor, Tensor | None], None]
"""Rows `[n, hidden]`, and which of them are edited (bool `[n]`; None: all) → taken into the loss."""


_READERS: list[Callable[[Any, Tensor], None]] = []


def register_reader(reader: Callable[[Any, Tensor], None]) -> None:
    """Let a room above add the penalties of a forward, `[]`, to what else of an output a loss is made of."""
    _READERS.append(reader)


def penalties_of(activity: Activity, call: Mapping[str, Any], module: nn.Module, model: nn.Module) -> Penalties | None:
    """Collects the penalties of a forward that starts; None where there are none, or nothing is trained by it.

    Args:
        activity: what edits.
        call: arguments of the forward by name.
        module: whose forward it is: the model or a copy of it, or a part, which gives no loss.
        model: the base model.
    """
    replica = bool(getattr(module, "_is_replica", False))
    if not (model.training and torch.is_grad_enabled() and (module is model or replica)):
        return None
    found = [
        (path, _own_copy(module, path, one) if replica else one.module)
        for path, units in activity.units.items()
        for one in units
        if has_penalty(one.module)
    ]
    trained = [(path, unit) for path, unit in found if not _adds_nothing(unit)]
    return Penalties(trained, _share(call, module)) if trained else None


class Penalties:
    """Those of one forward.

    Args:
        units: path of the site, and unit.
        share: of the penalty that belongs to this forward, where a trainer sums the losses of several.
    """

    def __init__(self, units: Sequence[tuple[str, Any]], share: float | Tensor) -> None:
        self.units = units
        self.share = share
        self.of_rows: list[Tensor] = []
        self.over: bool = False

    def of(self, unit: Any) -> RowPenalty | None:
        """Takes the rows that a unit edits; None where its kind does not look at them."""
        if not has_row_penalty(unit) or _adds_nothing(unit):
            return None

        def take(rows: Tensor, edited: Tensor | None) -> None:
            if not self.over and not torch.is_grad_enabled():
                raise _reentrant(unit)
            values = unit.row_penalty(rows)
            if edited is None:
                mean = values.sum() / max(values.numel(), 1)
            else:
                mean = torch.where(edited, values, 0.0).sum() / edited.sum().clamp(min=1)
            if not self.over:
                self.of_rows.append(mean)

        return take

    def added(self, output: Any) -> Any:
        """A model's output with the penalties in its loss; as it is where it has none."""
        self.over = True
        found, self.of_rows = self.of_rows, []
        loss = _loss(output)
        if loss is None:
            return output
        own = [_of_parameters(path, unit) for path, unit in self.units if has_own_penalty(unit)]
        if not own and not found:  # nothing was edited
            return output
        terms = [term.to(loss.device, torch.promote_types(loss.dtype, torch.float32)) for term in (*own, *found)]
        whole = torch.stack(terms).sum()
        for reader in _READERS:
            reader(output, whole)
        return _with_loss(output, (loss + self.share * whole).to(loss.dtype))


def _adds_nothing(unit: Any) -> bool:
    """Whether a unit is frozen, or its penalty has no weight."""
    if isinstance(unit, PenaltyWeight) and unit.unweighted:
        return True
    return not any(parameter.requires_grad for parameter in unit.parameters())


def _own_copy(replica: nn.Module, path: str, one: LiveUnit) -> Any:
    layer: Any = replica.get_submodule(path)._modules[CHILD]
    return layer.unit((one.name, one.key[1]))


def _share(call: Mapping[str, Any], module: nn.Module) -> float | Tensor:
    """The part of all supervised tokens of an optimizer's step that are in this forward.

    Trainers that accumulate gradients give `num_items_in_batch` and sum the losses: each is then a part of one mean,
    over all processes if they say so, and so are penalties. Without it they take the mean themselves. Tokens are
    counted as transformers' `Trainer._get_num_items_in_batch` does.
    """
    total, labels = call.get("num_items_in_batch"), call.get("shift_labels")
    if total is None:
        return 1.0
    if labels is None and isinstance(labels := call.get("labels"), Tensor) and _shifts(module):
        labels = labels[..., 1:]
    if not isinstance(labels, Tensor):
        return 1.0
    return labels.ne(-100).sum() / torch.as_tensor(total, device=labels.device).reshape(-1)[0].clamp(min=1)


def _shifts(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    causal = "ForCausalLM" in str(getattr(module, "loss_type", None))
    return causal and not getattr(config, "is_encoder_decoder", False)


def _of_parameters(path: str, unit: Any) -> Tensor:
    if any(hasattr(held, "device_mesh") or hasattr(held, "ds_id") for held in unit.parameters()):
        raise ConfigError(
            f"intervention={unit.kind!r} of {path} has a penalty, and its parameters are sharded",
            value=unit.kind,
            rule="a penalty is computed of whole parameters, when the model's forward is over",
            fix="train with DDP or ZeRO-2, or set the kind's weight of its penalty to 0",
        )
    value = unit.penalty()
    if not isinstance(value, Tensor) or value.dim():
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"penalty() of intervention {unit.kind!r} gave {shape}",
            value=unit.kind,
            rule="it gives one number, a tensor of shape []",
        )
    return value


def _loss(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, tuple) and output else None
    numeric = isinstance(loss, Tensor) and loss.is_floating_point() and loss.dim() == 0
    return loss if numeric else None


def _with_loss(output: Any, loss: Tensor) -> Any:
    if isinstance(output, tuple):
        return (loss, *output[1:])
    output["loss"] = loss
    return output


def _reentrant(unit: Any) -> ConfigError:
    return ConfigError(
        f"intervention={unit.kind!r} has a penalty of the rows it edits, inside a block that is checkpointed",
        value=unit.kind,
        rule="reentrant checkpointing runs a block without gradients first, so that the penalty would train nothing",
        fix='use activation_checkpointing_kwargs={"use_reentrant": False} (gradient_checkpointing_kwargs as it was '
        'called), or component="block_output"',
    )
