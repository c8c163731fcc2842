"""Configs with values that the format does not allow."""

from __future__ import annotations

from typing import Any

from .changes import (
    Bad,
    before,
    config,
    envelope,
    reft,
)
from .folder import CONFIG

__all__ = ["CONFIGS"]


CONFIGS: dict[str, Bad] = {
    "reft_missing": Bad("no object `reft`", config(lambda c: c.pop("reft")), "config.reft", CONFIG),
    "reft_list": Bad("`reft` is a list", envelope(reft=[]), "config.reft", CONFIG),
    "reft_unknown_field": Bad("an unknown field", reft(strength=2), "config.unknown", CONFIG),
    "reft_missing_field": Bad(
        "a field is missing", config(lambda c: c["reft"].pop("turns")), "config.missing", CONFIG
    ),
    "reft_kinds_unused": Bad(
        "`kinds` lists one that is not used", reft(kinds={"loreft": 1, "bias": 1}), "config.kinds", CONFIG
    ),
    "reft_kinds_text": Bad("a version that is a text", reft(kinds={"loreft": "1"}), "config.kinds", CONFIG),
    "reft_kinds_module": Bad(
        "a module that is no name",
        reft(kinds={"loreft": {"version": 1, "module": "os; import"}}),
        "config.kinds",
        CONFIG,
    ),
    "reft_kinds_module_of_ours": Bad(
        "a module for a kind of the format",
        reft(kinds={"loreft": {"version": 1, "module": "someones.kinds"}}),
        "config.kinds",
        CONFIG,
    ),
    "reft_kinds_module_dots": Bad(
        "a module's name with an empty part",
        reft(kinds={"loreft": {"version": 1, "module": "a..b"}}),
        "config.kinds",
        CONFIG,
    ),
    "reft_tokens_unused": Bad(
        "an id for a token that no group names",
        reft(
            positions="tok(<s>)",
            interventions=[{"positions": "l1"}],
            special_tokens={"tokenizer": "sha256:" + "0" * 64, "ids": {"<s>": 1}},
        ),
        "config.special_tokens",
        CONFIG,
    ),
    "reft_tokens_missing": Bad(
        "ids of other tokens than the positions name",
        reft(positions="tok(<s>)", special_tokens={"tokenizer": "sha256:" + "0" * 64, "ids": {"<x>": 1}}),
        "config.special_tokens",
        CONFIG,
    ),
    "reft_tokens_fingerprint": Bad(
        "a fingerprint that is none",
        reft(special_tokens={"tokenizer": "me", "ids": {}}),
        "config.special_tokens",
        CONFIG,
    ),
    "reft_tokens_unbound": Bad("tok(…) without ids", reft(positions="tok(<s>)"), "positions.unbound", None, "base"),
    "kind_unknown": Bad(
        "a kind that is not registered", reft(intervention="mystery", kinds={"mystery": 1}), "kind.unknown", CONFIG
    ),
    "kind_of_a_module": Bad(
        "a kind that a module would register",
        reft(intervention="mine", kinds={"mine": {"version": 1, "module": "someones.kinds"}}),
        "kind.unknown",
        CONFIG,
    ),
    "kind_version": Bad("another version of a kind", reft(kinds={"loreft": 2}), "kind.version", CONFIG),
    "positions_typo": Bad("x7 is no term", reft(positions="f7+x7"), "positions.syntax", CONFIG),
    "positions_empty": Bad("no term", reft(positions=""), "positions.syntax", CONFIG),
    "positions_zero": Bad("f0 counts no token", reft(positions="f0"), "positions.syntax", CONFIG),
    "positions_token_blank": Bad("a special token of a blank", reft(positions="tok( )"), "positions.syntax", CONFIG),
    "positions_long": Bad(
        "a spec of 4,097 characters", reft(positions="f1+" + "p[1:9]+" * 585 + "l1"), "positions.syntax", CONFIG
    ),
    "positions_twice": Bad("a term stands twice", reft(positions="f2+f2"), "positions.syntax", CONFIG),
    "positions_window_empty": Bad("a window without a token", reft(positions="p[3:3]"), "positions.syntax", CONFIG),
    "positions_generated_negative": Bad(
        "g counts from its start alone", reft(positions="g[-2:]"), "positions.syntax", CONFIG
    ),
    "positions_other_digits": Bad("digits of another script", reft(positions="f٣"), "positions.syntax", CONFIG),
    "positions_blank": Bad("a no-break space", reft(positions="f2\u00a0+l2"), "positions.syntax", CONFIG),
    "positions_blank_in_number": Bad(
        "a blank between minus and digits", reft(positions="p[- 1:]"), "positions.syntax", CONFIG
    ),
    "positions_minus_alone": Bad("a minus without digits", reft(positions="p[-:1]"), "positions.syntax", CONFIG),
    "positions_stop_zero": Bad("a window that stops at 0", reft(positions="p[-2:-0]"), "positions.syntax", CONFIG),
    "positions_twice_by_zeros": Bad(
        "a term twice, once with leading zeros", reft(positions="p[1:3]+p[01:3]"), "positions.syntax", CONFIG
    ),
    "positions_generated_twice": Bad(
        "g[:] is `generated`", reft(positions="generated-g[:]"), "positions.syntax", CONFIG
    ),
    "positions_huge": Bad("a count beyond 2³¹−1", reft(positions="f99999999999"), "positions.syntax", CONFIG),
    "positions_first_excluded": Bad(
        "a spec that starts with an exclusion", reft(positions="-f2"), "positions.syntax", CONFIG
    ),
    "positions_number": Bad("a number", reft(positions=7), "positions.syntax", CONFIG),
}

