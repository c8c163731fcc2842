"""`use_objective`: a stock `DPOTrainer` trains with another loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import DPOTrainer

from peft_reft.continual.former import as_before, evaluating
from peft_reft.hub_format.errors import ConfigError

from .objective import Answers, Objective
from .reps import RepsObjective
from .split import SplitObjective
from .steering import draws_of_step, steered, units_of

__all__ = ["OBJECTIVES", "use_objective"]

OBJECTIVES: dict[str, type[Objective]] = {"reps": RepsObjective, "split": SplitObjective}
"""Name in the literature → objective."""
STOCK: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "use_weighting": False,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
}
"""Settings of `DPOConfig` that shape its own loss, as they are where nobody sets them."""
_OF_LOSS = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")


def use_objective(trainer: Any, objective: Objective) -> None:
    """Let a stock `DPOTrainer` train with another loss of its pairs: `RepsObjective` or `SplitObjective`.

    Data, batches, positions, accumulation, saving and resuming stay the trainer's own. What evaluation reports stays
    too: DPO's loss and rewards, the edit at its own factor. Training logs the loss alone. Factors are drawn from
    `args.seed` and the number of the step, so every accumulated batch, every process and a resumed run has the same.

    Args:
        trainer: a `DPOTrainer`, made, not yet run; its model is a `PeftModel`.
        objective: the loss.

    Raises:
        ConfigError: another trainer, no PEFT model, an objective that is there already, a setting that the objective
            would leave out, or, where factors are drawn, an adapter that a factor does not steer as a whole.
    """
    if not isinstance(objective, Objective):
        raise ConfigError(
            f"objective={objective!r}",
            value=objective,
            rule=f"it is one of {', '.join(kind.__name__ for kind in OBJECTIVES.values())}",
            fix="e.g. use_objective(trainer, SplitObjective())",
        )
    _refuse_trainer(trainer)
    _refuse_left_out(trainer)
    adapter = None
    if objective.drawn_from:
        adapter = _steerable(trainer)
        _refuse_steering(trainer, adapter, objective)
    trainer.compute_loss = _Objective(trainer, objective, adapter)


def _refuse_trainer(trainer: Any) -> None:
    """Refuse another trainer, or one that has no adapter, or an objective already."""
    if not isinstance(trainer, DPOTrainer):
        raise ConfigError(
            f"the trainer is a {type(trainer).__name__}",
            value=type(trainer).__name__,
            rule="an objective compares two answers to one prompt: it needs the batches of TRL's DPOTrainer",
            fix="use trl.DPOTrainer, with rows of prompt, chosen and rejected",
        )
    if isinstance(trainer.compute_loss, _Objective):
        raise ConfigError("the trainer has an objective already", value="objective", rule="a trainer has one")
    if not isinstance(trainer.model, PeftModel):
        raise ConfigError(
            f"the trainer's model is a {type(trainer.model).__name__}",
            value=type(trainer.model).__name__,
            rule="an objective trains an adapter",
            fix="pass peft_config to the trainer, or a PeftModel as its model",
        )


def _refuse_left_out(trainer: Any) -> None:
    """Refuse settings of the trainer's own loss, which the objective takes the place of."""
    for name, stock in STOCK.items():
        if (value := getattr(trainer.args, name, stock)) != stock:
            raise ConfigError(
                f"{name}={value!r}",
                value=value,
                rule="it shapes DPO's own loss, in whose place the objective stands",
                fix=f"leave it at {stock!r}",
            )
    if getattr(trainer, "aux_loss_enabled", False):
        raise ConfigError(
            "the model's routers have a loss of their own",
            value="router_aux_loss_coef",
            rule="an objective leaves it out",
            fix="set router_aux_loss_coef to 0 in the trainer's configuration",
        )


def _steerable(trainer: Any) -> str:
    """The one adapter whose factor an objective draws."""
    model: PeftModel = trainer.model
    names: list[str] = list(model.active_adapters)
    if len(names) != 1:
        raise ConfigError(
            f"the active adapters are {', '.join(map(repr, names)) or 'none'}",
            value=names,
            rule="a factor steers one ReFT adapter",
            fix="train one alone, or use SplitObjective without factors",
        )
    units = units_of(model, names[0])
    own = {id(parameter) for unit in units for parameter in unit.parameters()}
    beside = next((name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own), None)
    if beside is not None:
        raise ConfigError(
            f"{beside} is trained beside the edits",
            value=beside,
            rule="a factor scales a ReFT adapter's edits and nothing else",
            fix="train one alone, or use SplitObjective without factors",
        )
    return names[0]


