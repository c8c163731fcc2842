"""What PEFT's test files are given of ours: file → (name in it → what stands there instead)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from peft import PeftModel, get_peft_model

from peft_reft import ReftConfig

from .blocks import Blocks, BlocksWrapper

__all__ = ["CHOSEN", "PHRASES", "TABLES"]

Row = tuple[type[ReftConfig], dict[str, Any]]

FIELDS: list[dict[str, Any]] = [
    {},
    {"positions": "f1+l1", "share_weights": False, "r": 2, "intervention": "direft"},
    {"positions": "f2", "intervention": "noreft", "layers_to_transform": [-1]},
    {
        "interventions": [
            {"positions": "all", "component": "mlp_output"},
            {"positions": "f1", "intervention": "bias", "layers_to_transform": 0},
        ]
    },
]
"""Four configs: the default, untied ends, an unrotated kind on one layer, and two groups of sites."""


def rows(task: str) -> list[Row]:
    """The configs for a type of task."""
    return [(ReftConfig, {"task_type": task, **fields}) for fields in FIELDS]


def like_lora(
    target_modules: Iterable[str] | str | None = None, init_lora_weights: bool | None = None, **fields: Any
) -> ReftConfig:
    """A config of ours where a test makes one of LoRA's.

    The layers that hold the modules it names are edited; `lin0` and `lin1` by themselves stand for the first and the
    second one, and all other names for all of them.
    """
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules or ())
    found = [re.fullmatch(r"layers\.(\d+)\..*|lin(\d+)", name) for name in names]
    layers = sorted({int(match[1] or match[2] or 0) for match in found if match})
    return ReftConfig(init_weights=init_lora_weights, layers_to_transform=layers or None, **fields)


def as_class(**fields: Any) -> ReftConfig:
    """The same where a test makes a config of every class of a table."""
    return like_lora(**fields)


as_class.__name__ = ReftConfig.__name__  # pytest names a test's case by it

BARE: list[dict[str, Any]] = [
    *FIELDS[:-1],
    {
        "interventions": [
            {**FIELDS[-1]["interventions"][0], "component": "block_input"},
            FIELDS[-1]["interventions"][1],
        ]
    },
    {"layers_to_transform": [0], "modules_to_save": ["lin1"]},
]
"""For blocks without attention, beside which no feed-forward part can be told."""

CUSTOM: list[tuple[str, str, type[ReftConfig], dict[str, Any]]] = [
    (f"Blocks {number} ReFT", "Blocks", ReftConfig, fields) for number, fields in enumerate(BARE, start=1)
]
"""Name, model, config class, fields. PEFT's own models of this file have no blocks, thus no layers to edit."""

PAIRS: list[tuple[str, str, type[ReftConfig], dict[str, Any], dict[str, Any]]] = [
    ("ReFT Same", "reft", ReftConfig, {"init_weights": False}, {"init_weights": False}),
    (
        "ReFT Different",
        "reft",
        ReftConfig,
        {"init_weights": False, "positions": "f1", "layers_to_transform": [0]},
        {"init_weights": False, "positions": "l1", "layers_to_transform": [1], "intervention": "direft"},
    ),
]
"""Two adapters of one model, active together."""


BATCHES: list[tuple[str, ReftConfig, ReftConfig]] = [
    ("ReftConfig Same", ReftConfig(init_weights=False), ReftConfig(init_weights=False)),
    (
        "ReftConfig Different",
        ReftConfig(init_weights=False, positions="f1"),
        ReftConfig(init_weights=False, positions="all", intervention="red", layers_to_transform=0),
    ),
]
"""Two adapters of one batch, each of its own rows."""


def small() -> PeftModel:
    """One adapter at one layer."""
    return get_peft_model(Blocks(), ReftConfig(positions="f1", layers_to_transform=0))


def large() -> PeftModel:
    """Four layers: `default` at three of them, `other` at two, one of which is shared."""
    model = get_peft_model(Blocks(blocks=4), ReftConfig(positions="f1", layers_to_transform=[0, 1, 3]))
    model.add_adapter("other", ReftConfig(positions="l1", layers_to_transform=[0, 2]))
    return model


PLAIN: list[Row] = [(ReftConfig, fields) for fields in FIELDS]

TABLES: dict[str, dict[str, Any]] = {
    "test_decoder_models": {"ALL_CONFIGS": rows("CAUSAL_LM")},
    "test_encoder_decoder_models": {"ALL_CONFIGS": rows("SEQ_2_SEQ_LM")},
    "test_feature_extraction_models": {"ALL_CONFIGS": rows("FEATURE_EXTRACTION")},
    "test_seq_classifier": {"ALL_CONFIGS": rows("SEQ_CLS")},
    "test_token_classification_qa": {
        "TOKEN_CLS_CONFIGS": rows("TOKEN_CLS"),
        "QA_CONFIGS": rows("QUESTION_ANS"),
    },
    "test_custom_models": {
        "TEST_CASES": CUSTOM,
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": PAIRS,
        "MIXED_ADAPTER_TEST_CASES": BATCHES,
        "ALL_PEFT_CONFIG_CLASSES": [as_class],
        "LoraConfig": like_lora,
        "MockTransformerWrapper": BlocksWrapper,
        "MLP": Blocks,
        "DeepMLP": Blocks,
    },
    "test_config": {"ALL_CONFIG_CLASSES": PLAIN, "LAYER_INDEXING_CONFIG_CLASSES": PLAIN[:1]},
    "test_initialization": {"LoraConfig": like_lora},
    "test_hub_features": {"LoraConfig": like_lora},
    "test_tuners_utils": {"small_model": small, "large_model": large},
    "test_low_level_api": {"LoraConfig": like_lora},
}

