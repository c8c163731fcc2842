"""The adapters of one server: opened and checked, then put on its base, none of them active."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import ConfigError
from peft_reft.integrations.vllm.opened import open_adapter

__all__ = ["opened", "with_adapters"]


def opened(adapters: Mapping[str, str]) -> dict[str, Path]:
    """Name → folder of its files, after every check of the format.

    Raises:
        ConfigError: a name that is none; a bundle, whose LoRA would edit all requests.
        ReftError: an adapter that is not whole.
        HubError: a repository that is missing, gated or out of reach.
    """
    found = {}
    for name, source in adapters.items():
        check_name(name)
        one = open_adapter(source)
        if one.lora is not None:
            raise ConfigError(
                f"{name!r} is a bundle of a LoRA and a ReFT",
                code="serve.bundle",
                value=source,
                rule="here requests share forwards, and a LoRA's rows cannot be told apart in one",
                fix="name the folder of its ReFT, PATH/reft/NAME, or serve it with vLLM",
            )
        found[name] = one.folder
    return found


def with_adapters(base: Any, folders: Mapping[str, Path]) -> Any:
    """A base with adapters, in evaluation mode; what no request names edits nothing.

    Raises:
        ReftError: an adapter that is not for this base.
    """
    model: Any = None
    for name, folder in folders.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
    model.base_model.set_adapter([])
    return model.eval()