FIELD_VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "rank_zero": ("r = 0", {"r": 0}),
    "rank_huge": ("r = 200,000,000", {"r": 200_000_000}),
    "rank_true": ("r = true", {"r": True}),
    "rank_float": ("r = 2.0", {"r": 2.0}),
    "rank_beyond_hidden": ("r is larger than the hidden size", {"r": 9}),
    "dropout_one": ("dropout drops everything", {"dropout": 1.0}),
    "component_unknown": ("a component that there is not", {"component": "block"}),
    "component_list": ("a component that is a list", {"component": ["block_output"]}),
    "turns_unknown": ("turns = last", {"turns": "last"}),
    "share_weights_number": ("share_weights = 1", {"share_weights": 1}),
    "act_fn_unknown": ("an activation that there is not", {"act_fn": "swish7"}),
    "act_fn_code": ("an activation by import path", {"act_fn": "os.system"}),
    "options_unknown": ("an option that the kind lacks", {"options": {"topk": 2}}),
    "options_list": ("options that are a list", {"options": []}),
    "interchange_value": (
        "a value that is not among the values",
        {
            "intervention": "rotated_interchange",
            "options": {"values": [0, 1], "value": 2},
            "kinds": {"rotated_interchange": 1},
        },
    ),
    "heads_of_later_version": (
        "the component of version 1.2 in a file that says 1.0",
        {"component": "heads"},
    ),
    "heads_of_later_version_in_group": (
        "the same in a group",
        {"interventions": [{"component": "mlp_output"}, {"component": "heads"}]},
    ),
    "penalty_negative": (
        "a weight below 0",
        {"intervention": "distribution", "options": {"penalty": -1}, "kinds": {"distribution": 1}},
    ),
    "heads_zero": (
        "no heads",
        {"intervention": "heads", "options": {"heads": 0}, "kinds": {"heads": 1}},
    ),
    "interchange_equal": (
        "two values that are equal",
        {
            "intervention": "rotated_interchange",
            "options": {"values": [1, True], "value": 1},
            "kinds": {"rotated_interchange": 1},
        },
    ),
    "layers_empty": ("an empty list of layers", {"layers_to_transform": []}),
    "layers_twice": ("a layer twice", {"layers_to_transform": [0, 0]}),
    "layers_text": ("a layer that is a text", {"layers_to_transform": ["0"]}),
    "layers_pattern_regex": ("a pattern that backtracks", {"layers_pattern": "(a+)+$"}),
    "layers_pattern_path": ("a pattern that is a path", {"layers_pattern": "../layers"}),
    "init_weights_text": ("init_weights = identity", {"init_weights": "identity"}),
    "groups_empty": ("an empty list of groups", {"interventions": []}),
    "groups_unknown_field": ("a group that sets subspaces", {"interventions": [{"subspaces": None}]}),
    "groups_no_objects": ("groups that are texts", {"interventions": ["loreft"]}),
    "default_unused": (
        "a top-level value that is none, where each group says its own",
        {"share_weights": [1], "interventions": [{"share_weights": True}]},
    ),
    "default_unused_options": (
        "options that are a text, where each group says its own",
        {"options": "topk", "interventions": [{"options": None}]},
    ),
    "subspaces_overlap": ("two subspaces share a row", {"subspaces": {"a": [0, 2], "b": [1, 2]}}),
    "subspaces_beyond": ("a subspace beyond r", {"subspaces": {"a": [0, 3]}}),
    "subspaces_dot": ("a name that starts with a dot", {"subspaces": {".a": [0, 1]}}),
    "layers_pattern_long": ("a name of 201 characters", {"layers_pattern": "a" * 201}),
    "subspaces_name": ("a name with a line feed", {"subspaces": {"a\nb": [0, 1]}}),
}
CONFIGS |= {
    f"value_{name}": Bad(about, reft(**values), "config.value", CONFIG)
    for name, (about, values) in FIELD_VALUES.items()
}
CONFIGS["value_act_fn_without_source"] = Bad(
    "an activation of a kind without Wh + b",
    before(lambda m: m.config["reft"].update(act_fn="relu"), intervention="bias"),
    "config.value",
    CONFIG,
)

