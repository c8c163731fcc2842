"""Our rows for the tables of PEFT's tests: file → (config class, keywords)."""

from __future__ import annotations

from typing import Any

from peft_reft import ReftConfig

__all__ = ["TABLES"]

LABELLED = ("f1", "f1+all", "all", "f2")
"""Positions of language models: PEFT's tests train without labels, where nothing that counts from a prompt's end can be
known, and is refused."""
ENDS = ("l1", "f1+l1", "all", "prompt")

Row = tuple[type[ReftConfig], dict[str, Any]]


def rows(task: str | None, positions: tuple[str, str, str, str]) -> list[Row]:
    """Four configs: the default, untied ends, an unrotated kind on some layers, and two groups of sites."""
    named = {"task_type": task} if task else {}
    return [
        (ReftConfig, {**named, "positions": positions[0]}),
        (ReftConfig, {**named, "positions": positions[1], "share_weights": False, "r": 2}),
        (ReftConfig, {**named, "positions": positions[2], "intervention": "direft", "layers_to_transform": [-1]}),
        (
            ReftConfig,
            {
                **named,
                "interventions": [
                    {"positions": positions[3], "component": "mlp_output"},
                    {"positions": positions[0], "intervention": "bias", "layers_to_transform": [0]},
                ],
            },
        ),
    ]


TABLES: dict[str, dict[str, list[Row]]] = {
    "test_decoder_models": {"ALL_CONFIGS": rows("CAUSAL_LM", LABELLED)},
    "test_encoder_decoder_models": {"ALL_CONFIGS": rows("SEQ_2_SEQ_LM", LABELLED)},
    "test_feature_extraction_models": {"ALL_CONFIGS": rows("FEATURE_EXTRACTION", ENDS)},
    "test_seq_classifier": {"ALL_CONFIGS": rows("SEQ_CLS", ENDS)},
    "test_token_classification_qa": {
        "TOKEN_CLS_CONFIGS": rows("TOKEN_CLS", ENDS),
        "QA_CONFIGS": rows("QUESTION_ANS", ENDS),
    },
}
