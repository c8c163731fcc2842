"""`SkillRouter`: which adapter for which prompt, learnt from the skills' own data, for every row of a batch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor

from peft_reft.hub_format.errors import ConfigError, as_path, shown
from peft_reft.hub_format.manifest import ROUTER_NAME
from peft_reft.hub_format.router_file import NOTE, VERSION, WAYS, read_router
from peft_reft.runtime.row_choice import BASE

from .features import features

__all__ = ["FILE", "RouterReport", "SkillRouter"]

FILE = ROUTER_NAME
SHRINK = 0.1
"""Share of the mean variance in the covariance: skills have fewer prompts than representations have dimensions."""
Prompts: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class RouterReport:
    """How a router does.

    Attributes:
        accuracy: share of prompts that are sent to their own skill's adapter.
        by_skill: the same for each.
        seconds: for each prompt, this process's time.
        prefills: of the base's size, for each prompt, before the answer is begun.
    """

    accuracy: float
    by_skill: Mapping[str, float]
    seconds: float
    prefills: int


@dataclass(frozen=True)
class SkillRouter:
    """Sends a prompt to an adapter by a linear rule over what is seen of it.

    `by="representation"`: the base's hidden states of the prompt, one prefill without adapters. `by="divergence"`: how
    far each adapter would move the next token from the base, a prefill for each adapter and one without. The rule is
    the linear discriminant with one shrunk covariance for all skills: closed form, no steps, no seed. A skill named
    `"__base__"` is sent to the model without adapters.

    Attributes:
        adapters: names, the skills.
        by: what is seen.
        layer: of the representation, counted as in `hidden_states`.
        weight: `[adapters, size]`.
        bias: `[adapters]`.
    """

    adapters: tuple[str, ...]
    by: Literal["representation", "divergence"]
    layer: int
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls,
        model: PeftModel,
        prompts: Mapping[str, Sequence[Prompts]],
        *,
        by: Literal["representation", "divergence"] = "representation",
        layer: int = -1,
    ) -> SkillRouter:
        """Learn from prompts of each skill.

        Args:
            model: with an adapter of each skill's name.
            prompts: skill → batches of prompts, `input_ids` and `attention_mask`.
            by: what is seen of a prompt.
            layer: of the representation.

        Returns:
            The router.

        Raises:
            ConfigError: fewer than two skills, one without prompts or without an adapter, a value that is not allowed.
        """
        if by not in WAYS:
            raise ConfigError(f"by={by!r}", value=by, rule=f"it is one of {', '.join(map(repr, WAYS))}")
        if type(layer) is not int:
            raise ConfigError(f"layer={shown(layer)}", value=layer, rule="an int, as in hidden_states")
        _check_skills(model, prompts)
        adapters = [name for name in prompts if name != BASE]
        seen = {
            skill: torch.cat([features(model, batch, by=by, adapters=adapters, layer=layer) for batch in batches])
            for skill, batches in prompts.items()
        }
        weight, bias = _discriminant(list(seen.values()))
        return cls(tuple(seen), by, layer, weight, bias)

    def scores(self, model: PeftModel, prompts: Prompts) -> Tensor:
        """How well each adapter fits each prompt; a softmax of a row is its probability, by the rule.

        Args:
            model: with the router's adapters.
            prompts: `input_ids` and `attention_mask`, `[batch, seq]`.

        Returns:
            `[batch, adapters]`; the highest is where a prompt goes.

        Raises:
            ConfigError: the model lacks an adapter, or its states have another size.
        """
        _check_model(model)
        adapters = [name for name in self.adapters if name != BASE]
        if missing := [name for name in adapters if name not in model.peft_config]:
            raise ConfigError(
                f"the router sends to {missing[0]!r}, and the model has no such adapter",
                value=missing[0],
                rule=f"it has {', '.join(model.peft_config)}",
                fix="load that adapter, or fit the router again",
            )
        seen = features(model, prompts, by=self.by, adapters=adapters, layer=self.layer)
        if seen.shape[1] != self.weight.shape[1]:
            raise ConfigError(
                f"the router was fitted on {self.weight.shape[1]} numbers a prompt, and this model gives "
                f"{seen.shape[1]}",
                value=seen.shape[1],
                rule="a router belongs to one base model",
                fix="fit it again",
            )
        return seen @ self.weight.mT + self.bias

    def route(self, model: PeftModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[str]:
        """The adapter of each row, as `adapter_names` of `forward` and `generate` takes them.

        Args:
            model: with the router's adapters.
            input_ids: `[batch, seq]`.
            attention_mask: of the same shape; None: no padding.

        Returns:
            A name for each row.

        Raises:
            ConfigError: as in `scores`.
        """
        given = {"input_ids": input_ids}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask
        return [self.adapters[number] for number in self.scores(model, given).argmax(-1).tolist()]

    def measure(self, model: PeftModel, prompts: Mapping[str, Sequence[Prompts]]) -> RouterReport:
        """Accuracy and cost on prompts that it was not fitted on.

        Args:
            model: with the router's adapters.
            prompts: skill → batches of prompts, `input_ids` and `attention_mask` `[batch, seq]`.

        Returns:
            Accuracy, by skill too, and cost.

        Raises:
            ConfigError: a skill that it does not know, or one without prompts.
        """
        _check_batches(prompts)
        by_skill, right, asked = {}, 0, 0
        began = time.process_time()
        for skill, batches in prompts.items():
            if skill not in self.adapters or not batches:
                raise ConfigError(
                    f"skill {skill!r}", value=skill, rule=f"it has prompts, and is one of {self.adapters}"
                )
            sent = [
                name
                for batch in batches
                for name in self.route(model, batch["input_ids"], batch.get("attention_mask"))
            ]
            by_skill[skill] = sent.count(skill) / len(sent)
            right, asked = right + sent.count(skill), asked + len(sent)
        taken = time.process_time() - began
        prefills = 1 if self.by == "representation" else 1 + sum(name != BASE for name in self.adapters)
        return RouterReport(right / max(1, asked), by_skill, taken / max(1, asked), prefills)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Write `skill_router.safetensors` beside the adapters, e.g. into a bundle that was saved there.

        Args:
            save_directory: folder; made if needed.

        Raises:
            ConfigError: what would be written is none that `from_pretrained` reads.
        """
        folder = as_path(save_directory, "save_directory")
        folder.mkdir(parents=True, exist_ok=True)
        told = {"version": VERSION, "adapters": list(self.adapters), "by": self.by, "layer": self.layer}
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        data = save(tensors, metadata={NOTE: json.dumps(told, sort_keys=True)})
        part = Path(folder, f".{FILE}.part")
        try:
            part.write_bytes(data)
            read_router(part)
            part.replace(Path(folder, FILE))
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> SkillRouter:
        """Read the router of a folder.

        Args:
            folder: with a `skill_router.safetensors`.

        Returns:
            The router.

        Raises:
            ConfigError: there is none, or the file is not what `save_pretrained` writes.
        """
        read = read_router(as_path(folder, "folder") / FILE)
        by: Any = read.by  # one of `WAYS`
        return cls(read.adapters, by, read.layer, torch.from_numpy(read.weight), torch.from_numpy(read.bias))


