"""The adapters that an engine serves, by name: what the front knows of them, and which requests still use them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import AdapterLoadError, ConfigError, shown
from peft_reft.runtime.row_choice import BASE

from .opened import open_adapter
from .salts import reach_of
from .servable import check_servable
from .settings import Settings

__all__ = ["Catalogue", "Entry", "no_lora"]

FIRST_LORA = 1 << 30
"""Ids of the LoRAs of bundles, far from those that vLLM counts out."""


@dataclass(frozen=True)
class Entry:
    """An adapter that was found fit to be served.

    Attributes:
        name: by which requests name it.
        key: by which workers know it; no other entry ever has it, and nobody can guess it.
        source: folder or repository, as it was given.
        folder: of its files.
        reach: see `salts.reach_of`.
        lora: vLLM's request for the LoRA of its bundle, if it has one.
    """

    name: str
    key: str
    source: str
    folder: str
    reach: int | None
    lora: Any = None


@dataclass
class Catalogue:
    """The entries of one engine.

    Attributes:
        config: its `VllmConfig`.
        settings: its sizes.
        taken: names that mean something else, e.g. the base's.
    """

    config: Any
    settings: Settings
    taken: frozenset[str] = frozenset()
    entries: dict[str, Entry] = field(default_factory=dict)
    leaving: list[Entry] = field(default_factory=list)
    requests: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = count(1)
        self._nonce = secrets.token_hex(8)

    def prepare(
        self, name: str, source: str, *, revision: str | None = None, token: str | None = None, replace: bool = False
    ) -> Entry:
        """Check a name and an adapter; nothing serves it until `publish`.

        Raises:
            ConfigError: a name that is none, is taken, or (without `replace`) is served already.
            ReftError: an adapter that is not whole, not for this base, or not served by this engine.
        """
        check_name(name)
        if name == BASE or name in self.taken:
            raise ConfigError(
                f"the adapter name {name!r} is taken",
                code="name",
                value=name,
                rule="it means the base",
                fix="rename it",
            )
        if name in self.entries and not replace:
            raise ConfigError(
                f"{name!r} is served already",
                code="vllm.loaded",
                value=name,
                rule="a name serves one adapter",
                fix="unload it first, or load with replace=True",
            )
        if not isinstance(source, str) or not source:
            raise ConfigError(f"the source is {shown(source)}", value=source, rule="it is a folder or a repository")
        opened = open_adapter(source, revision=revision, token=token)
        check_servable(opened.checked, self.config, self.settings)
        number = next(self._numbers)
        key = f"{name}.{number}.{self._nonce}"
        lora = None if opened.lora is None else self._lora(key, number, str(opened.lora))
        groups = opened.checked.groups
        return Entry(name, key, source, str(opened.folder), reach_of(groups), lora)

    def publish(self, entry: Entry) -> None:
        """Serve an entry that the workers hold; one of the same name leaves."""
        if entry.name in self.entries:
            self.withdraw(entry.name)
        self.entries[entry.name] = entry
        self.requests.setdefault(entry.key, set())

    def withdraw(self, name: str) -> Entry:
        """Serve a name no more; its workers may drop it once the requests that use it have ended.

        Raises:
            ConfigError: no adapter of that name is served.
        """
        entry = self.entry(name)
        del self.entries[name]
        self.leaving.append(entry)
        return entry

    def gone(self, unfinished: Callable[[str], bool]) -> list[Entry]:
        """The withdrawn entries that no unfinished request uses; told once.

        Args:
            unfinished: whether a request, by its id inside the engine, has not ended.
        """
        found = [entry for entry in self.leaving if not any(map(unfinished, self.requests.get(entry.key, ())))]
        self.leaving = [entry for entry in self.leaving if entry not in found]
        for entry in found:
            self.requests.pop(entry.key, None)
        return found

    def entry(self, name: object) -> Entry:
        """The entry of a name.

        Raises:
            ConfigError: there is none; the names that there are stand in it.
        """
        if isinstance(name, str) and name in self.entries:
            return self.entries[name]
        raise ConfigError(
            f"there is no ReFT adapter {shown(name)}",
            code="vllm.unknown",
            value=name,
            rule=f"served are: {_listed(self.entries)}",
            fix="load it first",
        )

    def note(self, key: str, request: str, unfinished: Callable[[str], bool]) -> None:
        """Remember that a request uses an entry; those that have ended are forgotten on the way."""
        using = self.requests.setdefault(key, set())
        if len(using) >= 64 and len(using) & (len(using) - 1) == 0:
            using.intersection_update([one for one in using if unfinished(one)])
        using.add(request)

    def _lora(self, key: str, number: int, folder: str) -> Any:
        if self.config.lora_config is None:
            raise ConfigError(
                "the bundle holds a LoRA, and the engine serves none",
                code="vllm.lora",
                rule="a bundle is served whole or not at all",
                fix="start the engine with enable_lora=True (--enable-lora)",
            )
        from vllm.lora.request import LoRARequest

        return LoRARequest(lora_name=key, lora_int_id=FIRST_LORA + number, lora_path=folder)


def no_lora(name: str, error: Exception) -> AdapterLoadError:
    """The refusal of a bundle whose LoRA vLLM does not take."""
    return AdapterLoadError(
        f"vLLM does not take the LoRA of {name!r}: {type(error).__name__}: {str(error)[:300]}",
        code="vllm.lora",
        value=name,
        rule="a bundle is served whole or not at all",
        fix="see vLLM's limits: max_lora_rank, and the modules that it adapts",
    )


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return (", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "none"