ENVELOPES: dict[str, tuple[str, dict[str, Any]]] = {
    "peft_type": ("the config of another tuner", {"peft_type": "LORA"}),
    "positions": ("behaviour beside `reft`", {"positions": "f9"}),
    "rank": ("a rank beside `reft`", {"r": 9}),
    "kinds": ("kinds beside `reft`", {"kinds": {"loreft": 1}}),
    "tensors": ("tensors beside `reft`", {"tensors": {}}),
    "self": ("a key `self`", {"self": 1}),
    "task_type": ("a task that PEFT lacks", {"task_type": "MAGIC"}),
    "inference_mode": ("inference_mode = yes", {"inference_mode": "yes"}),
    "revision": ("a revision that is a number", {"revision": 7}),
    "modules_text": ("modules_to_save is a text", {"modules_to_save": "lm_head"}),
    "modules_regex": ("modules_to_save holds a pattern", {"modules_to_save": ["(a+)+$"]}),
    "modules_weight": ("modules_to_save names parameters", {"modules_to_save": ["weight"]}),
    "tokens_negative": ("a token id below 0", {"trainable_token_indices": [-1]}),
    "tokens_texts": ("token ids that are texts", {"trainable_token_indices": ["a"]}),
}
CONFIGS |= {
    f"envelope_{name}": Bad(about, envelope(**values), "config.envelope", CONFIG)
    for name, (about, values) in ENVELOPES.items()
}

CONFIGS |= {
    "order_envelope_before_reft": Bad(
        "an envelope and an object `reft` that are wrong",
        config(lambda c: (c.update(task_type="MAGIC"), c["reft"].update(r=0))),
        "config.envelope",
        CONFIG,
    ),
    "order_version_before_fields": Bad(
        "another version than the manifest's, and an unknown field",
        reft(spec_version="1.7", tile=3),
        "config.version",
        CONFIG,
    ),
    "order_unknown_before_missing": Bad(
        "an unknown field and a missing one",
        config(lambda c: (c["reft"].pop("turns"), c["reft"].update(turn="each"))),
        "config.unknown",
        CONFIG,
    ),
    "order_kinds_before_values": Bad(
        "another version of a kind, and a rank of 0", reft(kinds={"loreft": 2}, r=0), "kind.version", CONFIG
    ),
    "order_values_before_kinds_in_use": Bad(
        "a rank of 0, and a kind that is not in use", reft(kinds={"loreft": 1, "bias": 1}, r=0), "config.value", CONFIG
    ),
}