NOT_OURS = 'config_cls.__name__ != "ReftConfig"'
PHRASES: dict[str, dict[str, str]] = {
    "testing_common": {
        "if config_cls not in (LoraConfig, RoadConfig):": f"if {NOT_OURS}:",
        "if config_cls not in (LoraConfig,):": f"if {NOT_OURS}:",
        "if not issubclass(config_cls, (LoraConfig, IA3Config)):": f"if {NOT_OURS}:",
        "elif isinstance(config, IA3Config):": "else:",
    },
    "test_decoder_models": {
        "if isinstance(config_cls, BeftConfig):": "if config_cls is not BeftConfig:",
        "if config_cls != LoraConfig:": f"if {NOT_OURS}:",
    },
    "test_initialization": {"from scipy import stats": "stats = None", '"lora_" in n': '"reft_" in n'},
    "test_hub_features": {', "lora"],': "],", '                    "lora",\n': ""},
    "test_tuners_utils": {
        "        return get_peft_model(small_base_model_cls(), config)": "        return small_model()",
        "        model = get_peft_model(LargeModel(), config0)\n": "        return large_model()\n",
        '"SmallModel"': '"Blocks"',
        '"LargeModel"': '"Blocks"',
        '"LoraModel"': '"ReftModel"',
        '"LORA"': '"REFT"',
    },
    "test_custom_models": {
        "lin0.active_adapters": "reft.active_adapters",
        "layers[0].lin0, adapter_name": "layers[0].reft, adapter_name",
        "layers[1].lin0, adapter_name": "layers[1].reft, adapter_name",
    },
    "test_low_level_api": {'"LoKr", "LoRA", "RandLoRA"]': '"LoKr", "ReftConfig", "RandLoRA"]'},
}
"""File → words in it → what stands there instead: prefixes and tags of LoRA, what no test of ours needs, tests kept to
two methods that ours can pass too, and a slip: `check_beft_config` changes the fields of every config but BEFT's."""

STATUS = (
    "active_adapters",
    "adapter_model_type",
    "available_adapters",
    "base_model_type",
    "devices_all_cpu",
    "enabled",
    "merge_adapters",
    "model_active_adapters",
    "model_available_adapters",
    "model_devices_all_cpu",
    "model_disabled",
    "model_enabled",
    "model_merged_adapters",
    "model_quantization_backend",
    "model_requires_grad_model",
    "num_adapter_layers",
    "peft_types",
    "quantization_backend",
    "requires_grad",
)
"""What the status of layers and of a model says; of a small model and of a large one."""

CHOSEN: dict[str, tuple[str, ...]] = {
    "test_custom_models": (
        "test_add_adapter_rejects_duplicate_name_without_mutation[False]",
        "test_delete_adapter_multiple_adapters_with_modules_to_save",
        "test_delete_adapter_with_multiple_adapters_works",
        "test_existing_model_card",
        "test_mixed_adapter_batches_different_target_layers[LoRA",
        "test_mixed_adapter_batches_lora_wrong_adapter_name_raises[LoRA",
        "test_mixed_adapter_batches_multiple_modules_to_save[LoRA",
        "test_mixed_adapter_batches_partly_overlapping_target_layers[LoRA",
        "test_non_existing_model_card",
    ),
    "test_initialization": (
        "test_no_warning_by_default_transformers_model",
        "test_warning_name_transformers_model",
        "test_from_pretrained_low_cpu_mem_usage_works",
        "test_load_adapter_low_cpu_mem_usage_works",
        "test_get_peft_model_low_cpu_mem_usage_works",
        "test_get_peft_model_with_task_type_low_cpu_mem_usage_works",
        "test_inject_adapter_low_cpu_mem_usage_works",
        "test_mixed_model_load_adapter_low_cpu_mem_usage_works",
        "test_no_warning_without_naming_conflict_get_peft_model",
        "test_no_warning_without_naming_conflict_add_adapter",
        "test_no_warning_without_naming_conflict_save_and_load",
        "test_warning_naming_conflict_get_peft_model",
        "test_warning_naming_conflict_add_adapter",
        "test_warning_naming_conflict_save_and_load",
    ),
    "test_hub_features": (
        "test_local_model_saving_no_warning",
        "test_from_config_model_saving_skips_empty_name_or_path",
        "test_model_card_has_expected_tags",
    ),
    "test_low_level_api": (
        "test_inject_from_state_dict_transformers",
        "test_inject_from_state_dict_low_cpu_mem_usage",
    ),
    "test_tuners_utils": (
        "test_enabled_irregular",
        "test_model_active_adapters_irregular",
        "test_model_enabled_irregular",
        *(f"test_{what}_{size}" for what in STATUS for size in ("small", "large")),
    ),
}
"""Tests that make their config themselves, and how the name of the case starts where there are several; of the others
those with our configs are run."""
