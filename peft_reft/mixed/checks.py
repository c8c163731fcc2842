"""What the adapters of a mixed model, and of each row of its batches, may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate.state import AcceleratorState
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import ConfigError
from peft_reft.runtime.row_choice import BASE

__all__ = [
    "by_part",
    "check_bare",
    "check_configs",
    "check_deletable",
    "check_one_part",
    "check_part",
    "check_parts",
    "check_same_type",
    "check_trainer",
    "check_weight_model",
]


def by_part(rows: Sequence[Sequence[str]], weights: set[str]) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    """The weight adapter of every row, and its edits."""
    chosen = []
    for row in rows:
        heavy = [name for name in row if name in weights]
        if len(heavy) > 1:
            raise ConfigError(
                f"adapter_names gives one row {', '.join(map(repr, heavy))}",
                value=heavy,
                rule="a row has at most one weight adapter, and any number of ReFT adapters",
            )
        chosen.append(heavy[0] if heavy else BASE)
    return chosen, tuple(tuple(name for name in row if name not in weights) for row in rows)


def check_part(name: str, config: object) -> None:
    """Refuse a config that can be neither part of a mixed model."""
    check_name(name)
    if not isinstance(config, PeftConfig) or config.is_prompt_learning or config.is_adaption_prompt:
        raise ConfigError(
            f"adapter {name!r} has a {type(config).__name__}",
            value=type(config).__name__,
            rule="each part is the config of a weight adapter such as a LoRA, or a ReftConfig",
        )
    if str(getattr(config.peft_type, "value", config.peft_type)) == "ADALORA":
        raise ConfigError(
            f"adapter {name!r} is an ADALORA",
            value="ADALORA",
            rule="its tuner calls the base's forward past the hooks that work out the edits' positions",
            fix="use a LoraConfig, with rank_pattern where layers are to have ranks of their own",
        )
    if str(getattr(config.task_type, "value", config.task_type)) not in ("None", "CAUSAL_LM"):
        raise ConfigError(
            f"adapter {name!r} has task_type={config.task_type!r}",
            value=config.task_type,
            rule="a MixedReftModel is a causal language model",
            fix="leave task_type out, or set it to 'CAUSAL_LM'",
        )
    for field in ("modules_to_save", "trainable_token_indices"):
        if getattr(config, field, None):
            raise ConfigError(
                f"adapter {name!r} sets {field}",
                value=getattr(config, field),
                rule=f"a mixed model has no {field} in this version: its two parts would own the same modules",
            )


def check_configs(configs: Mapping[str, PeftConfig]) -> None:
    """Refuse configs without a weight adapter `default`, or without a ReFT."""
    if not isinstance(configs, Mapping):
        raise ConfigError(f"configs is a {type(configs).__name__}", rule="it is a dict: adapter name → config")
    check_parts(configs)
    edits = [name for name, config in configs.items() if isinstance(config, ReftConfig)]
    if "default" in edits or "default" not in configs or not edits:
        raise ConfigError(
            f"configs={{{', '.join(f'{name!r}: {type(config).__name__}' for name, config in configs.items())}}}",
            value=list(configs),
            rule="'default' is a weight adapter such as a LoRA, which stands at the root where stock PEFT reads it, "
            "and at least one other adapter is a ReFT",
            fix="e.g. {'default': LoraConfig(...), 'edit': ReftConfig(...)}; for a ReFT alone use get_peft_model",
        )


def check_parts(configs: Mapping[str, PeftConfig]) -> None:
    """Refuse configs that can be no part of a mixed model, each by itself."""
    for name, config in configs.items():
        check_part(name, config)


def check_weight_model(model: object) -> None:
    """Refuse what is to become the weight part of a mixed model and cannot: no PEFT model, ReFTs, no `default`."""
    known = model.peft_config if isinstance(model, PeftModel) else {}
    edits = sorted(name for name, config in known.items() if isinstance(config, ReftConfig))
    if not known or edits:
        raise ConfigError(
            f"the model is a {type(model).__name__}" + (f" with the ReFTs {edits}" if edits else ""),
            value=type(model).__name__,
            rule="a mixed model is made from a peft.PeftModel whose adapters are weight adapters such as a LoRA",
            fix="for fresh adapters use MixedReftModel.from_configs, for saved ones MixedReftModel.from_pretrained",
        )
    if "default" not in known:
        raise ConfigError(
            f"the model's adapters are {sorted(known)}",
            value=sorted(known),
            rule="one is named 'default': it stands at the root of a bundle, where stock PEFT reads it",
            fix="load it again under that name, which is PEFT's own",
        )
    if "forward" in vars(model):
        raise ConfigError(
            f"the forward of this {type(model).__name__} was replaced",
            rule="what a trainer or accelerate has wrapped goes on calling the model it was made of",
            fix="take accelerator.unwrap_model(model, keep_fp32_wrapper=False)",
        )
    check_parts(known)


def check_same_type(name: str, config: PeftConfig, peft_type: object) -> None:
    """Refuse a weight adapter of another type than the model's."""
    if config.peft_type != peft_type:
        raise ConfigError(
            f"adapter {name!r} is a {config.peft_type}",
            value=config.peft_type,
            rule=f"the weight adapters of one model are of one type, here {peft_type}",
        )


def check_one_part(adapters: Sequence[str], known: Mapping[str, PeftConfig]) -> list[str]:
    """The ReFTs among adapters, which are to be all of them or none."""
    edits = [name for name in adapters if isinstance(known.get(name), ReftConfig)]
    if edits and len(edits) < len(adapters):
        raise ConfigError(
            f"adapters={list(adapters)!r} are of both parts",
            value=list(adapters),
            rule="a sum is one of weight adapters, or one of ReFT adapters",
        )
    return edits


def check_bare(model: object) -> None:
    """Refuse a base that has adapters of PEFT already."""
    if isinstance(model, PeftModel):
        raise ConfigError(
            f"the base is a {type(model).__name__}",
            rule="a mixed model is made on a bare model",
            fix="pass model.unload(), or model.get_base_model() of a model without adapters",
        )
    if isinstance(model, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "the base holds an adapter already: get_peft_model and trainers put theirs into the model they are given",
            rule="a mixed model is made on a bare model",
            fix="load the base anew, or pass what unload() of the model around it returns",
        )


def check_deletable(name: str) -> None:
    """Refuse to delete what a bundle needs."""
    if name == "default":
        raise ConfigError("the adapter 'default' cannot be deleted", rule="it stands at the root of a saved bundle")


def check_trainer() -> None:
    """Refuse FSDP's sharded checkpoints: of a PEFT model accelerate puts one adapter into them, never a second part.

    Raises:
        ConfigError: accelerate was set up for them in this process.
    """
    plugin = AcceleratorState._shared_state.get("fsdp_plugin")
    kind = str(getattr(getattr(plugin, "state_dict_type", None), "name", ""))
    if kind in ("SHARDED_STATE_DICT", "LOCAL_STATE_DICT"):
        raise ConfigError(
            f"a MixedReftModel is trained under FSDP with fsdp_state_dict_type={kind}",
            value=kind,
            rule="accelerate writes one adapter's shards into such a checkpoint, and resuming would lose the edits",
            fix="set fsdp_state_dict_type: FULL_STATE_DICT",
        )
