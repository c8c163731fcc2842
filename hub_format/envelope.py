"""The top level of `adapter_config.json`: PEFT's envelope, which may grow with PEFT and carries none of our behaviour.

What PEFT acts on is checked here, since PEFT itself answers with foreign errors or not at all; and every tensor beside
the edits must belong to something that the envelope names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConfigError, ManifestError
from .schema import BEHAVIOUR

__all__ = ["IF_PRESENT", "MODEL_PREFIX", "check_beside", "check_envelope", "check_saved_parts"]

TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
NOT_MODULES = ("default", "reft", "weight", "bias")
"""Last parts of names that are never modules to save: an adapter's, ours, and parameters."""
IF_PRESENT = ("classifier", "score", "qa_outputs")
"""Heads that PEFT lists by task, whether the model has them or not (peft/peft_model.py, `classifier_module_names`)."""
LISTED_BY_TASK = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Task → the heads that PEFT lists for it. BART and T5 have none of them: theirs is `classification_head`."""
BESIDE_NEVER = frozenset({*BEHAVIOUR, "kinds", "tensors", "self", "cls"})
"""No key of the envelope: behaviour that would be passed over, and names that break the call which makes a config."""
EMBEDDINGS = (
    "decoder",
    "embed_in",
    "embed_out",
    "embed_tokens",
    "embeddings",
    "lm_head",
    "out_proj",
    "output_projection",
    "proj_out",
    "shared",
    "tok_embeddings",
    "token_embedding",
    "word_embedding",
    "word_embeddings",
    "wte",
)
"""Embeddings, saved by PEFT where the vocabulary grew (`save_embedding_layers`), without a word in the config."""
MODEL_PREFIX = "base_model.model."
TOKEN_ADAPTER = "token_adapter"
MAX_TOKEN = 2**31 - 1
MAX_MODULES = 64
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def check_envelope(config: Mapping[str, Any]) -> None:
    """Refuse top-level values that PEFT would act on wrongly.

    Raises:
        ConfigError: a field of our behaviour beside `reft`, or a field of the wrong type or with a value not allowed.
    """
    _check(config, "peft_type", lambda value: value == "REFT", "it is 'REFT'", required=True)
    for name in config:
        if name in BESIDE_NEVER:
            raise _refuse(name, config[name], "all behaviour stands in 'reft', and no field has such a name beside it")
    _check(config, "task_type", lambda value: value in TASK_TYPES, f"it is null or one of {', '.join(TASK_TYPES)}")
    _check(config, "inference_mode", lambda value: isinstance(value, bool), "it is true or false")
    _check(config, "auto_mapping", lambda value: isinstance(value, dict), "it is null or an object")
    for name in ("base_model_name_or_path", "peft_version", "revision"):
        _check(config, name, lambda value: isinstance(value, str) and len(value) < 4096, "it is null or a text")
    check_saved_parts(config)


def check_saved_parts(config: Mapping[str, Any]) -> None:
    """Refuse values of `modules_to_save` and `trainable_token_indices` that a file could not hold.

    Raises:
        ConfigError: names the field, its value and the rule.
    """
    rule = f"it is null or a list of at most {MAX_MODULES} module names, none ending on {', '.join(NOT_MODULES)}"
    _check(config, "modules_to_save", _are_modules, rule)
    rule = "it is null, a list of token ids, or an object: module name → list of token ids"
    _check(config, "trainable_token_indices", _are_tokens, rule)


def check_beside(config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compare the tensors beside the edits with what the envelope says is saved.

    Args:
        config: whose envelope was checked.
        names: of all tensors that are none of an edit's.

    Raises:
        ManifestError: a tensor that nothing in the config brings, or a module or token adapter without tensors.
    """
    saved = tuple(config.get("modules_to_save") or ())
    tokens = bool(config.get("trainable_token_indices"))
    found: set[str] = set()
    for name in names:
        module, _, _ = name.removeprefix(MODEL_PREFIX).rpartition(".")
        owners = [owner for owner in saved if _lies_in(module, owner)]
        token = tokens and TOKEN_ADAPTER in module.split(".")
        grown = module.rpartition(".")[2] in EMBEDDINGS
        if not name.startswith(MODEL_PREFIX) or not (owners or token or grown):
            raise ManifestError(
                f"the tensor {name[:120]!r} belongs to no part of the adapter",
                code="tensors.extra",
                rule="a tensor is an edit's, of a module in modules_to_save, or of trainable tokens",
            )
        found.update(owners, [TOKEN_ADAPTER] if token else [])
    lacking = [name for name in saved if name not in IF_PRESENT and name not in found]
    listed = LISTED_BY_TASK.get(str(config.get("task_type")), ())
    if not found & set(saved):
        lacking = [name for name in saved if name not in listed]  # whether the base has those shows on it alone
    if tokens and TOKEN_ADAPTER not in found:
        lacking.append("trainable_token_indices")
    if lacking:
        raise ManifestError(
            f"the config names {lacking[0][:80]!r}, and no tensor of it is here",
            code="tensors.missing",
            rule="what modules_to_save and trainable_token_indices name is saved with the edits",
            fix="save the adapter again from the model that was trained",
        )


def _lies_in(module: str, owner: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:end]).endswith(owner) for end in range(1, len(parts) + 1))  # as PEFT matches names


def _check(config: Mapping[str, Any], name: str, allowed: Any, rule: str, *, required: bool = False) -> None:
    value = config.get(name)
    if value is None and not required:
        return
    if (isinstance(value, (list, dict)) and name in ("peft_type", "task_type")) or not allowed(value):
        raise _refuse(name, value, rule)


def _are_modules(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_MODULES
        and all(
            isinstance(name, str) and _MODULE.fullmatch(name) and name.rpartition(".")[2] not in NOT_MODULES
            for name in value
        )
    )


def _are_tokens(value: object) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    if isinstance(value, dict) and not all(isinstance(name, str) and _MODULE.fullmatch(name) for name in value):
        return False
    return bool(lists) and all(
        isinstance(ids, list)
        and bool(ids)
        and all(type(token) is int and 0 <= token <= MAX_TOKEN for token in ids)
        and len(set(ids)) == len(ids)
        for ids in lists
    )


def _refuse(name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(f"{name}={repr(value)[:80]} is not allowed", code="config.envelope", value=value, rule=rule)