def _refuse_steering(trainer: Any, adapter: str, objective: Objective) -> None:
    """Refuse to null what has no one direction, and graphs that would take a later factor for their own."""
    if any(one.nulled for one in objective.passes(lambda: 1.0)):
        kinds = sorted({type(unit).__name__ for unit in units_of(trainer.model, adapter)} - {"Bias"})
        if kinds:
            raise ConfigError(
                f"suppression='nulled' with {', '.join(kinds)}",
                value=kinds,
                rule="only a vector, the kind 'bias', has the one direction that is taken out",
                fix="set intervention='bias', or suppression='negated'",
            )
    if trainer.args.torch_compile:
        raise ConfigError(
            "torch_compile=True with factors",
            value=True,
            rule="a compiled graph reads a factor again in the backward pass, when it is another one",
            fix="set torch_compile=False in DPOConfig",
        )


class _Objective:
    """The trainer's `compute_loss`.

    Args:
        trainer: whose loss it is.
        objective: what it computes in training.
        adapter: whose factor is drawn; None where none is.
    """

    def __init__(self, trainer: Any, objective: Objective, adapter: str | None) -> None:
        self.trainer = trainer
        self.plain = trainer.compute_loss
        self.objective = objective
        self.adapter = adapter

    def __call__(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return self.plain(model, inputs, return_outputs, num_items_in_batch)
        inner = self.trainer.accelerator.unwrap_model(model)
        if self.adapter is not None:
            self._check_active(inner)
        before = self._before(inner, inputs) if self.objective.needs_base else None
        draw = draws_of_step(self.objective.drawn_from, self.trainer.args.seed, self.trainer.state.global_step)
        loss: Any = 0.0
        outputs = None
        for one in self.objective.passes(draw):
            run = partial(_forward, model, inputs)
            outputs = run() if self.adapter is None else steered(inner, self.adapter, one, run)
            wanted, unwanted = _answers(outputs, inputs)
            told = before
            if one.swapped:
                wanted, unwanted = unwanted, wanted
                told = None if before is None else (before[1], before[0])
            loss = loss + self.objective.loss(wanted, unwanted, told).mean()
        return (loss, outputs) if return_outputs else loss

    def _check_active(self, inner: PeftModel) -> None:
        """Refuse that another adapter trains by now than the one whose factor is drawn."""
        if (names := list(inner.active_adapters)) != [self.adapter]:
            raise ConfigError(
                f"the active adapters are {', '.join(map(repr, names)) or 'none'}",
                value=names,
                rule=f"the objective was put in for {self.adapter!r}, whose factor it draws",
                fix=f"activate {self.adapter!r}, or make the trainer and its objective after the other is active",
            )

    def _before(self, inner: PeftModel, inputs: Mapping[str, Any]) -> tuple[Answers, Answers]:
        """Chosen and rejected without the edit: as the trainer computed them beforehand, or now."""
        if "ref_chosen_logps" in inputs and "ref" not in inner.peft_config:  # its reference is the base
            chosen, rejected = _counts(inputs)
            return Answers(inputs["ref_chosen_logps"], chosen), Answers(inputs["ref_rejected_logps"], rejected)
        with as_before(inner, None), evaluating(inner):
            return _answers(_forward(inner, inputs), inputs)


def _forward(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Both answers of every pair, by the head that `DPOTrainer` gave the model: no logits of the whole vocabulary."""
    given = {name: value for name, value in inputs.items() if name not in _OF_LOSS}
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    return model(**given, labels=labels, use_cache=False, fused_lm_head=True)


def _answers(outputs: Any, inputs: Mapping[str, Any]) -> tuple[Answers, Answers]:
    """Chosen and rejected: a batch has all chosen answers first."""
    real = inputs["completion_mask"][:, 1:].bool()
    by_token = outputs.log_probs[:, -real.shape[1] :].float()  # a tuned prompt's tokens stand before
    chosen, rejected = torch.where(real, by_token, 0.0).sum(1).chunk(2)
    first, second = _counts(inputs)
    return Answers(chosen, first), Answers(rejected, second)


def _counts(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    first, second = inputs["completion_mask"][:, 1:].sum(1).clamp_min(1).chunk(2)
    return first, second
