"""Identity of a base model, as a manifest records it: enough to tell that an adapter is not meant for another one.

What may differ between the model that was trained on and the one that is loaded on stays out of it: name and path,
dtype, quantisation, the size of the vocabulary, how attention is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from peft_reft.hub_format.errors import BaseMismatchError
from peft_reft.sites import Stack, config_field, hidden_size_of, text_config

from .base_tokenizer import base_tokenizer

__all__ = ["ALLOW_OTHER_BASE", "base_identity", "check_base", "config_hash"]

ALLOW_OTHER_BASE = "PEFT_REFT_ALLOW_OTHER_BASE"
"""Environment variable that, set to 1, lets stock loads put adapters on another base than they were made for."""

CONFIG_FIELDS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
)


def base_identity(model: nn.Module, stacks: Sequence[Stack], hidden_size: int, *, streams: int = 1) -> dict[str, Any]:
    """Class, model type, hidden size, blocks per stack, vocabulary size, and the hash of the config.

    Where a token's state has several residual streams, their number too.
    """
    config = getattr(model, "config", None)
    return {
        "architecture": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        "hidden_size": hidden_size,
        **({"streams": streams} if streams > 1 else {}),
        "stacks": {stack.path: stack.length for stack in stacks},
        "vocab_size": config_field(config, "vocab_size"),
        "config": config_hash(text_config(model)),
    }


def config_hash(config: Any) -> str | None:
    """`sha256:` of the JSON of a (text) config's fields that fix what the blocks compute; None without a config.

    A field in which layers differ counts with all their values.
    """
    if config is None:
        return None
    fields = {name: config_field(config, name) for name in CONFIG_FIELDS}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def check_base(recorded: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse a base model that differs from the recorded one. Items that either side does not know are not compared.

    A tokenizer is known where it lies beside the base: see `base_tokenizer`.

    Raises:
        BaseMismatchError: names the item that differs, with both values.
    """
    if os.environ.get(ALLOW_OTHER_BASE) == "1":
        return
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    config = getattr(model, "config", None)
    # FSDP makes a subclass of the model's class, of another name
    classes = {cls.__name__ for cls in type(model).__mro__}
    if recorded.get("architecture") is not None and recorded["architecture"] not in classes:
        raise _mismatch("architecture", recorded["architecture"], type(model).__name__)
    _compare("model_type", recorded.get("model_type"), getattr(config, "model_type", None))
    if recorded.get("hidden_size") is not None:
        _compare("hidden_size", recorded["hidden_size"], hidden_size_of(model))
    stacks = recorded.get("stacks")
    for path, length in stacks.items() if isinstance(stacks, Mapping) else ():
        _compare(f"layers of {str(path)[:80]}", length, _length(model, path))
    _compare("config", recorded.get("config"), config_hash(text_config(model)))
    if recorded.get("tokenizer") is not None:
        beside = base_tokenizer(model)
        _compare("tokenizer", recorded["tokenizer"], None if beside is None else beside.fingerprint())


def _compare(item: str, recorded: object, present: object) -> None:
    if recorded is not None and present is not None and recorded != present:
        raise _mismatch(item, recorded, present)


def _mismatch(item: str, recorded: object, present: object) -> BaseMismatchError:
    return BaseMismatchError(
        f"the adapter was made for a base with {item} {str(recorded)[:100]!r}, this one has {str(present)[:100]!r}",
        code=f"base.{item.split()[0]}",
        value=present,
        rule="an adapter is loaded on the base model it was made for",
        fix=f"load that base; to use this one knowingly, pass allow_other_base=True to ReftConfig.from_pretrained "
        f"(its result goes to PeftModel.from_pretrained as config=) or to MixedReftModel.from_pretrained, or set "
        f"{ALLOW_OTHER_BASE}=1",
    )


def _length(model: nn.Module, path: object) -> int:
    try:
        return len(model.get_submodule(str(path)))  # type: ignore[arg-type]  # a ModuleList; others have no length
    except (AttributeError, TypeError):
        return 0
