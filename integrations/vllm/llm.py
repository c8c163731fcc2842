"""`ReftLLM`: vLLM's offline engine, with an adapter for every prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm import LLM, SamplingParams

from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import AdapterLoadError, ConfigError

from .admission import Gate
from .catalogue import Catalogue, Entry, no_lora
from .metrics import Metrics
from .settings import DEFAULT_RANK, DEFAULT_SLOTS, WORKER, Settings
from .tracking import EXTRA

__all__ = ["ReftLLM", "ReftRequest"]


@dataclass(frozen=True)
class ReftRequest:
    """The adapter of a prompt, by the name under which it is served.

    Args:
        name: under which an adapter is served.

    Raises:
        ConfigError: what is no name of an adapter.
    """

    name: str

    def __post_init__(self) -> None:
        check_name(self.name)


class ReftLLM(LLM):  # type: ignore[misc]  # vLLM's types are not followed
    """A `vllm.LLM` that serves ReFT adapters; every argument of `vllm.LLM` is its own too.

    Args:
        model: of the base.
        reft_adapters: name → folder or repository, loaded at the start.
        max_refts: slots: how many units of adapters lie on the device at once. A tied group of sites is one unit, an
            untied one a unit for each term of its positions. Others wait in host memory.
        max_reft_rank: the largest rank of an affine edit; slots are that wide.
        kwargs: of `vllm.LLM`.

    Raises:
        ConfigError, ReftError: an adapter, or a setting of the engine, that cannot be served; see docs/serving.md.
    """

    def __init__(
        self,
        model: str,
        *,
        reft_adapters: Mapping[str, str] | None = None,
        max_refts: int = DEFAULT_SLOTS,
        max_reft_rank: int = DEFAULT_RANK,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("worker_cls", "auto") != "auto":
            raise ConfigError(
                f"worker_cls={kwargs['worker_cls']!r}",
                code="vllm.engine",
                value=kwargs["worker_cls"],
                rule="edits are made by a worker of our own",
                fix="leave worker_cls out",
            )
        settings = Settings(max_refts, max_reft_rank)
        extra = settings.beside(kwargs.pop("additional_config", None))
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the runner whose batches are known; see engine.py
        super().__init__(model, **{**kwargs, "worker_cls": WORKER, "additional_config": extra})
        self.reft: Catalogue = Catalogue(self.llm_engine.vllm_config, settings)
        self._gate = Gate(self.llm_engine, self.reft, Metrics())
        for name, source in (reft_adapters or {}).items():
            self.load_reft_adapter(name, source)

    def load_reft_adapter(
        self, name: str, source: str, *, revision: str | None = None, token: str | None = None, replace: bool = False
    ) -> None:
        """Serve one more adapter.

        Args:
            name: by which prompts name it.
            source: folder or repository; of a bundle, its ReFT and its LoRA together.
            revision: of a repository.
            token: of a repository, as in huggingface_hub.
            replace: whether an adapter of that name gives way; its requests end as they began.

        Raises:
            ReftError: it cannot be served; nothing has changed then.
        """
        entry = self.reft.prepare(name, source, revision=revision, token=token, replace=replace)
        for refusal in self.llm_engine.collective_rpc("reft_load", args=(entry.key, entry.folder)):
            if refusal is not None:
                self._drop(entry)
                raise AdapterLoadError(f"{name!r}: {refusal}", code="vllm.load", value=name)
        if entry.lora is not None:
            try:
                self.llm_engine.add_lora(entry.lora)
            except Exception as error:  # whatever a worker raised: its type is lost between the processes
                self._drop(entry)
                raise no_lora(name, error) from error
        self.reft.publish(entry)
        self._sweep()

    def unload_reft_adapter(self, name: str) -> None:
        """Serve an adapter no more; requests that have begun end with it.

        Args:
            name: of an adapter that is served.

        Raises:
            ConfigError: no adapter of that name is served.
        """
        self.reft.withdraw(name)
        self._sweep()

    def list_reft_adapters(self) -> list[str]:
        """Names of the adapters that are served."""
        return sorted(self.reft.entries)

    def reft_report(self) -> dict[str, int]:
        """Adapters, slots, copies into slots and bytes, of the first worker."""
        report: dict[str, int] = self.llm_engine.collective_rpc("reft_report")[0]
        return report

    def generate(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *,
        reft_request: ReftRequest | Sequence[ReftRequest | None] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """`vllm.LLM.generate` with an adapter for all prompts, or one or none for each.

        Raises:
            ConfigError: an adapter that is not served, or another number of them than of prompts.
        """
        count = 1 if isinstance(prompts, (str, Mapping)) else len(prompts)
        found: list[Any] = super().generate(prompts, self._with(sampling_params, reft_request, count), **kwargs)
        return found

    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        *args: Any,
        reft_request: ReftRequest | Sequence[ReftRequest | None] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """`vllm.LLM.chat` with an adapter for all conversations, or one or none for each."""
        count = 1 if messages and isinstance(messages[0], Mapping) else len(messages)
        chosen = self._with(sampling_params, reft_request, count)
        found: list[Any] = super().chat(messages, chosen, *args, **kwargs)
        return found

    def enqueue(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *args: Any,
        reft_request: ReftRequest | Sequence[ReftRequest | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`vllm.LLM.enqueue` with an adapter for all prompts, or one or none for each."""
        count = 1 if isinstance(prompts, (str, Mapping)) else len(prompts)
        chosen = self._with(sampling_params, reft_request, count)
        found: list[str] = super().enqueue(prompts, chosen, *args, **kwargs)
        return found

    def _with(self, params: Any, requests: Any, count: int) -> Any:
        """Sampling parameters of every prompt, with the names of their adapters in them."""
        if requests is None:
            return params
        wanted = [requests] * count if isinstance(requests, ReftRequest) else list(requests)
        for request in wanted:
            if request is not None and not isinstance(request, ReftRequest):
                kind = type(request).__name__
                raise ConfigError(f"reft_request holds a {kind}", value=kind, rule="it is a ReftRequest or None")
        if len(wanted) != count:
            raise ConfigError(
                f"reft_request has {len(wanted)} entries",
                code="vllm.request",
                value=len(wanted),
                rule=f"it is one ReftRequest, or one or None for each of the {count} prompts",
            )
        for request in wanted:
            if request is not None:
                self.reft.entry(request.name)
        base = self.get_default_sampling_params() if params is None else params
        each = [base] * count if isinstance(base, SamplingParams) else list(base)
        if len(each) != count:
            return params  # vLLM's own refusal
        return [_naming(one, request) for one, request in zip(each, wanted, strict=True)]

    def _drop(self, entry: Entry) -> None:
        self.llm_engine.collective_rpc("reft_drop", args=(entry.key,))
        if entry.lora is not None:
            self.llm_engine.remove_lora(entry.lora.lora_int_id)

    def _sweep(self) -> None:
        for entry in self.reft.gone(self._gate.unfinished):
            self._drop(entry)


def _naming(params: SamplingParams, request: ReftRequest | None) -> SamplingParams:
    if request is None:
        return params
    named = params.clone()
    named.extra_args = {**(params.extra_args or {}), EXTRA: request.name}
    return named
