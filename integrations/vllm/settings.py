"""What the front tells the workers when they start: how many slots, how wide. It stands in vLLM's own config.

`additional_config` is part of the hash by which vLLM finds compiled graphs, so that no graph of a model without the
edit is taken for one with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from peft_reft.hub_format.errors import ConfigError

__all__ = ["DEFAULT_RANK", "DEFAULT_SLOTS", "ENTRY", "WORKER", "Settings"]

ENTRY = "reft"
WORKER = "peft_reft.integrations.vllm.worker.ReftWorker"
DEFAULT_SLOTS = 64
DEFAULT_RANK = 8
OPERATOR = 1
"""Raised whenever the operator in a compiled graph changes."""


@dataclass(frozen=True)
class Settings:
    """Sizes of what a worker holds on its device.

    Attributes:
        max_refts: slots: units of adapters on the device at once.
        max_reft_rank: the largest rank of an affine edit.
        operator: of the graphs that are compiled.
    """

    max_refts: int = DEFAULT_SLOTS
    max_reft_rank: int = DEFAULT_RANK
    operator: int = OPERATOR

    def __post_init__(self) -> None:
        for name in ("max_refts", "max_reft_rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"{name}={value!r}", code="vllm.settings", value=value, rule="it is an int, 1 or more"
                )

    def beside(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """vLLM's `additional_config` with these settings in it.

        Raises:
            ConfigError: it has an entry of that name already, or is no dict.
        """
        if given is not None and not isinstance(given, Mapping):
            kind = type(given).__name__
            raise ConfigError(f"additional_config is a {kind}", code="vllm.settings", value=kind, rule="it is a dict")
        if given and ENTRY in given:
            raise ConfigError(
                f"additional_config has the entry {ENTRY!r}",
                code="vllm.settings",
                value=given[ENTRY],
                rule="it is ours",
                fix="pass max_refts and max_reft_rank",
            )
        return {**(given or {}), ENTRY: asdict(self)}

    @classmethod
    def of(cls, config: Any) -> Settings:
        """The settings in a `VllmConfig`.

        Raises:
            ConfigError: it has none: the worker was not started by us.
        """
        held = config.additional_config
        found = held.get(ENTRY) if isinstance(held, Mapping) else None
        if not isinstance(found, Mapping) or found.get("operator") != OPERATOR:
            raise ConfigError(
                f"additional_config[{ENTRY!r}] is {found!r}",
                code="vllm.settings",
                value=found,
                rule="a worker with ReFT finds its sizes there",
                fix="start the engine with ReftLLM or `peft-reft serve`, of one version of peft-reft everywhere",
            )
        return cls(found["max_refts"], found["max_reft_rank"])
