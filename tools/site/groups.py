"""How the reference groups public names, and how each of its pages begins."""

from __future__ import annotations

__all__ = ["GROUPS", "INTRODUCTIONS"]

INTRODUCTIONS = {
    "peft_reft": "Importing `peft_reft` registers the method with PEFT; from then on stock PEFT, transformers and TRL "
    "know `ReftConfig`. A guided tour of the parameters: [every parameter](../parameters.md).",
    "peft_reft.interventions": "The edits h → h′. [Every parameter](../parameters.md) tells when to choose which; "
    "[the file format](../format.md) gives their tensors.",
    "peft_reft.integrations": "Collator and data helpers, trainers, metrics, evaluators and servers. Each name brings "
    "its own library in when it is first used, and not before. The command line has [a page of its own](../cli.md).",
    "peft_reft.causal": "Interchange interventions and alignment search on any network. "
    "[Where ReFT comes from](../causal.md) explains them in order.",
    "peft_reft.continual": "[Learning skills one after another](../continual.md) shows them in use.",
    "peft_reft.hub_format": "The on-disk format; knows neither PEFT nor transformers. What is written and checked: "
    "[the file format](../format.md).",
}
GROUPS: dict[str, dict[str, list[str]]] = {
    "peft_reft": {
        "Config and models": ["ReftConfig", "ReftModel", "MixedReftModel"],
        "Saving, loading, sharing": [
            "save_pretrained",
            "push_to_hub",
            "pull",
            "list_adapters",
            "convert",
            "export_prefix",
        ],
        "Training": ["parameter_groups", "PenaltySchedule", "select_heads", "drop_closed_heads"],
        "While it runs": [
            "scale_adapter",
            "set_subspaces",
            "set_value",
            "prompt_cache",
            "hotswap_adapter",
            "prepare_for_hotswap",
            "PositionWarning",
        ],
        "Kinds of one's own": ["Intervention", "register_intervention"],
    },
    "peft_reft.causal": {
        "Causal models": ["CausalModel", "Distribution", "Pair", "every_pair", "sample_pairs"],
        "Places and interventions": [
            "Site",
            "Column",
            "Edit",
            "intervene",
            "interchange",
            "collect",
            "put",
            "add",
            "subtract",
            "zero",
            "mean",
            "noise",
            "PadRows",
        ],
        "Spaces": ["Space", "Rotation", "Pca", "Autoencoder"],
        "Alignment search": [
            "AlignmentSearch",
            "InterchangeDataset",
            "InterchangeCollator",
            "Answers",
            "class_loss",
            "AnnealBoundaries",
            "localist_search",
            "sweep",
            "Sweep",
        ],
        "What an accuracy is worth": [
            "interchange_accuracy",
            "Accuracy",
            "answered",
            "wilson_interval",
            "Calibration",
            "CalibrationWarning",
            "Nulls",
            "over_sites",
            "untrained_like",
        ],
        "From an alignment to an adapter": ["to_adapter"],
    },
    "peft_reft.causal.tasks": {"Tasks": ["Task", "TaskReader", "TASKS"]},
    "peft_reft.integrations": {
        "Data and positions": [
            "ReftDataCollator",
            "show_positions",
            "add_intervention_locations",
            "convert_intervention_locations",
        ],
        "Trainers": ["ReftSFTTrainer", "ReftGRPOTrainer", "ReftRLOOTrainer"],
        "Objectives of a stock DPOTrainer": ["use_objective", "RepsObjective", "SplitObjective"],
        "Evaluating": ["GenerationMetric", "evaluate_generations"],
    },
    "peft_reft.integrations.data": {"What `show_positions` gives": ["PositionPicture"]},
    "peft_reft.integrations.lm_eval": {"lm-evaluation-harness": ["ReftLM"]},
    "peft_reft.integrations.vllm": {"vLLM": ["ReftLLM", "ReftRequest"]},
    "peft_reft.integrations.cli": {"The command line from Python": ["main"]},
}
"""Module → heading → names. Modules that are not here are listed by name under one heading."""