def _discriminant(classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weights and biases of the linear discriminant with equal priors (Hastie et al., ESL, 4.3), float64 inside.

    The covariance within classes is (1 − λ) S + λ · mean variance · I.
    """
    means = torch.stack([rows.double().mean(0) for rows in classes])
    centred = torch.cat([rows.double() - mean for rows, mean in zip(classes, means, strict=True)])
    covariance = centred.mT @ centred / max(1, len(centred) - len(classes))
    spread = covariance.diagonal().mean().clamp(min=1e-12)
    shrunk = (1 - SHRINK) * covariance + SHRINK * spread * torch.eye(len(covariance), dtype=torch.float64)
    weight = torch.linalg.solve(shrunk, means.mT).mT
    bias = -0.5 * (weight * means).sum(-1)
    return weight.float(), bias.float()


def _check_model(model: object) -> None:
    if not isinstance(model, PeftModel):
        raise ConfigError(f"model is a {type(model).__name__}", value=type(model).__name__, rule="it is a PeftModel")


def _check_batches(prompts: Mapping[str, Sequence[Prompts]]) -> None:
    """Refuse what does not map skills to lists of batches."""
    wrong: list[Any] = [prompts]
    if isinstance(prompts, Mapping) and prompts:
        wrong = [given for given in prompts.values() if not _is_list_of_batches(given)]
    if wrong:
        raise ConfigError(
            f"prompts have {shown(wrong[0])}",
            value=type(wrong[0]).__name__,
            rule="they map each skill to a list of batches, dicts with input_ids and attention_mask",
            fix='e.g. {"dates": [{"input_ids": ids, "attention_mask": mask}], ...}',
        )


def _is_list_of_batches(given: object) -> bool:
    return isinstance(given, (list, tuple)) and all(
        isinstance(batch, Mapping) and "input_ids" in batch for batch in given
    )


def _check_skills(model: PeftModel, prompts: Mapping[str, Sequence[Prompts]]) -> None:
    _check_model(model)
    _check_batches(prompts)
    if len(prompts) < 2:
        raise ConfigError(f"prompts of {list(prompts)}", value=list(prompts), rule="there are two skills at least")
    for skill, batches in prompts.items():
        if not batches or (skill != BASE and skill not in model.peft_config):
            raise ConfigError(
                f"skill {skill!r} has no prompts, or the model no adapter of its name",
                value=skill,
                rule=f"the model has {', '.join(model.peft_config)}; {BASE!r} stands for none",
            )
